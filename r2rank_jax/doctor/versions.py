"""Versions of Python and the packages, against the requirements of this package and of JAX; accelerators unseen."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from importlib import metadata

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from r2rank_jax.doctor.findings import Finding, Outcome, fault, ok, warning

CHECK = "versions"
OWN = "r2rank-jax"
COMPARED = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain")
"""Packages that must be the same on every process, as programs or files depend on them."""
_PLUGIN = re.compile(r"jax-(cuda|rocm)\d+-(plugin|pjrt)")
_NVIDIA_SMI_LIMIT_S = 10


def check_versions() -> Outcome:
    """Compare what is installed with the requirements in the packages' metadata. The versions are facts."""
    versions = {"python": platform.python_version()}
    versions |= {name: version for name in COMPARED if (version := _version(name)) is not None}
    if _version(OWN) is None:
        findings = [
            warning(
                CHECK,
                f"{OWN} must be installed for its requirements to be known, got none",
                "install it, `pip install -e .`",
            )
        ]
    else:
        findings = [*_python(versions["python"]), *_unmet(OWN)]
    findings += [*_unmet("jax"), *_plugins(versions.get("jaxlib"))]
    if not findings:
        findings = [ok(CHECK, ", ".join(f"{name} {version}" for name, version in versions.items()))]
    return Outcome(findings, {CHECK: versions})


def check_unseen_gpus(backend: str) -> list[Finding]:
    """Warn of NVIDIA GPUs that the driver shows and JAX does not use.

    Args:
        backend: `jax.default_backend()`.
    """
    if backend != "cpu" or (command := shutil.which("nvidia-smi")) is None:
        return []
    try:
        listed = subprocess.run(
            [command, "-L"], capture_output=True, text=True, timeout=_NVIDIA_SMI_LIMIT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):  # a driver that does not answer: JAX would not see its GPUs either
        return []
    gpus = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    if not gpus:
        return []
    return [
        warning(
            "devices",
            f"JAX should use the GPUs of this machine, nvidia-smi lists {len(gpus)}, JAX none",
            f"install `{OWN}[gpu]`, and set JAX_PLATFORMS to cuda or leave it unset",
        )
    ]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _python(version: str) -> Iterator[Finding]:
    required = metadata.metadata(OWN)["Requires-Python"]
    if required and not SpecifierSet(required).contains(version, prereleases=True):
        yield fault(CHECK, f"{OWN} requires Python {required}, got {version}", "use another Python")


def _unmet(package: str) -> Iterator[Finding]:
    """Requirements of an installed package that the environment does not meet, extras left out."""
    for line in metadata.requires(package) or []:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            wanted = f"{requirement.name}{requirement.specifier}"
            got = "none" if version is None else version
            yield fault(CHECK, f"{package} requires {wanted}, got {got}", f'run `pip install "{wanted}"`')


def _plugins(jaxlib: str | None) -> Iterator[Finding]:
    """Plugins of another version than jaxlib, which JAX leaves out, and a libtpu that JAX does not know."""
    names = {str(found.metadata["Name"]).lower() for found in metadata.distributions() if found.metadata["Name"]}
    for name in sorted(filter(_PLUGIN.fullmatch, names)):
        version = _version(name)
        if version != jaxlib:
            yield fault(
                CHECK,
                f"{name} must have the version of jaxlib, {jaxlib}, got {version}",
                f"run `pip install {name}=={jaxlib}`",
            )
    if "libtpu" not in names:
        return
    for line in metadata.requires("jax") or []:
        requirement, version = Requirement(line), str(_version("libtpu"))
        if requirement.name == "libtpu" and not requirement.specifier.contains(version, prereleases=True):
            yield fault(
                CHECK,
                f"jax requires libtpu{requirement.specifier}, got {version}",
                f'run `pip install "libtpu{requirement.specifier}"`',
            )
