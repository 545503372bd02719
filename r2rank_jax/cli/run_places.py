"""Where a run is: in a folder, or in an object store, whose runs are worked on in a folder of this machine."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from r2rank_jax.files.objects import is_address
from r2rank_jax.files.places import require_folder

if TYPE_CHECKING:
    from r2rank_jax.runs.session.stored import StoredRun

WORK = "R2RANK_WORK_DIR"
"""Variable with the folder in which runs of object stores are worked on."""


def run_place(text: str) -> Path | str:
    """Type of an argument: a path, or an address such as s3://bucket/run as it is."""
    return text if is_address(text) else Path(text)


def stored_run(
    arguments: argparse.Namespace,
    name: str = "run_dir",
    *,
    use: Literal["write", "read", "look"],
    phases: list[str] | None = None,
) -> StoredRun | None:
    """The run in an object store that an argument names; None if it names a folder, or if only help is wanted.

    The argument becomes the run's folder on this machine, which is empty until the run is `fetched`, and
    `arguments.address` the address. A configuration of the run is copied, and named by `arguments.config`, if the
    command needs one.

    Args:
        arguments: of the command.
        name: of the argument.
        use: see `StoredRun`.
        phases: see `StoredRun`.

    Raises:
        UsageError: the address, or the folder for such runs, cannot be used.
        StorageError: the store does not answer, or refuses.
    """
    place = getattr(arguments, name)
    if not isinstance(place, str):
        return None
    if getattr(arguments, "help", False):
        setattr(arguments, name, None)
        return None
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    work = Path(os.environ.get(WORK) or home / "r2rank_jax" / "runs")
    require_folder(work, WORK)
    from r2rank_jax.runs.session.stored import StoredRun

    stored = StoredRun(place, work, use=use, phases=phases, step=getattr(arguments, "step", None))
    setattr(arguments, name, stored.folder)
    arguments.address = stored.objects.address
    if getattr(arguments, "config", "none needed") is None:
        arguments.config = stored.config()
    return stored


@contextmanager
def fetched(stored: StoredRun) -> Iterator[StoredRun]:
    """Fetch a run from its store, and in the end send what the command has changed."""
    from r2rank_jax.runs.session.one_writer import one_writer

    share = f"set {WORK} to a folder that all hosts share"
    with one_writer(stored.folder, share=share), stored.opened():
        yield stored
