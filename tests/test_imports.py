"""Where things are: imports point up the lists below only, files and folders stay small. Read off the syntax trees."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "r2rank_jax"
TESTS = Path(__file__).parent
# A part may import from those above it.
ORDER = [
    "errors",
    "stopping",
    "cluster",
    "files",
    "types",
    "config",
    "phases",
    "lineage",
    "ranking",
    "model",
    "slices",
    "sharding",
    "rollout",
    "train",
    "data",
    "evaluation",
    "checkpoint",
    "pretrained",
    "report",
    "plan",
    "runs",
    "doctor",
    "experiments",
    "cli",
]
# The same for the rooms of data/, by stage of life.
ROOMS = [
    "sources",  # source formats -> interactions and items
    "prepared",  # what a prepared folder holds: settings, splits, tables, dataset, traces
    "fetch",  # public data, by name
    "prepare",  # interactions -> a prepared folder, bucket by bucket
    "prompts",  # item text, templates, tokenizers, chat frames
    "batches",  # lists -> arrays -> Grain; requests of users
    "teacher",  # a template's rationales, or a language model's
    "audit",  # whether what was prepared holds
    "card",  # what was prepared
]
MOST_LINES = 350
MOST_SIBLINGS = 12


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
DATA_FILES = sorted((PACKAGE / "data").rglob("*.py"))


def _require_order(order: list[str], place: int, path: Path) -> None:
    """Imports of a file stay in its own part of the package or point to parts before it."""
    part = path.relative_to(PACKAGE).with_suffix("").parts[place]
    prefix = ".".join(("r2rank_jax", *path.relative_to(PACKAGE).parts[:place])) + "."
    for name in _imports(path):
        if name.startswith(prefix):
            imported = name.removeprefix(prefix).split(".")[0]
            assert order.index(imported) <= order.index(part), f"{path.relative_to(PACKAGE)} must not import {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_up(path):
    if path == PACKAGE / "__init__.py":
        assert not _imports(path)
    else:
        _require_order(ORDER, 0, path)


@pytest.mark.parametrize("path", DATA_FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_between_the_rooms_of_data_point_up(path):
    if path == PACKAGE / "data/__init__.py":
        assert not _imports(path)
    else:
        _require_order(ROOMS, 1, path)


@pytest.mark.parametrize(("folder", "order"), [(PACKAGE, ORDER), (PACKAGE / "data", ROOMS)], ids=["package", "data"])
def test_the_order_names_every_part(folder, order):
    parts = {path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert parts - {"__init__"} == set(order)


def test_every_room_of_data_states_its_input_and_output():
    for room in ROOMS:
        page = ast.get_docstring(ast.parse((PACKAGE / "data" / room / "__init__.py").read_text(encoding="utf-8")))
        assert page and "The input is" in page and "The output is" in page, room


@pytest.mark.parametrize("root", [PACKAGE, TESTS], ids=["package", "tests"])
def test_files_and_folders_stay_small(root):
    for path in sorted(root.rglob("*.py")):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        assert lines <= MOST_LINES, f"{path.relative_to(root)} has {lines} lines; split it"
    # The two roots are exempt: the package's is the list above, and the tests mirror it.
    for folder in sorted(path for path in root.rglob("*") if path.is_dir() and path.name != "__pycache__"):
        siblings = sorted({path.name for path in folder.iterdir()} - {"__init__.py", "__pycache__"})
        assert len(siblings) <= MOST_SIBLINGS, f"{folder.relative_to(root)} holds {len(siblings)}: {siblings}"


def test_the_tests_mirror_the_package():
    """At the top, and in data/; what launch/ starts is tested too."""
    for folder, order, more in ((TESTS, ORDER, {"launch", "support"}), (TESTS / "data", ROOMS, set())):
        assert {path.name for path in folder.iterdir() if (path / "__init__.py").is_file()} <= {*order, *more}


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


def test_tests_share_helpers_through_the_support_package_only():
    for path in sorted(TESTS.rglob("*.py")):
        for name in _imports(path):
            shared = not name.startswith("tests") or name.startswith("tests.support")
            assert shared, f"{path.relative_to(TESTS)} imports {name}; move what it needs to tests/support/"
