"""A pass by the workers of a Ray cluster: each is an actor that holds the model and takes blocks of rows.

What ``engine/workers.py`` does with processes of one machine. A few blocks for each worker are under way at a time, and
a block comes from mapped files and goes to the store, so that the driver's memory does not grow with rows. A worker may
be lost at any moment: its blocks are done again by others. The driver alone writes to the store, so that a driver that
was killed goes on from there. ``engine/scorer.py`` is what a worker does.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import torch

from instdiff.core import Log, Settings
from instdiff.engine.distributed import workers as local
from instdiff.engine.distributed.arrow_blocks import Shared, block_of, swept_of
from instdiff.engine.distributed.ray_actor import Errand, Reply, Scorer
from instdiff.engine.distributed.ray_settings import RaySettings, Terms, connect
from instdiff.engine.distributed.workers import TRIES, RemoteModel, Run, Task, Workers, runs
from instdiff.engine.models import Resident, Source
from instdiff.engine.sweep import BatchResult, default_batch_tokens
from instdiff.errors import EngineError, PlanError, StoreError
from instdiff.rendering.renderer import Rows
from instdiff.version import __version__

AHEAD = 2
"""Blocks that a worker has at a time: one at work, the next already there."""
MOST_BATCHES = 32
"""Batches in the longest block."""
PATIENCE_S = 600.0
"""Seconds for which no worker at all may be there, before that is an error."""
SAY_EVERY_S = 60.0


def residence(settings: Settings, device: torch.device, dtype: torch.dtype) -> Resident | Workers:
    """Where models are: in this process, in several others, or on a cluster."""
    if isinstance(settings, RaySettings):
        return Cluster(settings, dtype)
    return local.make_model_host(settings, device, dtype)


@dataclass
class Actor:
    """A worker, the blocks that it has, oldest first, and what it says when it is there."""

    handle: Any
    starting: Any
    blocks: deque[tuple[Any, Run, str]] = field(default_factory=deque)
    host: str = "a node"


@dataclass
class Count:
    """What a report names."""

    blocks: int = 0
    again: int = 0
    rows_again: int = 0
    lost: int = 0
    workers: int = 0
    hosts: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        done = f"{_some(self.blocks, 'block')} by {_some(self.workers, 'worker')} on {_some(len(self.hosts), 'host')}"
        again = f"{_some(self.again, 'block')} ({_some(self.rows_again, 'row')}) done again"
        return f"ray: {done}; {again}, {_some(self.lost, 'worker')} lost"


class Todo:
    """Runs that nobody has yet: those to be done again first."""

    def __init__(self, fresh: Iterator[Run]) -> None:
        self.fresh, self.again = fresh, deque[Run]()

    def __bool__(self) -> bool:
        return self.seen(1) > 0

    def seen(self, most: int) -> int:
        """How many there are, counted up to so many."""
        self.again.extend(islice(self.fresh, max(most - len(self.again), 0)))
        return min(len(self.again), most)

    def take(self) -> Run | None:
        """The next."""
        return self.again.popleft() if self.seen(1) else None


class Cluster(Workers):
    """Actors that keep a model between passes; the cluster is joined, or started, when there is work.

    Args:
        settings: where it is and what a worker has.
        dtype: that of the weights.
    """

    def __init__(self, settings: RaySettings, dtype: torch.dtype) -> None:
        if settings.device.startswith("cuda:"):
            raise PlanError(f"ray deals out the GPUs itself; use --device cuda in place of {settings.device}")
        if settings.device == "cpu" and settings.gpus_per_worker:
            raise PlanError("gpus_per_worker is given with --device cpu; leave one of them out")
        super().__init__(settings.workers or 0, [settings.device], dtype)
        self.settings, self.report = settings, Count()
        self._ray: Any = None
        self._started_here = False
        self._actors: list[Actor] = []
        self._terms = Terms(1, 1, 0)
        self._shared: Shared | None = None
        self._log: Log = print
        self._unborn = 0

    # ── what ``Workers`` has too ──────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def use(self, source: Source) -> Iterator[RemoteModel]:
        """The model of a source in all workers."""
        try:
            yield RemoteModel(self, source)
        finally:
            # Whoever is still at work was interrupted; what it gives back must not come in the middle of the next pass.
            for actor in [a for a in self._actors if a.blocks]:
                self._drop(actor)

    def close(self) -> None:
        """End all workers, say what there was, and leave the cluster, which ends with that if it was started here."""
        if self._ray is None:
            return
        for actor in list(self._actors):
            self._drop(actor)
        if self._shared is not None:
            with suppress(StoreError):  # what was computed is in the store
                self._shared.drop()
        if self._started_here:
            self._ray.shutdown()
        self._ray = None
        if self.report.blocks or self.report.lost:
            self._log(str(self.report))
        self.report = Count()

    def sweep(self, task: Task, rows: Rows, log: Log) -> Iterator[BatchResult]:
        """Deal out blocks of rows and yield what comes back, in any order.

        Raises:
            EngineError: raised by a worker, or workers are lost again and again over the same rows, or none comes.
            StoreError: the shared folder fails.
        """
        self._log = log
        self._join()
        batch = task.batch_tokens or default_batch_tokens("cuda" if self._terms.gpus else "cpu")
        todo, said = Todo(runs(rows, batch, self.count, MOST_BATCHES)), set[str]()
        errand = Errand.of(task, self._shared)
        while todo or any(actor.blocks for actor in self._actors):
            self._hire(min(self.count, todo.seen(self.count) + sum(bool(a.blocks) for a in self._actors)))
            self._supply(todo, errand, rows)
            for actor in self._heard():
                if actor.starting is not None:
                    self._welcome(actor)
                    continue
                reply = self._reply(actor, todo)
                if reply is None:
                    continue
                for line in reply.says:
                    if line not in said:  # what holds for all of them is said once
                        log(line)
                    said.add(line)
                _, run, name = actor.blocks.popleft()
                yield self._received(run, name, reply, task)

    # ── the cluster ───────────────────────────────────────────────────────────────────────────────────────────────

    def _join(self) -> None:
        if self._ray is not None:
            return
        # Nothing is reported to anybody, and what a worker sees of the GPUs is left to Ray.
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        try:
            import ray
        except ImportError:
            raise PlanError('the executor ray needs Ray, which is missing; run: pip install "instdiff[ray]"') from None
        if self.settings.shared:
            shared = Shared(self.settings.shared.rstrip("/") + f"/instdiff-{uuid.uuid4().hex}", self.settings.patience)
            shared.check()
            self._shared = shared
        self._started_here = not ray.is_initialized()
        if self._started_here:
            connect(ray, self.settings)
        self._ray, self._unborn = ray, 0
        try:
            self._measure()
        except BaseException:
            self.close()
            raise

    def _measure(self) -> None:
        """How many workers there are to be, and what each of them has."""
        self._terms = Terms.of([node["Resources"] for node in self._ray.nodes() if node["Alive"]], self.settings)
        self.count = self._terms.count
        if self._terms.gpus and self.settings.dtype == "auto" and self.dtype == "float32":
            self._log("weights are float32, as suits this machine; --dtype bfloat16 is faster on the cluster's GPUs")

    # ── workers ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _hire(self, wanted: int) -> None:
        """Ask for workers where there are too few; they come when the cluster has room."""
        terms = self._terms
        while len(self._actors) < wanted:
            make = self._ray.remote(Scorer).options(
                num_cpus=terms.cpus,
                num_gpus=terms.gpus,
                max_restarts=0,
                max_task_retries=0,
                scheduling_strategy="SPREAD",
            )
            handle = make.remote(self.dtype, terms.gpus, terms.cpus)
            self._actors.append(Actor(handle, handle.facts.remote()))

    def _supply(self, todo: Todo, errand: Errand, rows: Rows) -> None:
        """Give blocks to workers that are there and have few; everyone one before anyone two."""
        for depth in range(1, AHEAD + 1):
            for actor in self._actors:
                if actor.starting is None and len(actor.blocks) < depth and (run := todo.take()) is not None:
                    given, name = block_of(rows.take(run.at)), uuid.uuid4().hex
                    if self._shared is not None:
                        given = self._shared.put(f"{name}.rows.parquet", given)
                    ref = actor.handle.sweep.remote(errand, given, f"{name}.values.parquet")
                    actor.blocks.append((ref, run, name))

    def _heard(self) -> list[Actor]:
        """Those that have something to say; waits until there is one.

        Raises:
            EngineError: no worker comes.
        """
        refs = {actor.starting or actor.blocks[0][0]: actor for actor in self._actors if actor.starting or actor.blocks}
        start = said = time.monotonic()
        while True:
            ready, _ = self._ray.wait(list(refs), num_returns=1, timeout=5.0)
            if ready:
                return [refs[ref] for ref in ready]
            now = time.monotonic()
            if any(actor.starting is None for actor in self._actors):
                continue
            if now - start > PATIENCE_S:
                raise EngineError(f"no worker came within {PATIENCE_S:g} s; {self._room()}")
            if now - said > SAY_EVERY_S:
                said = now
                self._log(f"waiting for the Ray cluster: {self._room()}")

    def _room(self) -> str:
        free = {key: value for key, value in self._ray.available_resources().items() if key in ("CPU", "GPU")}
        has = ", ".join(f"{value:g} {key}" for key, value in sorted(free.items())) or "nothing"
        return f"each worker needs {self._terms}, and the cluster has {has} free; add nodes, or lower --workers"

    def _welcome(self, actor: Actor) -> None:
        """A worker is there, or did not come to be.

        Raises:
            EngineError: it has another version, or it is not the first one that fails.
        """
        import ray.exceptions as faults

        try:
            facts: Mapping[str, Any] = self._ray.get(actor.starting)
        except faults.RayError as error:
            self._drop(actor)
            self._unborn += 1
            if self._unborn >= TRIES:
                raise EngineError(
                    f"{self._unborn} workers one after another could not start on the Ray cluster ({_why(error)}); "
                    "every node needs this version of instdiff, and memory for the model"
                ) from None
            self.report.lost += 1
            self._log(f"a worker could not start ({_why(error)}) and is replaced")
            return
        if facts["version"] != __version__:
            raise EngineError(
                f"{facts['host']} has instdiff {facts['version']}, and this machine {__version__}; install the same"
            )
        actor.starting, actor.host, self._unborn = None, facts["host"], 0
        self.report.workers += 1
        self.report.hosts.add(actor.host)

    def _drop(self, actor: Actor) -> None:
        self._actors.remove(actor)
        with suppress(Exception):  # it is gone already
            self._ray.kill(actor.handle)

    # ── what comes back ───────────────────────────────────────────────────────────────────────────────────────────

    def _reply(self, actor: Actor, todo: Todo) -> Reply | None:
        """What a worker says of its oldest block; None when the block has to be done again."""
        import ray.exceptions as faults

        try:
            reply: Reply = self._ray.get(actor.blocks[0][0])
        except faults.RayActorError as error:
            self._lose(actor, todo, error)
            return None
        except (faults.OutOfDiskError, faults.ObjectStoreFullError) as error:
            raise StoreError(
                f"the Ray cluster has no room for a block ({_why(error)}); free space where Ray keeps its files, "
                "give shared=DIR, or lower --batch-tokens; then run again: what was computed is kept"
            ) from None
        except faults.RayError as error:
            if isinstance(error, faults.RayTaskError) and not isinstance(error.cause, faults.RayError):
                raise RuntimeError(f"a worker failed:\n{error}") from None
            _, run, _ = actor.blocks.popleft()
            self._again(run, todo, error, guilty=True)
            self._log(f"a block was lost on its way ({_why(error)}); its {_some(len(run.at), 'row')} are done again")
            return None
        if reply.error is not None:
            raise reply.error
        return reply

    def _lose(self, actor: Actor, todo: Todo, error: Exception) -> None:
        """Take what a lost worker had; only the block that it was at may be to blame."""
        self._drop(actor)
        self.report.lost += 1
        rows = sum(len(run.at) for _, run, _ in actor.blocks)
        for number in reversed(range(len(actor.blocks))):
            self._again(actor.blocks[number][1], todo, error, guilty=number == 0)
        self._log(
            f"a worker on {actor.host} was lost ({_why(error)}) and is replaced; "
            f"the {_some(rows, 'row')} that it had are done again"
        )
        actor.blocks.clear()

    def _again(self, run: Run, todo: Todo, error: Exception, *, guilty: bool) -> None:
        deaths = run.deaths + guilty
        if deaths >= TRIES:
            raise EngineError(
                f"{deaths} workers were lost one after another over the same {_some(len(run.at), 'row')} (the last: "
                f"{_why(error)}); where memory is short, lower --workers, --batch-tokens or --max-length"
            )
        self.report.again += 1
        self.report.rows_again += len(run.at)
        todo.again.appendleft(Run.of(run.at, deaths))

    def _received(self, run: Run, name: str, reply: Reply, task: Task) -> BatchResult:
        """A block in the numbers of the whole pass."""
        block = reply.block
        if self._shared is not None:
            block = self._shared.get(f"{name}.values.parquet")
            for kind in ("rows", "values"):
                self._shared.drop(f"{name}.{kind}.parquet")
        swept = swept_of(block, task.measures)
        if sorted(swept.at.tolist()) != list(range(len(run.at))):
            raise RuntimeError(f"a worker gave back {len(swept.at)} rows of a block of {len(run.at)}")
        self.report.blocks += 1
        return replace(swept, at=run.at[swept.at])


def _why(error: BaseException) -> str:
    """The reason in a message of Ray, which has many lines."""
    text = " ".join(str(error).split())
    found = re.search(r"because (its .+?|the .+?)[.:](?: |$)", text)
    return found[1] if found else text[:200].partition(". ")[0] or type(error).__name__


def _some(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
