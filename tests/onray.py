"""A Ray cluster on this machine that all tests share, and how they look at its workers."""

from __future__ import annotations

import atexit
import os
import signal
import warnings
from contextlib import suppress
from functools import cache
from typing import Any

import psutil

OBJECTS = 100 << 20


@cache
def started() -> Any:
    """The cluster, joined by this process; it ends with it."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import ray
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 2, "object_store_memory": OBJECTS, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, connect=False, head_node_args=head)
        ray.init(cluster.address, log_to_driver=False, configure_logging=False)

    def end() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.shutdown()
            cluster.shutdown()

    atexit.register(end)
    return cluster


def scorers(node: Any = None) -> list[int]:
    """Processes of workers that are at work, of this cluster (tests beside this one may have another) or a node."""
    found = []
    parent = None if node is None else node.all_processes["raylet"][0].process.pid
    for process in psutil.Process(parent).children(recursive=True):
        with suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith("ray::sweep_shard"):
                found.append(process.pid)
    return sorted(found)


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
