"""Shards of rows as tasks on a Ray cluster: Ray places them, tries them again, and lets the cluster grow for them."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch

from instdiff.core import Log, Measure, Settings
from instdiff.engine.distributed.worker import Serving
from instdiff.engine.distributed.workers import TRIES, runs
from instdiff.engine.models import DTYPES, Resident, Source, at_hand, weights
from instdiff.engine.sweep import BatchResult, default_batch_tokens
from instdiff.errors import EngineError, InstDiffError, PlanError, StoreError
from instdiff.rendering.rows import Rows
from instdiff.version import __version__

SHARD_BATCHES = 256
"""Batches in the longest shard: a task on a GPU loads the model, and must be worth it."""
OBJECTS_BYTES = 1 << 30
"""Shared memory of a cluster that is started here."""
REACHED_S, SAY_EVERY_S = 20.0, 60.0
"""In how many seconds a cluster must answer, and after how many without a result the log says so."""


@dataclass(frozen=True)
class Terms:
    """How many tasks a cluster has room for at once, and what each of them gets."""

    count: int
    cpus: int
    gpus: int

    @classmethod
    def of(cls, nodes: Sequence[Mapping[str, float]], settings: Settings) -> Terms:
        """For nodes with these resources: a task for each (group of) GPU, or for each node where there are none.

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
        fits = (some for some in range(max(cpus, default=1), 1, -1) if sum(cpu // some for cpu in cpus) >= count)
        return cls(count, next(fits, 1), 0)


@dataclass(frozen=True)
class SweepTask:
    """What is read off which model; with it a worker knows that it has the same model and program."""

    source: Source
    weights: tuple[tuple[str, int], ...]
    measures: tuple[Measure, ...]
    batch_tokens: int | None
    dtype: str
    terms: Terms
    version: str


class RayHost:
    """The workers of a Ray cluster, which is joined, or started, when there is work.

    Args:
        settings: where it is and what a task has.
        device: of this machine, for what stays here.
        dtype: that of the weights.
    """

    devices: Sequence[str] = ()

    def __init__(self, settings: Settings, device: torch.device, dtype: torch.dtype) -> None:
        if settings.device.startswith("cuda:"):
            raise PlanError(f"ray deals out the GPUs itself; use --device cuda in place of {settings.device}")
        if settings.device == "cpu" and settings.gpus_per_worker:
            raise PlanError("gpus_per_worker is given with --device cpu; leave one of them out")
        self.settings, self.device, self.dtype = settings, device, dtype
        self._ray: Any = None
        self._started_here = False
        self._shards, self._hosts = 0, set[str]()
        self._log: Log = print

    def local(self) -> Resident:
        """A host in this process: embedders and judges stay here."""
        return Resident(self.device, self.dtype)

    def close(self) -> None:
        """Say what was done, and leave the cluster, which ends with that if it was started here."""
        if self._started_here:
            self._ray.shutdown()
        if self._shards:
            self._log(f"ray: {_some(self._shards, 'shard')} on {_some(len(self._hosts), 'host')}")
        self._ray, self._started_here, self._shards, self._hosts = None, False, 0, set()

    def sweep(
        self, source: Source, rows: Rows, measures: tuple[Measure, ...], log: Log, batch_tokens: int | None = None
    ) -> Generator[BatchResult]:
        """Hand shards of rows to tasks and yield what comes back, in any order; errors are those of ``in_tasks``."""
        terms = self.join(log)
        dtype = str(self.dtype).removeprefix("torch.")
        task = SweepTask(source, weights(source), measures, batch_tokens, dtype, terms, __version__)
        batch = batch_tokens or default_batch_tokens("cuda" if terms.gpus else "cpu")
        todo = (run.at for run in runs(rows, batch, terms.count, SHARD_BATCHES))
        for at, batches in self.in_tasks(sweep_shard, todo, lambda at: (task, rows.take(at))):
            if sum(len(one.at) for one in batches) != len(at):
                raise RuntimeError(f"a worker did not give back each of {len(at)} rows once")
            yield from (replace(one, at=at[one.at]) for one in batches)

    def in_tasks(
        self, work: Callable[..., Any], items: Iterator[Any], arguments: Callable[[Any], tuple[Any, ...]]
    ) -> Iterator[tuple[Any, Any]]:
        """Each item with what a task made of its arguments, in any order; Ray does those again that are lost.

        Raises:
            EngineError: raised by a task, or ``TRIES`` workers were lost over it.
            StoreError: the cluster has no room for what a task takes or gives.
        """
        terms, said, at_work = self.join(self._log), set[str](), dict[Any, Any]()
        how = {"num_cpus": terms.cpus, "num_gpus": terms.gpus, "scheduling_strategy": "SPREAD"}
        task = self._ray.remote(max_retries=TRIES - 1, **how)(work)
        try:
            while True:
                # Those that wait let a cluster grow, and are at hand when a worker is free.
                ahead = self.settings.workers or 2 * self.join(self._log).count
                for item in islice(items, max(ahead - len(at_work), 0)):
                    at_work[task.remote(*arguments(item))] = item
                if not at_work:
                    return
                for ref in self._wait(list(at_work)):
                    value, host, says = self._get(ref)
                    for line in [line for line in says if line not in said]:
                        self._log(line)  # what holds for all of them is said once
                        said.add(line)
                    self._shards += 1
                    self._hosts.add(host)
                    yield at_work.pop(ref), value
        finally:
            for ref in at_work:  # whoever is still at work was interrupted
                self._ray.cancel(ref, force=True)

    def join(self, log: Log) -> Terms:
        """Be in the cluster; gives what there is room for now.

        Raises:
            PlanError: Ray is missing, or no node has what is asked for.
            EngineError: there is no cluster.
        """
        self._log = log
        if self._ray is None:
            # Nothing is reported to anybody, and what a worker sees of the GPUs is left to Ray.
            os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
            os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
            try:
                import ray
            except ImportError:
                message = 'the executor ray needs Ray, which is missing; run: pip install "instdiff[ray]"'
                raise PlanError(message) from None
            self._started_here = not ray.is_initialized()
            if self._started_here:
                connect(ray, self.settings)
            self._ray = ray
        return Terms.of([node["Resources"] for node in self._ray.nodes() if node["Alive"]], self.settings)

    def _wait(self, refs: list[Any]) -> list[Any]:
        """Those that are done, one at least."""
        while not (ready := self._ray.wait(refs, timeout=SAY_EVERY_S)[0]):
            free = {key: value for key, value in self._ray.available_resources().items() if key in ("CPU", "GPU")}
            has = ", ".join(f"{value:g} {key}" for key, value in sorted(free.items())) or "nothing"
            self._log(f"{_some(len(refs), 'shard')} at work or waiting; the Ray cluster has {has} free")
        return list(ready)

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
                f"the Ray cluster has no room for a shard ({_first_line(error)}); free space where Ray keeps its "
                "files, or lower --batch-tokens; then run again: what was computed is kept"
            ) from None
        except faults.RayError as error:
            raise EngineError(
                f"{TRIES} workers were lost one after another over the same shard (the last: {_first_line(error)}); "
                "where memory is short, lower --workers, --batch-tokens or --max-length"
            ) from None


def connect(ray: Any, settings: Settings) -> None:
    """Join the cluster that is named, or start one on this machine.

    Raises:
        PlanError: a package that such an address needs is missing.
        EngineError: there is no cluster.
    """
    how: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    address = settings.ray_address or os.environ.get("RAY_ADDRESS")
    try:
        host, colon, port = (address or "").rpartition("://")[2].rpartition(":")
        if colon and port.isdigit():  # Ray itself tries for many minutes to reach a machine that is not there
            socket.create_connection((host.strip("[]"), int(port)), REACHED_S).close()
        if not address:
            room = OBJECTS_BYTES
            with suppress(OSError):
                room = min(room, max(shutil.disk_usage("/dev/shm").free // 2, 80 << 20))
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            how |= {"num_cpus": max(cores, settings.workers or 1), "object_store_memory": room}
        _hush()
        ray.init(address or "local", **how, **({} if address else {"include_dashboard": False}))
    except ImportError as error:
        raise PlanError(f'{address} needs what is missing ({error}); run: pip install "ray[client]"') from None
    except (ConnectionError, TimeoutError, RuntimeError, ValueError, OSError) as error:
        what = f"no Ray cluster can be used at '{address}'" if address else "Ray cannot be started on this machine"
        hint = "check the address, and that Ray and Python have the same versions there" if address else "see above"
        raise EngineError(f"{what}: {_first_line(error)}; {hint}") from None


def _hush() -> None:
    """Ray's own pages on each lost process go to standard output, where results go."""
    with suppress(ImportError, AttributeError):
        from ray._private import worker

        if callable(worker.print_to_stdstream):
            worker.print_to_stdstream = lambda data, ignore_prefix: None


_serving: dict[tuple[str, Terms], Serving] = {}
"""What a worker's process keeps from task to task; Ray ends it after each where it has GPUs."""


def sweep_shard(task: SweepTask, rows: Rows) -> tuple[list[BatchResult], str, list[str]]:
    """The task: values of the rows that are handed over, where that was, and what there was to say.

    Raises:
        EngineError: the program or the model is another one here, or cannot be run.
    """
    host, says, how = socket.gethostname(), list[str](), (task.dtype, task.terms)
    if task.version != __version__:
        raise EngineError(f"{host} has instdiff {__version__}, and this machine {task.version}; install the same")
    try:
        if how not in _serving:
            _serving.clear()
            torch.set_num_threads(task.terms.cpus)
            device = torch.device("cuda", 0) if task.terms.gpus else torch.device("cpu")
            _serving[how] = Serving(Resident(device, DTYPES[task.dtype], over_gpus=task.terms.gpus > 1))
        source = at_hand(task.source, task.weights)
        swept = _serving[how].sweep(source, rows, task.measures, says.append, task.batch_tokens)
        return list(swept), host, says
    except InstDiffError as error:
        raise type(error)(f"{error} (on {host})") from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _some(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
