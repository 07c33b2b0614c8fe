"""Which Ray cluster a run goes to, and how many workers it has room for."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from instdiff.core import Settings
from instdiff.engine.distributed.arrow_blocks import STALLED_S
from instdiff.errors import ConfigError, EngineError, PlanError

if TYPE_CHECKING:
    from instdiff.config.commands import RunConfig

OBJECTS_BYTES = 1 << 30
"""Shared memory of a cluster that is started here."""
REACHED_S = 20.0
"""Seconds in which a cluster's machine must answer."""


@dataclass(frozen=True)
class RaySettings(Settings):
    """Settings of a run whose passes go to a Ray cluster.

    ``workers`` is by default one for each (group of) GPU, or for each node where there are none.

    Args:
        address: ``ray://HOST:10001``, ``HOST:6379`` or ``auto``; by default ``RAY_ADDRESS``, else one is started here.
        gpus_per_worker: GPUs over which a model is laid that is larger than one; by default 1, where there are any.
        shared: a folder that all nodes see (``s3://``, ``gs://`` or local), for rows and results in place of messages.
        patience: seconds that a file of the shared folder may take.
    """

    address: str | None = None
    gpus_per_worker: int | None = None
    shared: str | None = None
    patience: float = STALLED_S


def spread(settings: Settings, config: RunConfig) -> Settings:
    """The settings of a run on the executor that its configuration names.

    Raises:
        ConfigError: a key of another executor is given.
    """
    keys = {"ray_address": "address", "gpus_per_worker": "gpus_per_worker", "shared": "shared"}
    if config.executor != "ray":
        given = [key for key in keys if getattr(config, key) is not None]
        if given:
            raise ConfigError(f"'{given[0]}' is of use with the executor ray only; add --executor ray, or leave it out")
        return settings
    more = {name: getattr(config, key) for key, name in keys.items()}
    return RaySettings(**{**vars(settings), **more})


@dataclass(frozen=True)
class Terms:
    """How many workers a cluster has room for, and what each of them gets."""

    count: int
    cpus: int
    gpus: int

    @classmethod
    def of(cls, nodes: Sequence[Mapping[str, float]], settings: RaySettings) -> Terms:
        """For nodes with these resources.

        Raises:
            PlanError: no node has the GPUs that are asked for.
        """
        cpus, gpus = ([int(node.get(kind, 0)) for node in nodes] for kind in ("CPU", "GPU"))
        if settings.device == "cpu":
            gpus = []
        each = settings.gpus_per_worker or min(sum(gpus), 1)
        if settings.device == "cuda" and not each:
            raise PlanError("no node of the Ray cluster has a GPU; use --device cpu, or add such nodes")
        if each > max(gpus, default=0):
            raise PlanError(f"gpus_per_worker is {each}, and no node of the Ray cluster has so many; lower it")
        if each:
            return cls(settings.workers or sum(gpu // each for gpu in gpus), 1, each)
        count = settings.workers or max(sum(cpu >= 1 for cpu in cpus), 1)
        return cls(count, share(cpus, count), 0)

    def __str__(self) -> str:
        return f"{self.cpus} CPU" + (f" and {self.gpus} GPU" if self.gpus else "")


def share(cpus: list[int], count: int) -> int:
    """The most CPUs for each of so many workers, so that the nodes have room for all; at least one."""
    fits = (each for each in range(max(cpus, default=1), 1, -1) if sum(cpu // each for cpu in cpus) >= count)
    return next(fits, 1)


def connect(ray: Any, settings: RaySettings) -> None:
    """Join the cluster that is named, or start one on this machine.

    Raises:
        PlanError: a package that such an address needs is missing.
        EngineError: there is no cluster.
    """
    quiet = {"log_to_driver": False, "configure_logging": False}
    address = settings.address or os.environ.get("RAY_ADDRESS")
    try:
        _hush()
        if address:
            _reach(address)
            ray.init(address, **quiet)
            return
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        room = OBJECTS_BYTES
        with suppress(OSError):
            room = min(room, max(shutil.disk_usage("/dev/shm").free // 2, 80 << 20))
        cpus = max(cores, settings.workers or 1)
        ray.init("local", num_cpus=cpus, object_store_memory=room, include_dashboard=False, **quiet)
    except ImportError as error:
        raise PlanError(f'{address} needs what is missing ({error}); run: pip install "ray[client]"') from None
    except (ConnectionError, TimeoutError, RuntimeError, ValueError, OSError) as error:
        what = f"no Ray cluster can be used at '{address}'" if address else "Ray cannot be started on this machine"
        hint = "check the address, and that Ray and Python have the same versions there" if address else "see above"
        raise EngineError(f"{what}: {str(error).strip().partition(chr(10))[0]}; {hint}") from None


def _reach(address: str) -> None:
    """Ray itself tries for many minutes to reach a machine that is not there."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), REACHED_S).close()


def _hush() -> None:
    """Ray's own pages on each lost process go to standard output, where results go; the log has a line of ours."""
    with suppress(ImportError, AttributeError):
        from ray._private import worker

        if callable(worker.print_to_stdstream):
            worker.print_to_stdstream = lambda data, ignore_prefix: None
