"""One process, two workers, two actors of a cluster, four shards: the same scores and selection of all real rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cli.shell import ok, read_jsonl
from onray import started

SHARDS = 4
WORDS = ("--method=perplexity", "--template=plain", "--dtype=float32", "--device=cpu", "--max-length=256")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.shared_data,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning:ray"),
]


def one_process(words: list[str], name: str) -> None:
    ok("score", *words, "--workers=1", f"--store={name}", f"--output={name}.parquet")


def two_workers(words: list[str], name: str) -> None:
    ok("score", *words, "--workers=2", f"--store={name}", f"--output={name}.parquet")


def two_actors(words: list[str], name: str) -> None:
    pytest.importorskip("ray")
    started()
    ok("score", *words, "--executor=ray", "--workers=2", f"--store={name}", f"--output={name}.parquet")


def four_shards(words: list[str], name: str) -> None:
    for index in range(SHARDS):
        ok(
            "score",
            *words,
            f"--shards={SHARDS}",
            f"--shard-index={index}",
            "--output=shards",
            f"--store={name}-{index}",
        )
    ok("merge", "shards", f"--output={name}.parquet", f"--store={name}")


@pytest.fixture(scope="module")
def words(shared: Path) -> list[str]:
    data, model = shared / "data" / "alpaca" / "alpaca_union.json", shared / "models" / "stories260K"
    return [f"--data={data}", f"--model={model}", *WORDS]


@pytest.fixture(scope="module")
def home(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the scores of one process."""
    folder = tmp_path_factory.mktemp("executors")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        one_process(words, "one_process")
    return folder


def table(path: Path) -> pa.Table:
    return pq.read_table(path).replace_schema_metadata()


def selected(words: list[str], name: str) -> set[str]:
    ok("select", words[0], f"--scores={name}.parquet", "--method=perplexity", "--budget=10%", f"--output={name}.jsonl")
    return {repr(sorted(row.items())) for row in read_jsonl(f"{name}.jsonl")}


@pytest.mark.parametrize("way", [two_workers, two_actors, four_shards], ids=lambda way: way.__name__)
def test_the_same_scores_and_selection(
    way: Callable[[list[str], str], None], words: list[str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    way(words, way.__name__)
    mine, plain = table(home / f"{way.__name__}.parquet"), table(home / "one_process.parquet")
    assert mine.column_names == plain.column_names and len(mine) == len(plain) > 20_000
    for name in plain.column_names:
        assert mine[name].is_null().equals(plain[name].is_null()), name
        if plain[name].type == pa.float64():
            a, b = (column[name].drop_null().to_numpy() for column in (mine, plain))
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=name)
        else:
            assert mine[name].equals(plain[name]), name
    assert selected(words, way.__name__) == selected(words, "one_process")
