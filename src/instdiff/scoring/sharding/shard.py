"""Which rows a job has to do: what it is told, or what the cluster says of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from instdiff.errors import ConfigError


@dataclass(frozen=True)
class Shard:
    """Shard ``index`` of ``count``; ``by`` says what told us so."""

    index: int
    count: int
    by: str = "--shard-index"

    def span(self, total: int) -> tuple[int, int]:
        """Of so many rows the first that is its own, and the first that is not any more."""
        return total * self.index // self.count, total * (self.index + 1) // self.count

    def __str__(self) -> str:
        return f"shard {self.index} of {self.count}"


def shard_of_this_job(
    shards: int | Literal["auto"], index: int | None = None, environ: Mapping[str, str] | None = None
) -> Shard:
    """The shard ``index`` of ``shards`` (``auto`` asks the environment) that options and environment name.

    Looked at in this order: ``RANK`` of ``WORLD_SIZE`` (torchrun), the task of a Slurm array counted from its smallest
    number, ``SLURM_PROCID`` of ``SLURM_NTASKS`` (srun), ``JOB_COMPLETION_INDEX`` (Kubernetes, which does not tell of
    how many). A launcher that started one process alone says nothing. Where nothing says which shard this is, or two
    things say different, a ConfigError.
    """
    if index is not None:
        if shards == "auto":
            raise ConfigError("--shards auto takes the index from the environment; give --shards N with --shard-index")
        if not 0 <= index < shards:
            raise ConfigError(f"--shard-index {index} is not among 0 to {shards - 1}, the indexes of --shards {shards}")
        return Shard(index, shards)
    told = list(_read_environment(os.environ if environ is None else environ))
    if shards == "auto":
        return _auto(told)
    return _one_of(told, shards)


@dataclass(frozen=True)
class _Told:
    """What a launcher says: which of how many; ``raw`` is a number that was not counted from the smallest."""

    by: str
    index: int
    count: int | None
    raw: int


def _read_environment(environ: Mapping[str, str]) -> Iterator[_Told]:
    def number(name: str) -> int | None:
        text = environ.get(name, "")
        if text and not text.isdigit():
            raise ConfigError(f"{name}='{text}' in the environment is no number; give --shards N --shard-index i")
        return int(text) if text else None

    rank, world = number("RANK"), number("WORLD_SIZE")
    if rank is not None and world is not None:
        yield _Told(f"RANK={rank} of WORLD_SIZE={world}", rank, world, rank)
    task, tasks = number("SLURM_ARRAY_TASK_ID"), number("SLURM_ARRAY_TASK_COUNT")
    if task is not None and tasks is not None:
        least, step = number("SLURM_ARRAY_TASK_MIN") or 0, number("SLURM_ARRAY_TASK_STEP") or 1
        yield _Told(f"SLURM_ARRAY_TASK_ID={task} of {tasks} from {least}", (task - least) // step, tasks, task)
    process, processes = number("SLURM_PROCID"), number("SLURM_NTASKS")
    if process is not None and processes is not None:
        yield _Told(f"SLURM_PROCID={process} of SLURM_NTASKS={processes}", process, processes, process)
    pod = number("JOB_COMPLETION_INDEX")
    if pod is not None:
        yield _Told(f"JOB_COMPLETION_INDEX={pod}", pod, None, pod)


def _auto(told: list[_Told]) -> Shard:
    counted = [t for t in told if t.count is not None]
    several = [t for t in counted if t.count != 1]
    array = [t for t in several if t.by.startswith("SLURM")]
    if len(array) > 1 and several[0] is array[0]:
        total = (array[0].count or 1) * (array[1].count or 1)
        raise ConfigError(
            f"the environment has both {array[0].by} and {array[1].by}, so it is not clear which shard this is; "
            f"give --shards {total} --shard-index $((SLURM_ARRAY_TASK_ID * SLURM_NTASKS + SLURM_PROCID)), "
            "or one task for each job of the array"
        )
    pod = next((t for t in told if t.count is None), None)
    if pod is not None and not several:
        raise ConfigError(f"{pod.by} does not say of how many; give --shards N, the job's number of completions")
    if not counted:
        raise ConfigError(
            "--shards auto finds no RANK and WORLD_SIZE, no SLURM_ARRAY_TASK_ID, no SLURM_PROCID in the environment; "
            "give --shards N --shard-index i"
        )
    one = (several or counted)[0]
    assert one.count is not None
    return _check(one.index, one.count, one.by)


def _one_of(told: list[_Told], shards: int) -> Shard:
    """``--shards N`` without an index: who counts to N, or a number below N where a few jobs are run again."""
    for one in told:
        if one.count is None or one.count == shards:
            return _check(one.index, shards, one.by)
    for one in told:
        if one.by.startswith("SLURM_ARRAY") and (one.count or 0) < shards:
            return _check(one.raw, shards, one.by)
    if shards == 1:
        return Shard(0, 1, "--shards 1")
    also = f"; the environment has {told[0].by}" if told else ""
    raise ConfigError(f"--shards {shards}, and nothing says which of them this is{also}; give --shard-index i")


def _check(index: int, count: int, by: str) -> Shard:
    if not 0 <= index < count:
        raise ConfigError(f"{by} is not among 0 to {count - 1}; give --shards {count} --shard-index i")
    return Shard(index, count, by)
