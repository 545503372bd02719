"""Data flows one way: imports point up the list below only, read off the syntax trees."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "r2rank_jax"
ORDER = [
    "errors",
    "files",
    "types",
    "config",
    "ranking",
    "model",
    "sharding",
    "rollout",
    "train",
    "data",
    "evaluation",
    "checkpoint",
    "pretrained",
    "report",
    "runs",
    "plan",
    "cli",
]


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import"
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _part(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_up(path):
    here = _part(path)
    if here == "__init__":
        assert not _imports(path)
        return
    for name in _imports(path):
        if not name.startswith("r2rank_jax."):
            continue
        there = name.split(".")[1]
        assert ORDER.index(there) <= ORDER.index(here), f"{here} must not import {name}"


def test_jit_and_meshes_stay_below_the_pure_layers():
    """`ranking/` and `model/` are pure: no jit, no mesh, no donation."""
    for path in FILES:
        if _part(path) in ("ranking", "model", "data", "evaluation", "report"):
            source = path.read_text(encoding="utf-8")
            assert "jax.jit(" not in source and "Mesh" not in source, path


def test_ranking_imports_only_jax_and_numpy():
    probe = (
        "import sys; before = set(sys.modules); import jax, numpy; jaxed = set(sys.modules);"
        "import r2rank_jax.ranking; new = {m.split('.')[0] for m in set(sys.modules) - jaxed};"
        "print(sorted(n for n in new if n not in sys.stdlib_module_names and n != 'r2rank_jax'))"
    )
    out = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    # jax loads parts of itself and of its own dependencies lazily; none of ours may come in.
    assert set(ast.literal_eval(out.stdout)) <= {"jax", "jaxlib", "numpy", "ml_dtypes", "scipy", "opt_einsum"}
