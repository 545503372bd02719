"""What to do with a save whose process was killed: seal it if it was complete, delete it otherwise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from r2rank_jax.checkpoint.folders import is_step
from r2rank_jax.files.checksums import write_seal


def seal_or_delete(folder: Path) -> None:
    """Seal a save that was complete when its process was killed; delete any other."""
    if _is_complete(folder):
        write_seal(folder)
        print(f"checkpoint {folder.parent.name}/{folder.name} was complete and is sealed now")
    else:
        shutil.rmtree(folder)


def _is_complete(folder: Path) -> bool:
    """Whether Orbax finished this save: it is named after its step, has its time of commit, and can be read."""
    if not is_step(folder.name):
        return False
    try:
        committed = json.loads((folder / "_CHECKPOINT_METADATA").read_bytes())["commit_timestamp_nsecs"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return bool(committed) and (folder / "extras/metadata").is_file() and _is_readable(folder / "state")


def _is_readable(state: Path) -> bool:
    """Whether every array can be read. They are read one at a time, as the whole state may not fit into one host."""
    alone = ocp.options.MultiprocessingOptions(primary_host=0, active_processes={0}, barrier_sync_key_prefix="readable")
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:  # the other processes are not here
        try:
            leaves, kind = jax.tree.flatten(reader.metadata(state).item_metadata.tree)
            for place in range(len(leaves)):
                one = [leaf if i == place else ocp.PLACEHOLDER for i, leaf in enumerate(leaves)]
                item = jax.tree.unflatten(kind, one)
                as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
                reader.restore(state, args=ocp.args.PyTreeRestore(item=item, restore_args=as_numpy))
        except Exception:
            return False
    return bool(leaves)
