"""One process, two workers, Ray with two workers, four shards: the same scores and selection of real rows."""

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
WORDS = ("--template=plain", "--dtype=float32", "--device=cpu", "--max-length=256")
FEW = ("--limit=300", "--method=miwv,tshirt,kcenter")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.shared_data,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::FutureWarning:ray"),
]


def one_process(words: list[str], name: str) -> None:
    ok("score", *words, "--workers=1", f"--store={name}", f"--output={name}.parquet")


def two_workers(words: list[str], name: str) -> None:
    ok("score", *words, "--workers=2", f"--store={name}", f"--output={name}.parquet")


def ray_with_two_workers(words: list[str], name: str) -> None:
    pytest.importorskip("ray")
    started()
    ok("score", *words, "--executor=ray", "--workers=2", f"--store={name}", f"--output={name}.parquet")


def four_shards(words: list[str], name: str) -> None:
    place = f"shards-{name}"
    for index in [*range(SHARDS), *range(SHARDS)]:  # the second time for methods that have a second wave
        mine = [f"--shards={SHARDS}", f"--shard-index={index}", f"--output={place}", f"--store={name}-{index}"]
        ok("score", *words, *mine)
    ok("merge", place, f"--output={name}.parquet", f"--store={name}")


def ray_that_reads(words: list[str], name: str) -> None:
    pytest.importorskip("ray")
    started()
    more = ["--executor=ray", "--workers=2", f"--store={name}", f"--output={name}.parquet"]
    ok("score", *words, *more, f"shared=seen-{name}")


@pytest.fixture(scope="module")
def words(shared: Path) -> list[str]:
    data, model = shared / "data" / "alpaca" / "alpaca_union.json", shared / "models" / "stories260K"
    return [f"--data={data}", f"--model=base={model}", f"--model=proxy={model}", *WORDS]


def scored(words: list[str], name: str, folder: Path) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        one_process(words, name)
    return folder


@pytest.fixture(scope="module")
def home(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the scores of one process."""
    return scored([*words, "--method=perplexity"], "one_process", tmp_path_factory.mktemp("executors"))


@pytest.fixture(scope="module")
def few(words: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for 300 rows and methods that show rows to each other, add noise or choose together."""
    return scored([*words, *FEW], "one_process", tmp_path_factory.mktemp("few"))


def table(path: Path) -> pa.Table:
    return pq.read_table(path).replace_schema_metadata()


def selected(words: list[str], name: str, method: str) -> set[str]:
    out = f"{name}-{method}.jsonl"
    ok("select", *words, f"--scores={name}.parquet", f"--method={method}", "--budget=10%", f"--output={out}")
    return {repr(sorted(row.items())) for row in read_jsonl(out)}


def assert_same(mine: pa.Table, plain: pa.Table) -> None:
    assert mine.column_names == plain.column_names and len(mine) == len(plain)
    for name in plain.column_names:
        assert mine[name].is_null().equals(plain[name].is_null()), name
        if plain[name].type == pa.float64():
            a, b = (column[name].drop_null().to_numpy() for column in (mine, plain))
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=name)
        else:
            assert mine[name].equals(plain[name]), name


WAYS = [two_workers, ray_with_two_workers, ray_that_reads, four_shards]
Way = Callable[[list[str], str], None]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_the_same_scores_and_selection(way: Way, words: list[str], home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    way([*words, "--method=perplexity"], way.__name__)
    assert_same(table(home / f"{way.__name__}.parquet"), table(home / "one_process.parquet"))
    assert len(table(home / "one_process.parquet")) > 20_000
    assert selected(words[:1], way.__name__, "perplexity") == selected(words[:1], "one_process", "perplexity")


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_the_same_for_methods_that_show_rows_to_each_other_add_noise_or_choose_together(
    way: Way, words: list[str], few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(few)
    way([*words, *FEW], way.__name__)
    assert_same(table(few / f"{way.__name__}.parquet"), table(few / "one_process.parquet"))
    rows = [words[0], "--limit=300"]
    for method in ("miwv", "tshirt", "kcenter"):
        names = (way.__name__, "one_process")
        mine, plain = (selected([*rows, f"--store={name}"], name, method) for name in names)
        assert mine == plain and len(mine) > 10, method
