"""Finished cells that are kept: taken where all else is gone, and only where they are made of the same."""

from __future__ import annotations

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

import instdiff
from cli.shell import write_jsonl
from compare.test_side_by_side import config
from helpers import make_llama, some_rows
from instdiff.config.compare import CompareConfig
from instdiff.core.files import read_json, write_record
from instdiff.core.progress import Quiet
from instdiff.errors import ConfigError
from instdiff.experiments import engine as module
from instdiff.experiments.compare import compare, open_comparison
from instdiff.experiments.cost import plan_run
from instdiff.experiments.run_folder import Cell
from instdiff.reporting import report
from instdiff.scoring.table import read_scores

Say = list[str]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("kept")
    rows = some_rows(40, seed=3)
    write_jsonl(home / "pool.jsonl", [{**row, "flaw": "copy" if at % 3 == 0 else None} for at, row in enumerate(rows)])
    write_jsonl(home / "held.jsonl", some_rows(6, seed=9))
    make_llama(home / "base", chat=None, num_hidden_layers=1)
    return home


def settings(home: Path, place: Path, **changes: Any) -> CompareConfig:
    method = {"ifd": {}, "oracle": {}, "learnt": {"method": "instructdiff"}}
    values = {"method": method, "records": str(home / "records"), "cells_at_once": 1, "seeds": [0], "by": "flaw"}
    return config(home, place / "run", **{**values, **changes})


@pytest.fixture(scope="module")
def whole(home: Path) -> dict[str, Any]:
    """What a comparison found, whose run folder and store are then gone."""
    place = home / "first"
    found = compare(settings(home, place), log=print)
    shutil.rmtree(place)
    return found


def never(*args: Any, **kwargs: Any) -> Any:
    raise AssertionError("made again")


def test_kept_cells_stand_for_run_folder_and_store(
    home: Path, whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("train", "make_subject", "run_suites"):
        monkeypatch.setattr(module, name, never)
    said: Say = []
    elsewhere = tmp_path / "moved"
    shutil.copytree(home / "base", elsewhere / "base")
    for name in ("pool.jsonl", "held.jsonl"):
        shutil.copy(home / name, elsewhere / name)
    told = settings(home, tmp_path, data=str(elsewhere / "pool.jsonl"), model=str(elsewhere / "base"))
    found = compare(told, log=said.append)
    for key in ("lines", "overlaps", "shares", "failed", "oracles"):
        assert found[key] == whole[key], key
    assert not [line for line in said if line.startswith("warning")]
    assert "plan" not in said and plan_run(told, log=said.append).stages == []
    assert Path(report(tmp_path / "run")).is_file()


def test_records_say_where_nothing_lay(home: Path, whole: dict[str, Any]) -> None:
    paths = sorted((home / "records").rglob("*.json.gz"))
    names = [path.relative_to(home / "records").as_posix() for path in paths]
    assert "base/any/any.json.gz" in names and "ifd/25pct_tokens/seed_0.json.gz" in names and len(names) == 7
    for path in paths:
        text = gzip.decompress(path.read_bytes()).decode()
        assert str(home) not in text and len(path.read_bytes()) < 8192
        kept = json.loads(text)
        assert set(kept["files"]) >= {"cell.json", "heldout.json"}
        assert len(kept["files"]["heldout.json"]["items"]["heldout"]["score"]) == 6


@pytest.mark.parametrize(
    ("changes", "cells", "why"),
    [
        ({"train.learning_rate": 0.02}, "random ifd oracle learnt", "train.learning_rate=0.01, now it is 0.02"),
        ({"max_length": 150}, "base random ifd oracle learnt", "config.max_length=200, now it is 150"),
        ({"method": {"ifd": {"ratio": "loss"}, "oracle": {}}}, "ifd", "method.ratio='perplexity', now it is 'loss'"),
        ({"warmup": {"sample_size": 9}}, "learnt", "it was made with warm-up="),
        ({"label": "swapped"}, "oracle", "columns.flaw="),
        ({"held": 5}, "base random ifd oracle learnt", "items.heldout="),
        ({"rows": 39}, "random ifd oracle learnt", "data="),
    ],
)
def test_a_record_of_something_else_is_not_taken(
    home: Path, whole: dict[str, Any], tmp_path: Path, changes: dict[str, Any], cells: str, why: str
) -> None:
    shutil.copytree(home / "records", tmp_path / "records")
    given = {key: value for key, value in changes.items() if key not in ("label", "held", "rows")}
    if "train.learning_rate" in given:
        given = {"train": {**settings(home, tmp_path).train.model_dump(), "learning_rate": 0.02}}
    pool, held = some_rows(40, seed=3)[: changes.get("rows", 40)], some_rows(6, seed=9)[: changes.get("held", 6)]
    flaw = changes.get("label", "copy")
    write_jsonl(tmp_path / "pool.jsonl", [{**r, "flaw": flaw if at % 3 == 0 else None} for at, r in enumerate(pool)])
    write_jsonl(tmp_path / "held.jsonl", held)
    given |= {"records": str(tmp_path / "records"), "data": str(tmp_path / "pool.jsonl")}
    given["eval"] = {"suite": ["heldout"], "data": str(tmp_path / "held.jsonl"), "device": "cpu"}
    said: Say = []
    run = open_comparison(settings(home, tmp_path, **given), said.append, Quiet())
    for cell in run.cells():
        run.exchange(cell)
    lines = [line for line in said if "is not the record of this cell" in line]
    assert {line.rpartition("; ")[2].split()[0] for line in lines} == set(cells.split())
    assert lines and all(why in line for line in lines), lines
    assert all(run.is_done(cell) == (cell.line not in cells.split()) for cell in run.cells())


def test_cells_depend_on_the_columns_that_methods_go_by(home: Path, tmp_path: Path) -> None:
    methods = {"column": {"path": "facts.stars"}, "instag": {"column": "tags"}}

    def made_of(name: str, stars: int, tag: str) -> dict[str, Any]:
        rows = [{**row, "facts": {"stars": stars * at}, "tags": [tag]} for at, row in enumerate(some_rows(40, seed=3))]
        write_jsonl(tmp_path / f"{name}.jsonl", rows)
        given = {"data": str(tmp_path / f"{name}.jsonl"), "method": methods, "by": None}
        run = open_comparison(settings(home, tmp_path / name, **given), print, Quiet())
        return {cell.line: run.made_of(cell) for cell in run.cells()}

    one, stars, tag = made_of("one", 1, "x"), made_of("stars", 2, "x"), made_of("tag", 1, "y")
    assert set(one) == {"base", "random", "column", "instag"}
    assert [line for line in one if one[line] != stars[line]] == ["column"]
    assert [line for line in one if one[line] != tag[line]] == ["instag"]


MINE = """
from instdiff import Length, Method, Scores, Signal


class Mine(Method):
    name = "mine"

    def signals(self):
        return {"n": Signal(Length())}

    def score(self, s):
        return Scores(s.n)
"""


def write_all(folder: Path, changed: str = "") -> None:
    """Rows, and files that methods read, one of them ``changed``."""
    rows = [{**row, "source": "ab"[at % 2], "problem": at % 5} for at, row in enumerate(some_rows(40, seed=3))]
    report = {"data": {"fingerprint": instdiff.load(rows).fingerprint, "origin": "pool", "rows": 40}}
    texts = {
        "leaks.json": json.dumps({**report, "rows": [], "copies": []}),
        "mine.py": MINE,
        "ask.yaml": "prompts: ['How good is {{ response }}?']",
        "plain.txt": "{instruction} -> ",
        "stars.jsonl": "".join(json.dumps({"id": at, "stars": at}) + "\n" for at in range(40)),
    }
    folder.mkdir(exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text + "\n" * (name == changed))
    write_jsonl(folder / "pool.jsonl", [{**row, "problem": int(row["problem"]) + (changed == "pool")} for row in rows])


def test_cells_depend_on_the_files_that_methods_read(home: Path, tmp_path: Path) -> None:
    def made_of(folder: Path, place: str) -> dict[str, dict[str, Any]]:
        leaks = {"decontaminate": {"report": str(folder / "leaks.json")}}
        methods: dict[str, Any] = {
            "column": {"path": "stars", "file": str(folder / "stars.jsonl"), "by": "line"},
            "clean": {"method": "then", "first": leaks, "keep": "100%", "second": "longest"},
            "mine": {"method": f"{folder / 'mine.py'}:Mine"},
            "asked": {"method": "choice", "model": "base", "prompt": str(folder / "ask.yaml")},
            "lark": {"group": "problem"},
            "bound": {"method": "longest", "per": "problem 1"},
            "equal": {"method": "longest", "group_by": "source"},
        }
        given: dict[str, Any] = {"data": str(folder / "pool.jsonl"), "method": methods, "by": None}
        given |= {"template": str(folder / "plain.txt"), "records": str(tmp_path / "records")}
        run = open_comparison(settings(home, tmp_path / place, **given), print, Quiet())
        return {cell.line: json.loads(json.dumps(run.made_of(cell))) for cell in run.cells()}

    write_all(tmp_path / "a")
    write_all(tmp_path / "b")
    first = made_of(tmp_path / "a", "one")
    assert made_of(tmp_path / "b", "two") == first, "where files lie does not matter"
    changes = {"stars.jsonl": ["column"], "leaks.json": ["clean"], "mine.py": ["mine"], "ask.yaml": ["asked"]}
    for change, lines in {**changes, "pool": ["lark", "bound"], "plain.txt": list(first)}.items():
        write_all(tmp_path / "b", change)
        other = made_of(tmp_path / "b", change)
        assert [line for line in first if first[line] != other[line]] == lines, change


def test_a_damaged_record_is_made_again_and_kept(home: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(home / "records", tmp_path / "records")
    path = tmp_path / "records" / "ifd" / "25pct_tokens" / "seed_0.json.gz"
    raw = path.read_bytes()
    path.write_bytes(raw[:-9] + bytes([raw[-9] ^ 1]) + raw[-8:])
    said: Say = []
    found = compare(settings(home, tmp_path, records=str(tmp_path / "records")), log=said.append)
    (line,) = [line for line in said if "is not the record of this cell" in line]
    assert "it cannot be read" in line and line.endswith("ifd 25% tokens seed 0 is made again")
    assert [one["value"] for one in found["lines"]] == [one["value"] for one in whole["lines"]]
    again = json.loads(gzip.decompress(path.read_bytes()))
    assert again["made_of"] == json.loads(gzip.decompress(raw))["made_of"]


def test_cells_that_were_made_without_records_are_kept_later(home: Path, tmp_path: Path) -> None:
    told = settings(home, tmp_path, records=None, method={}, by=None)
    compare(told, log=print)
    kept = tmp_path / "kept"
    compare(told.model_copy(update={"records": str(kept)}), log=print)
    cell = json.loads(gzip.decompress((kept / "random" / "25pct_tokens" / "seed_0.json.gz").read_bytes()))
    place = tmp_path / "run" / "cells" / "random" / "25pct_tokens" / "seed_0"
    assert cell["files"]["cell.json"] == read_json(place / "cell.json")


def test_headroom_runs_random_rows_and_the_oracle_first(home: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    run = open_comparison(settings(home, tmp_path, headroom=True), print, Quiet())
    assert {cell.line for cell in run.cells()} == {"base", "random", "oracle"}
    assert all(run.is_done(cell) for cell in run.cells())


def test_a_name_stands_for_one_line_in_a_run_folder(home: Path, tmp_path: Path) -> None:
    def opened(records: None = None, **lines: Any) -> None:
        found = settings(home, tmp_path, method={"oracle": {}, **lines}, records=records)
        open_comparison(found, print, Quiet())

    opened(ifd={"ratio": "loss"})
    first = {"ratio": "perplexity"}
    opened(ifd=first)  # nothing was made yet
    for line in ("ifd", "mine"):
        write_record(tmp_path / "run" / "cells" / line / "10pct" / "seed_0" / "round_1" / "selection.json", {})
    opened(ifd={**first, "seeds": [0, 1], "budget": "20%"}, mine={"method": "ifd"})  # more cells, another line
    said = r"line 'ifd' of '.*run' was made with method\.ratio='perplexity', now it is 'loss'; give the line another"
    with pytest.raises(ConfigError, match=said):
        opened(ifd={"ratio": "loss"})
    with pytest.raises(ConfigError, match=r"line 'mine' .* method\.name='ifd', now it is 'longest'"):
        opened(mine={"method": "longest"})
    with pytest.raises(ConfigError, match=r"line 'mine' .* line\.rounds=1, now it is 2"):
        opened(mine={"method": "ifd", "rounds": 2})
    opened(ifd=first)
    with pytest.raises(ConfigError, match=r"the lines 'a\+' and 'a/' have one folder, 'a_'; rename one of them"):
        opened(**{"a+": {"method": "ifd"}, "a/": {"method": "longest"}})


def test_what_lines_read_may_not_change_in_a_run_folder(home: Path, tmp_path: Path) -> None:
    held, code = tmp_path / "held.jsonl", tmp_path / "mine.py"
    given = {
        "eval": {"suite": ["heldout"], "data": str(held), "device": "cpu"},
        "method": {"m": {"method": f"{code}:Mine"}},
    }

    def opened(rows: int = 6, length: str = "Length()") -> None:
        write_jsonl(held, some_rows(rows, seed=9))
        code.write_text(MINE.replace("Length()", length))
        open_comparison(settings(home, tmp_path, by=None, records=None, **given), print, Quiet())

    opened()
    for line in ("base/any/any", "m/10pct/seed_0"):
        write_record(tmp_path / "run" / "cells" / line / "cell.json", {})
    opened()
    with pytest.raises(ConfigError, match=r"line 'base' of .* was made with items\.heldout='"):
        opened(rows=5)
    with pytest.raises(ConfigError, match=r"line 'm' .* made with method\.name='mine\.py .*:Mine', now it is 'mine"):
        opened(length="Length(unit='chars')")
    opened()


def test_what_a_record_is_made_of_has_seeds_task_files_and_steps(home: Path, tmp_path: Path) -> None:
    def made_of(cell: Cell, **given: Any) -> dict[str, Any]:
        return open_comparison(settings(home, tmp_path / "x", **given), print, Quiet(), claim=False).made_of(cell)

    random = Cell("random", "10%", 0)
    plain = made_of(random)
    assert made_of(random, train={"seed": 7})["train"]["seed"] == 7 and "seed" not in plain["train"]
    equal = {"steps": "equal", "budgets": ["10%", "20%"]}
    assert made_of(random, **equal)["steps_by"] == ("10%", 0) and "steps_by" not in plain
    own = settings(home, tmp_path, **equal, method={"own": {"method": "ifd", "budget": 3}, "oracle": {}})
    run = open_comparison(own, print, Quiet(), claim=False)
    assert run.line_made_of("own")["steps_by"] == ("10%", 0) and run.line_made_of("oracle")["steps_by"] == (0,)
    task = tmp_path / "task.jsonl"
    suite = {"suite": ["math"], "task": ["gsm8k"], "task_data": {"gsm8k": str(task)}, "device": "cpu"}
    write_jsonl(task, [{"question": "One and one?", "answer": "#### 2"}])
    one = made_of(random, eval=suite)
    write_jsonl(task, [{"question": "One and two?", "answer": "#### 3"}])
    two = made_of(random, eval=suite)
    assert one["items"]["math"] != two["items"]["math"] and one["eval"]["task_data"] != two["eval"]["task_data"]
    assert str(tmp_path) not in json.dumps(one["eval"])


def test_lines_that_come_later_join_the_scores(home: Path, tmp_path: Path) -> None:
    given = {"records": None, "by": None, "keep_models": False}
    compare(settings(home, tmp_path, method={"ifd": {}}, **given))
    compare(settings(home, tmp_path, method={"ifd": {}, "perplexity": {}}, **given))
    paths = sorted((tmp_path / "run" / "scores").glob("*_seed_0.parquet"))
    assert any({"ifd", "perplexity"} <= {*read_scores(path)} for path in paths)
    for path in paths:
        path.write_bytes(path.read_bytes()[:-9])
    found = compare(settings(home, tmp_path, method={"ifd": {}, "perplexity": {}, "entropy": {}}, **given))
    assert not found["failed"] and "entropy" in {line["name"] for line in found["lines"]}
