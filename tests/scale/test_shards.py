"""Shards merged are one run: scores, reasons, details and rows; what lacks or does not belong is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cli.shell import Ran, cli, ok
from helpers import Lab
from instdiff.data.load import load, load_shards
from instdiff.scoring.sharding.shard_file import ranges, record, shard_files, shard_path
from instdiff.store import Store
from instdiff.store.keys import Keys

ALL = "ifd,instructdiff,entropy,tshirt,longest"


@pytest.fixture
def words(lab: Lab, here: Path) -> list[str]:
    models = [f"--model=base={lab.models['llama']}", f"--model=calibrated={lab.models['other']}"]
    models.append(f"--model=proxy={lab.models['gpt2']}")
    return ["--data=my.jsonl", *models, "--max-length=200", "--dtype=float32", "--device=cpu"]


def shard(words: list[str], index: int, *more: str, count: int = 4, out: str = "shards", method: str = ALL) -> Ran:
    """Each with a store of its own, as on machines that share no disk but that of the output."""
    place = [f"--shards={count}", f"--shard-index={index}", f"--output={out}", f"--store=store-{index}"]
    few = ["--set=tshirt.draws=2"] if "tshirt" in method else []
    return ok("score", *words, f"--method={method}", *few, *place, "--json", *more)


@pytest.fixture
def words_of_ifd(words: list[str]) -> list[str]:
    return [word for word in words if "calibrated" not in word and "proxy" not in word]


def table(path: str) -> pa.Table:
    return pq.read_table(path).replace_schema_metadata()


def assert_same(merged: pa.Table, single: pa.Table) -> None:
    """The same columns, rows, reasons and nulls, and numbers within what batches change."""
    assert merged.column_names == single.column_names
    for name in single.column_names:
        a, b = merged[name], single[name]
        assert a.is_null().equals(b.is_null()), name
        if a.type == pa.float64():
            np.testing.assert_allclose(a.drop_null().to_numpy(), b.drop_null().to_numpy(), rtol=1e-5, atol=1e-6)
        else:
            assert a.equals(b), name


def test_four_shards_merged_are_one_run(words: list[str]) -> None:
    method = [f"--method={ALL}", "--set=tshirt.draws=2"]
    told = [shard(words, index).json for index in (2, 0, 3, 1)]
    assert [(t["shard"], t["done"], t["waits_for"]) for t in told] == [(i, 1, []) for i in (2, 0, 3, 1)]
    assert sum(t["rows"] for t in told) == 23 and all(4 <= t["rows"] <= 8 for t in told)
    said = ok("merge", "shards", "--output=merged.parquet", "--store=merged", "--json").json
    assert said["rows"] == 23 and said["methods"]["ifd"]["excluded"]["empty_response"] == 1
    ok("score", *words, *method, "--output=single.parquet", "--store=single")
    assert_same(table("merged.parquet"), table("single.parquet"))

    # From the same columns a single run makes the same bytes, and has nothing left to compute.
    bill = ok("plan", *words, *method, "--store=merged", "--json").json
    assert bill["total"]["todo_rows"] == 0
    ok("score", *words, *method, "--output=again.parquet", "--store=merged")
    assert Path("again.parquet").read_bytes() == Path("merged.parquet").read_bytes()

    for name in ("merged", "single"):
        ok("select", "--data=my.jsonl", f"--scores={name}.parquet", "--method=instructdiff", "--budget=5",
           f"--output={name}.jsonl")  # fmt: skip
    assert Path("merged.jsonl").read_bytes() == Path("single.jsonl").read_bytes()


def test_shards_split_the_whole_pool_into_folds(words_of_ifd: list[str]) -> None:
    method = ["--set=learnability.folds.epochs=1"]
    ok("score", *words_of_ifd, "--method=learnability", *method, "--output=single.parquet", "--store=single")
    models = json.loads(pq.read_schema("single.parquet").metadata[b"instdiff"])["models"]
    bound = [f"--model={role}={facts['where']}" for role, facts in models.items() if role != "base"]
    assert len(bound) == 2
    for index in range(3):
        shard([*words_of_ifd, *bound], index, *method, count=3, method="learnability")
    ok("merge", "shards", "--output=merged.parquet", "--store=merged")
    assert_same(table("merged.parquet"), table("single.parquet"))


def test_more_shards_than_rows(words_of_ifd: list[str]) -> None:
    words = [*words_of_ifd, "--limit=3"]
    for index in range(5):
        shard(words, index, count=5, method="ifd,longest")
    ok("merge", "shards", "--output=merged.parquet", "--store=merged")
    ok("score", *words, "--method=ifd,longest", "--output=single.parquet", "--store=single")
    assert_same(table("merged.parquet"), table("single.parquet"))


def test_rows_shown_to_each_other_take_a_second_wave(words_of_ifd: list[str]) -> None:
    """The nearest rows are those of the whole pool, and no shard computes another's vectors."""
    words, given = words_of_ifd, ("--set=miwv.retrieval=embedding", "--set=nuggets.anchors=3")
    method = "miwv,nuggets"

    def wave(index: int) -> dict[str, object]:
        return dict(shard(words, index, *given, count=3, method=method).json)

    first = [wave(index) for index in range(2)]
    assert [(t["waves"], t["done"], t["waits_for"]) for t in first] == [(2, 1, [1, 2]), (2, 1, [2])]
    refused = cli("merge", "shards").error
    assert refused.startswith("'shards' is not complete: it lacks shards 2 of 3 in wave 1 of 2; 0-2 of 3 in wave 2")
    assert [wave(index)["done"] for index in (2, 0, 1)] == [2, 2, 2]
    ok("merge", "shards", "--output=merged.parquet", "--store=merged")
    single = [f"--method={method}", *given]
    ok("score", *words, *single, "--output=single.parquet", "--store=single")
    assert_same(table("merged.parquet"), table("single.parquet"))
    neighbours = table("merged.parquet")["miwv.neighbour"].drop_null().to_numpy().astype(int)
    rows = np.flatnonzero(~np.asarray(table("merged.parquet")["miwv.neighbour"].is_null()))
    assert (neighbours % 3 != rows % 3).any()


def test_a_race_is_among_the_rows_of_all_shards(words: list[str]) -> None:
    given = ("--set=tshirt.race=2", "--set=tshirt.draws=5", "--set=tshirt.race_after=2")
    done = [shard(words, index, *given, count=2, method="tshirt").json["done"] for index in (0, 1, 0)]
    assert done == [1, 2, 2]
    ok("merge", "shards", "--output=merged.parquet", "--store=merged")
    ok("score", *words, "--method=tshirt", *given, "--output=single.parquet", "--store=single")
    assert_same(table("merged.parquet"), table("single.parquet"))
    on = table("merged.parquet")["tshirt.contends"].to_pylist()
    assert 2 <= sum(on) < len(on)
    ok("select", "--data=my.jsonl", "--scores=merged.parquet", "--method=tshirt", "--budget=2", "--output=best.jsonl",
       "--store=merged")  # fmt: skip
    record = json.loads(Path("best.selection.json").read_text(encoding="utf-8"))
    assert (
        record["params"]["race"] == 2 and "that 2 draws put outside 2 have no more of the 5" in record["approximation"]
    )
    assert all(on[row] for row in record["rows"])


def test_methods_without_a_model(here: Path) -> None:
    for index in range(2):
        shard(["--data=my.jsonl"], index, count=2, method="random,zip")
    ok("merge", "shards")
    ok("score", "--data=my.jsonl", "--method=random,zip", "--output=single.parquet")
    assert table("shards/scores.parquet").equals(table("single.parquet"))


def test_what_lacks_is_named(words_of_ifd: list[str]) -> None:
    assert "holds no shard files" in cli("merge", "shards").error
    for index in (1, 4):
        shard(words_of_ifd, index, count=6, method="ifd")
    assert cli("merge", "shards").error == (
        "'shards' is not complete: it lacks shards 0, 2-3, 5 of 6; run these and merge again"
    )
    assert not Path("shards/scores.parquet").exists()


def test_what_does_not_belong_is_named(words_of_ifd: list[str], lab: Lab) -> None:
    shard(words_of_ifd, 0, count=2, method="ifd")
    other = str(lab.models["other"])
    changed = {
        "settings.max_length": (["--max-length=100"], "ifd"),
        "methods.ifd.params.ratio": (["--set=ifd.ratio=loss"], "ifd"),
        "methods.entropy.spec": ([], "ifd,entropy"),
        "models.base.fingerprint": ([f"--model=base={other}"], "ifd"),
        "models.base.template_fingerprint": (["--template=plain"], "ifd"),
        "data.size": (["--limit=22"], "ifd"),
        "shards": ([], "ifd"),
    }
    for key, (more, method) in changed.items():
        words = [word for word in words_of_ifd if not (more and word.startswith("--model") and "--model" in more[0])]
        count = 3 if key == "shards" else 2
        place = [f"--shards={count}", "--shard-index=1", "--output=shards", "--store=store-1"]
        refused = cli("score", *words, f"--method={method}", *more, *place).error
        assert "does not belong to shard 1" in refused and key in refused, refused

    # Shards that were written apart and laid together.
    shard(words_of_ifd, 1, "--max-length=100", count=2, out="elsewhere", method="ifd")
    shutil.copy(shard_files(Path("elsewhere"))[1, 2, 1], "shards")
    refused = cli("merge", "shards").error
    assert "its settings.max_length is 100, not 200" in refused
    shard(words_of_ifd, 0, count=3, out="more", method="ifd")
    shutil.copy(shard_files(Path("more"))[0, 3, 1], "shards")
    assert (
        "'shards' holds files of --shards 2 and --shards 3, which do not belong together"
        in cli("merge", "shards").error
    )


def test_merge_wants_the_data_that_was_scored(words_of_ifd: list[str]) -> None:
    for index in range(2):
        shard(words_of_ifd, index, count=2, method="ifd")
    Path("my.jsonl").rename("moved.jsonl")
    assert "my.jsonl" in cli("merge", "shards").error
    ok("merge", "shards", "--data=moved.jsonl")
    with open("moved.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"instruction": "More.", "input": "", "output": "Yes."}) + "\n")
    assert "data.size" in cli("merge", "shards", "--data=moved.jsonl").error


def test_merge_checks_that_shards_make_the_file(words_of_ifd: list[str]) -> None:
    """Each shard says what its own rows are: a change that keeps the file's size is told, and where."""
    for index in range(3):
        shard(words_of_ifd, index, count=3, method="ifd")
    facts = [record(path) for _, path in sorted(shard_files(Path("shards")).items())]
    pool = load("my.jsonl")
    assert [fact["about"]["data"] for fact in facts] == [{"size": Path("my.jsonl").stat().st_size}] * 3
    parts = load_shards("my.jsonl", 3)
    assert [fact["rows"] for fact in facts] == [{"count": len(part), "fingerprint": part.fingerprint} for part in parts]
    assert [i for part in parts for i in part.ids] == list(pool.ids)

    text = Path("my.jsonl").read_text(encoding="utf-8")
    *lines, last = text.splitlines()
    Path("my.jsonl").write_text("\n".join([last, *lines]) + "\n", encoding="utf-8")
    refused = cli("merge", "shards").error
    assert refused.startswith(f"'{shard_path(Path('shards'), 0, 3, 1)}' is of other rows than 0 to {len(parts[0]) - 1}")
    assert "of my.jsonl, which are its own; delete it and run that shard again" in refused
    Path("my.jsonl").write_text(text, encoding="utf-8")
    ok("merge", "shards")


def test_a_shard_reads_its_own_rows_alone(words_of_ifd: list[str]) -> None:
    """Bad lines in another shard's part are not even looked at; ``merge`` writes them down."""
    text = Path("my.jsonl").read_text(encoding="utf-8")
    Path("my.jsonl").write_text(text + "broken\n" * 3, encoding="utf-8")
    told = [shard(words_of_ifd, index, count=2, method="ifd") for index in range(2)]
    assert "rejected" not in told[0].err and "3 rejected" in told[1].err
    assert not list(Path().rglob("*rejected.jsonl"))
    said = ok("merge", "shards", "--json")
    assert said.json["rows"] == 23 and len(Path("shards/scores.rejected.jsonl").read_text().splitlines()) == 3


def test_a_shard_that_is_there_is_not_run_again(words_of_ifd: list[str]) -> None:
    shard(words_of_ifd, 0, count=2, method="ifd")
    (path,) = shard_files(Path("shards")).values()
    before = path.stat().st_mtime_ns
    shutil.rmtree("store-0")
    shard(words_of_ifd, 0, count=2, method="ifd")
    assert path.stat().st_mtime_ns == before
    assert not list(Path("store-0").glob("columns/*"))
    path.write_bytes(path.read_bytes()[:200])
    assert f"shard file '{path}' cannot be read" in cli("merge", "shards").error


def test_a_kill_while_a_file_is_written_leaves_none(words_of_ifd: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    real = Store.read

    def killed(self: Store, column: object, keys: Keys) -> object:
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "read", killed)
    place = ["--shards=2", "--shard-index=0", "--output=shards", "--store=store-0"]
    assert cli("score", *words_of_ifd, "--method=ifd", *place).code == 130
    assert shard_files(Path("shards")) == {} and list(Path("shards").iterdir()) == []
    monkeypatch.setattr(Store, "read", real)
    told = shard(words_of_ifd, 0, count=2, method="ifd")  # from the store: nothing is computed twice
    assert "tok/s" not in told.err and told.json["done"] == 1


def test_options_that_do_not_fit(words_of_ifd: list[str], here: Path) -> None:
    words = ["score", *words_of_ifd, "--method=ifd"]
    assert "give --shards N too" in cli(*words, "--shard-index=1", "--output=shards").error
    assert "the output is a folder" in cli(*words, "--shards=2", "--shard-index=1", "--output=a.parquet").error
    assert "give --strict to `instdiff merge`" in cli(*words, "--shards=1", "--output=s", "--strict").error
    assert "scores go to" in cli("merge", "shards", "--output=scores.txt").error
    assert "'shards': a number or auto (given: 'some')" in cli(*words, "--shards=some", "--output=s").error


def test_a_users_method_is_run_when_it_is_named(words_of_ifd: list[str], here: Path) -> None:
    Path("mine.py").write_text(
        "from dataclasses import dataclass\nfrom instdiff import IFD\n\n\n"
        "@dataclass(frozen=True)\nclass Mine(IFD):\n    name = 'mine'\n"
    )
    shard(words_of_ifd, 0, count=1, method="./mine.py:Mine")
    refused = cli("merge", "shards").error
    assert refused.endswith("a file that is not run unless you name it; give --method ./mine.py:Mine")
    ok("merge", "shards", "--method=./mine.py:Mine")
    assert "mine" in table("shards/scores.parquet").column_names


def test_ranges() -> None:
    assert ranges([0, 2, 3, 5]) == "0, 2-3, 5" and ranges([1, 2, 3]) == "1-3" and ranges([4]) == "4"


@pytest.mark.slow
@pytest.mark.shared_data
def test_on_real_rows(shared: Path, here: Path) -> None:
    data = shared / "data" / "alpaca" / "alpaca_union.json"
    words = [f"--data={data}", f"--model={shared / 'models' / 'base-5m'}", "--limit=200", "--dtype=float32"]
    for index in range(4):
        shard(words, index, method="ifd,entropy")
    ok("merge", "shards", "--output=merged.parquet", "--store=merged")
    ok("score", *words, "--method=ifd,entropy", "--output=single.parquet", "--store=single")
    assert_same(table("merged.parquet"), table("single.parquet"))
    for name in ("merged", "single"):
        ok("select", f"--data={data}", "--limit=200", f"--scores={name}.parquet", "--method=ifd", "--budget=10%",
           f"--output={name}.jsonl")  # fmt: skip
    assert Path("merged.jsonl").read_bytes() == Path("single.jsonl").read_bytes()
