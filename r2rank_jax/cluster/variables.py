"""The variables through which a launcher tells a process its place in a job; launch/README.md documents them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from r2rank_jax.errors import UsageError

COORDINATOR, PROCESSES, PROCESS = "R2RANK_COORDINATOR", "R2RANK_PROCESSES", "R2RANK_PROCESS"
CLUSTER, DEVICES = "R2RANK_CLUSTER", "R2RANK_LOCAL_DEVICES"
JOIN_S, HEARTBEAT_S, END_S = "R2RANK_JOIN_S", "R2RANK_HEARTBEAT_S", "R2RANK_END_S"
_SEE = "see launch/README.md"


@dataclass(frozen=True, kw_only=True)
class TimeLimits:
    """Seconds after which waiting for other processes ends."""

    join_s: int = 600
    """Until all processes have arrived. Machines of a large job start minutes apart."""
    heartbeat_s: int = 20
    """Without a sign of life from a process, after which the others end."""
    end_s: int = 15
    """For an orderly disconnection, once all processes have done their work."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """The place of a process in a job."""

    host: str
    port: int
    processes: int
    process: int

    @property
    def address(self) -> str:
        """Of process 0, as JAX expects it."""
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a launcher says about a job of several processes."""

    place: Place | None
    """None: JAX detects the cluster itself."""
    devices: tuple[int, ...] | None
    """Local devices that this process uses; empty: all; None: all, or JAX's choice where `place` is None."""
    limits: TimeLimits


def read_job(environment: Mapping[str, str]) -> Job | None:
    """Read a launcher's variables.

    Args:
        environment: of the process.

    Returns:
        The job, or None where no launcher has set any variable: the process is a job of its own.

    Raises:
        UsageError: a variable is missing, cannot be read, or contradicts another.
    """
    if (cluster := environment.get(CLUSTER)) is not None:
        if cluster != "auto":
            raise UsageError(f"{CLUSTER} must be auto or unset, got {cluster!r}; {_SEE}")
        if given := [name for name in (COORDINATOR, PROCESSES, PROCESS) if name in environment]:
            raise UsageError(f"{CLUSTER}=auto leaves the processes to JAX, got {given[0]} as well; unset one of them")
        devices = _devices(environment)
        if devices is None and _alone_on_node(environment):
            devices = ()  # JAX would give this process one device of many, as if the node had a process for each
        return Job(place=None, devices=devices, limits=_limits(environment))
    given = [name for name in (COORDINATOR, PROCESSES, PROCESS) if name in environment]
    if not given:
        return None
    if missing := [name for name in (COORDINATOR, PROCESSES, PROCESS) if name not in environment]:
        raise UsageError(f"{given[0]} needs {' and '.join(missing)} as well; {_SEE}")
    host, port = _address(environment[COORDINATOR])
    processes = _number(environment, PROCESSES, least=1)
    process = _number(environment, PROCESS, least=0)
    if process >= processes:
        raise UsageError(f"{PROCESS} must be below {PROCESSES}={processes}, got {process}; processes count from 0")
    return Job(
        place=Place(host=host, port=port, processes=processes, process=process),
        devices=_devices(environment),
        limits=_limits(environment),
    )


def _limits(environment: Mapping[str, str]) -> TimeLimits:
    default = TimeLimits()
    return TimeLimits(
        join_s=_number(environment, JOIN_S, least=1, default=default.join_s),
        heartbeat_s=_number(environment, HEARTBEAT_S, least=1, default=default.heartbeat_s),
        end_s=_number(environment, END_S, least=1, default=default.end_s),
    )


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdecimal() and 1 <= int(port) <= 65535):
        raise UsageError(f"{COORDINATOR} must be HOST:PORT with a port from 1 to 65535, got {text!r}; {_SEE}")
    return host, int(port)


def _number(environment: Mapping[str, str], name: str, *, least: int, default: int | None = None) -> int:
    text = environment.get(name)
    if text is None and default is not None:
        return default
    if text is None or not (text.isascii() and text.isdecimal() and int(text) >= least):
        raise UsageError(f"{name} must be a whole number of at least {least}, got {text!r}; {_SEE}")
    return int(text)


def _devices(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    text = environment.get(DEVICES)
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.isascii() and part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise UsageError(f"{DEVICES} must be different numbers of local devices such as 0,1, got {text!r}; {_SEE}")
    return tuple(map(int, parts))


def _alone_on_node(environment: Mapping[str, str]) -> bool:
    """Whether SLURM or Open MPI started one process on each node."""
    tasks = environment.get("SLURM_STEP_TASKS_PER_NODE") or environment.get("OMPI_COMM_WORLD_LOCAL_SIZE") or ""
    return bool(re.fullmatch(r"1(\(x\d+\))?(,1(\(x\d+\))?)*", tasks))
