"""Shards of rows as tasks on a Ray cluster: Ray places them, tries them again, and lets the cluster grow for them."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch

from instdiff.core import Log, Measure, Settings
from instdiff.engine.distributed.workers import TRIES, runs
from instdiff.engine.models import DTYPES, Resident
from instdiff.engine.sources import Source, at_hand, first_line, weights
from instdiff.engine.sweep import BatchResult, default_batch_tokens
from instdiff.errors import EngineError, InstDiffError, PlanError, StoreError, require
from instdiff.rendering.rows import Rows
from instdiff.version import __version__

SHARD_BATCHES = 256  # in the longest shard: a task loads the model, and must be worth it
OBJECTS_BYTES = 1 << 30  # shared memory of a cluster that is started here
REACHED_S, SAY_EVERY_S = 20.0, 60.0  # in which a cluster must answer; without a result


@dataclass(frozen=True)
class Terms:
    """How many tasks a cluster has room for at once, and what each of them gets."""

    count: int
    cpus: int
    gpus: int

    @classmethod
    def of(cls, nodes: Sequence[Mapping[str, float]], settings: Settings) -> Terms:
        """For nodes with these resources: a task for each (group of) GPU, or for each node where there are none."""
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
        fits = (some for some in range(max(cpus, default=1), 1, -1) if sum(cpu // some for cpu in cpus) >= count)
        return cls(count, next(fits, 1), 0)


class RayHost:
    """The workers of a Ray cluster, which is joined, or started, when there is work."""

    devices: Sequence[str] = ()

    def __init__(self, settings: Settings, device: torch.device, dtype: torch.dtype) -> None:
        if settings.device.startswith("cuda:"):
            raise PlanError(f"ray deals out the GPUs itself; use --device cuda instead of {settings.device}")
        if settings.device == "cpu" and settings.gpus_per_worker:
            raise PlanError("gpus_per_worker is given with --device cpu; leave one of them out")
        self.settings, self.device, self.dtype = settings, device, dtype
        self._log: Log = print
        self._ray: Any = None
        self._started_here = False
        self._hosts: list[str] = []  # of each shard that was done

    def local(self) -> Resident:
        """A host in this process: embedders and judges stay here."""
        return Resident(self.device, self.dtype)

    def close(self) -> None:
        """Say what was done, and leave the cluster, which ends with that if it was started here."""
        if self._started_here:
            self._ray.shutdown()
        if self._hosts:
            done, there = len(self._hosts), len(set(self._hosts))
            self._log(f"ray: {done:,} shard{'' if done == 1 else 's'} on {there:,} host{'' if there == 1 else 's'}")
        self._ray, self._started_here, self._hosts = None, False, []

    def sweep(
        self, source: Source, rows: Rows, measures: tuple[Measure, ...], log: Log, batch_tokens: int | None = None
    ) -> Generator[BatchResult]:
        """Hand shards of rows to tasks and yield what comes back, in any order; errors are those of ``in_tasks``."""
        terms = self.join(log)
        batch = batch_tokens or default_batch_tokens("cuda" if terms.gpus else "cpu")
        todo = (run.at for run in runs(rows, batch, terms.count, SHARD_BATCHES))
        dtype = str(self.dtype).removeprefix("torch.")
        how = (__version__, dtype, terms, source, weights(source), measures, batch_tokens)
        with closing(self.in_tasks(sweep_shard, todo, lambda at: (how, rows.take(at)))) as done:
            for at, batches in done:
                if sum(len(one.at) for one in batches) != len(at):
                    raise RuntimeError(f"a worker did not give back each of {len(at)} rows once")
                yield from (replace(one, at=at[one.at]) for one in batches)

    def in_tasks(
        self, work: Callable[..., Any], items: Iterator[Any], arguments: Callable[[Any], tuple[Any, ...]]
    ) -> Generator[tuple[Any, Any]]:
        """Each item with what a task made of its arguments, in any order; Ray does those again that are lost."""
        terms, said, at_work = self.join(self._log), set[str](), dict[Any, Any]()
        how = {"num_cpus": terms.cpus, "num_gpus": terms.gpus, "scheduling_strategy": "SPREAD"}
        task = self._ray.remote(max_retries=TRIES - 1, **how)(work)
        # Where this ends early, those at work end by themselves: cancelling a task as it ends brings Ray down.
        while True:
            # Those that wait let a cluster grow, and are at hand when a worker is free.
            ahead = self.settings.workers or 2 * self.join(self._log).count
            for item in islice(items, max(ahead - len(at_work), 0)):
                at_work[task.remote(*arguments(item))] = item
            if not at_work:
                return
            ready, _ = self._ray.wait(list(at_work), timeout=SAY_EVERY_S)
            if not ready:
                free = self._ray.available_resources()
                has = " and ".join(f"{free.get(kind, 0):g} {kind}" for kind in ("CPU", "GPU"))
                self._log(f"shards at work or waiting: {len(at_work)}; the Ray cluster has {has} free")
            for ref in ready:
                value, host, says = self._get(ref)
                for line in [line for line in says if line not in said]:
                    self._log(line)  # what holds for all of them is said once
                    said.add(line)
                self._hosts.append(host)
                yield at_work.pop(ref), value

    def join(self, log: Log) -> Terms:
        """Be in the cluster; gives what there is room for now."""
        self._log = log
        if self._ray is None:
            # Nothing is reported to anybody, and what a worker sees of the GPUs is left to Ray.
            os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            require("ray", "the executor ray")
            import ray

            started = not ray.is_initialized()
            if started:
                connect(ray, self.settings)
            self._ray, self._started_here = ray, started
        return Terms.of([node["Resources"] for node in self._ray.nodes() if node["Alive"]], self.settings)

    def _get(self, ref: Any) -> Any:
        import ray.exceptions as faults

        try:
            return self._ray.get(ref)
        except faults.RayTaskError as error:
            if isinstance(error.cause, InstDiffError):
                raise error.cause from None
            raise RuntimeError(f"a worker failed:\n{error}") from None
        except (faults.OutOfDiskError, faults.ObjectStoreFullError) as error:
            raise StoreError(
                f"the Ray cluster has no room for a shard ({first_line(error)}); free space where Ray keeps its "
                "files, or lower --batch-tokens; then run again: what was computed is kept"
            ) from None
        except faults.RayError as error:
            raise EngineError(
                f"{TRIES} workers were lost one after another over the same shard (the last: {first_line(error)}); "
                "where memory is short, lower --workers, --batch-tokens or --max-length"
            ) from None


def connect(ray: Any, settings: Settings) -> None:
    """Join the cluster that is named, or start one on this machine; a message says what to do where that fails."""
    how: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    address = settings.ray_address or os.environ.get("RAY_ADDRESS")
    try:
        host, colon, port = (address or "").rpartition("://")[2].rpartition(":")
        if colon and port.isdigit():  # Ray itself tries for many minutes to reach a machine that is not there
            socket.create_connection((host.strip("[]"), int(port)), REACHED_S).close()
        if not address:
            memory = shutil.disk_usage("/dev/shm" if os.path.isdir("/dev/shm") else os.sep).free // 2
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            how |= {"num_cpus": max(cores, settings.workers or 1), "include_dashboard": False}
            how["object_store_memory"] = min(OBJECTS_BYTES, max(memory, 80 << 20))
        from ray._private import worker

        # Ray's own pages on each lost process go to standard output, where results go.
        worker.print_to_stdstream = lambda data, ignore_prefix: None
        ray.init(address or "local", **how)
    except ImportError as error:
        raise PlanError(f'{address} needs what is missing ({error}); run: pip install "ray[client]"') from None
    except Exception as error:  # noqa: BLE001 - Ray raises plain ones too
        what = f"no Ray cluster can be used at '{address}'" if address else "Ray cannot be started on this machine"
        hint = "check the address, and that Ray and Python have the same versions there" if address else "see above"
        raise EngineError(f"{what}: {first_line(error)}; {hint}") from None


def sweep_shard(how: tuple[Any, ...], rows: Rows) -> tuple[list[BatchResult], str, list[str]]:
    """The task: values of the rows that are handed over, where that was, and what there was to say."""
    version, dtype, terms, source, expected, measures, batch_tokens = how
    host, says = socket.gethostname(), list[str]()
    if version != __version__:
        raise EngineError(f"{host} has instdiff {__version__}, and this machine {version}; install the same")
    torch.set_num_threads(terms.cpus)
    device = torch.device("cuda", 0) if terms.gpus else torch.device("cpu")
    resident = Resident(device, DTYPES[dtype], over_gpus=terms.gpus > 1)
    try:
        return list(resident.sweep(at_hand(source, expected), rows, measures, says.append, batch_tokens)), host, says
    except InstDiffError as error:
        raise type(error)(f"{error} (on {host})") from None
