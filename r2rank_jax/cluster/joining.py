"""Join the processes of a job."""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Callable
from typing import Any

from r2rank_jax.cluster import messages
from r2rank_jax.cluster.ending import end_when_told
from r2rank_jax.cluster.meeting import meet
from r2rank_jax.cluster.variables import CLUSTER, Job
from r2rank_jax.errors import JoinError, UsageError
from r2rank_jax.stopping import asked_to_stop, end_process


def join(job: Job) -> Callable[[], None]:
    """Meet the other processes, and initialize `jax.distributed`.

    Returns:
        A function that passes a SIGTERM on to JAX. Its preemption service tells the other processes, and
        `multihost_utils.reached_preemption_sync_point` becomes true at the same call in all of them.

    Raises:
        UsageError: the processes cannot join and never will.
        JoinError: some did not arrive in time.
    """
    place, limits = job.place, job.limits
    if place is not None:
        meet(place, limits.join_s)
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if job.devices:
        jax.config.update("jax_num_cpu_devices", len(job.devices))  # on CPU, as many as are asked for
    settings: dict[str, Any] = {
        "local_device_ids": job.devices,
        "initialization_timeout": limits.join_s,
        "heartbeat_timeout_seconds": limits.heartbeat_s,
        "shutdown_timeout_seconds": limits.end_s,
    }
    if place is not None:
        settings |= {
            "coordinator_address": place.address,
            "num_processes": place.processes,
            "process_id": place.process,
            "cluster_detection_method": "deactivate",  # or JAX takes the devices from SLURM's variables
            "coordinator_bind_address": place.address if place.host == "127.0.0.1" else None,
        }
    try:
        # JAX waits outside of Python, where a signal could not interrupt it.
        with asked_to_stop(leave=end_process):
            jax.distributed.initialize(**settings)
            forward = _take_back_sigterm()
    except ValueError as error:  # JAX misses an argument
        raise UsageError(
            f"{CLUSTER}=auto needs Cloud TPU, GKE, SLURM or Open MPI, but JAX detects none of them ({error}); set "
            "the variables of launch/README.md instead"
        ) from error
    except RuntimeError as error:  # JAX does not say which errors it raises here
        raise JoinError(f"the processes could not join: {' '.join(str(error).split()):.300}") from error
    if not messages.agrees_on_stops():
        raise UsageError("JAX's preemption service must be on; unset JAX_ENABLE_PREEMPTION_SERVICE")
    end_when_told()
    return forward


def _take_back_sigterm() -> Callable[[], None]:
    """Put Python's handler of SIGTERM back, which JAX's has replaced, and return a call of JAX's.

    JAX's handler swallows every SIGTERM, so that a second one could not end the process.
    """
    libc = ctypes.CDLL(None)
    libc.signal.argtypes, libc.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
    address = libc.signal(signal.SIGTERM, None)
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(address)
    return lambda: handler(signal.SIGTERM)
