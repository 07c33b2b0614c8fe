"""Which shard a job is: by its options, or by what the cluster says."""

from __future__ import annotations

import pytest

from instdiff.errors import ConfigError
from instdiff.scoring.sharding.shard import Shard, shard_of_this_job

ARRAY = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MIN": "5"}
STEPPED = {**ARRAY, "SLURM_ARRAY_TASK_ID": "11", "SLURM_ARRAY_TASK_STEP": "2"}
ONE_TASK = {"SLURM_PROCID": "0", "SLURM_NTASKS": "1"}
POD = {"JOB_COMPLETION_INDEX": "3"}


def test_shards_share_all_rows() -> None:
    assert [Shard(index, 4).span(10) for index in range(4)] == [(0, 2), (2, 5), (5, 7), (7, 10)]
    assert Shard(0, 6).span(3) == (0, 0)
    assert [row for i in range(7) for row in range(*Shard(i, 7).span(23))] == list(range(23))


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"RANK": "2", "WORLD_SIZE": "8"}, (2, 8)),
        ({"RANK": "2", "WORLD_SIZE": "8", **ONE_TASK}, (2, 8)),
        (ARRAY, (2, 4)),
        (ARRAY | ONE_TASK, (2, 4)),
        (ARRAY | {"RANK": "0", "WORLD_SIZE": "1"}, (2, 4)),
        (STEPPED, (3, 4)),
        ({"SLURM_PROCID": "5", "SLURM_NTASKS": "6"}, (5, 6)),
        (ONE_TASK, (0, 1)),
    ],
)
def test_auto(environ: dict[str, str], expected: tuple[int, int]) -> None:
    found = shard_of_this_job("auto", environ=environ)
    assert (found.index, found.count) == expected
    assert "=" in found.by


@pytest.mark.parametrize(
    ("shards", "environ", "index"),
    [
        (16, POD, 3),
        (4, ARRAY, 2),  # the whole array, counted from its smallest number
        (16, {**ARRAY, "SLURM_ARRAY_TASK_COUNT": "2"}, 7),  # two of sixteen run again, by their numbers
        (8, {"RANK": "2", "WORLD_SIZE": "8"}, 2),
        (1, {}, 0),
    ],
)
def test_a_number_without_an_index(shards: int, environ: dict[str, str], index: int) -> None:
    found = shard_of_this_job(shards, environ=environ)
    assert (found.index, found.count) == (index, shards)


def test_options_go_first() -> None:
    assert shard_of_this_job(4, 1, ARRAY) == Shard(1, 4)


@pytest.mark.parametrize(
    ("shards", "index", "environ", "says"),
    [
        ("auto", None, {}, "give --shards N --shard-index i"),
        ("auto", None, POD, "JOB_COMPLETION_INDEX=3 does not say of how many; give --shards N"),
        ("auto", 1, ARRAY, "give --shards N with --shard-index"),
        ("auto", None, {"RANK": "x", "WORLD_SIZE": "2"}, "RANK='x' in the environment is no number"),
        ("auto", None, ARRAY | {"SLURM_PROCID": "1", "SLURM_NTASKS": "3"}, "give --shards 12 --shard-index"),
        (4, 4, {}, "--shard-index 4 is not among 0 to 3"),
        (8, None, {"RANK": "1", "WORLD_SIZE": "2"}, "the environment has RANK=1 of WORLD_SIZE=2; give --shard-index i"),
        (4, None, {}, "nothing says which of them this is; give --shard-index i"),
        (3, None, POD, "JOB_COMPLETION_INDEX=3 is not among 0 to 2"),
    ],
)
def test_what_is_not_clear_is_refused(shards: object, index: int | None, environ: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as refused:
        shard_of_this_job(shards, index, environ)  # type: ignore[arg-type]
    assert says in str(refused.value)
