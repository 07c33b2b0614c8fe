"""What a user does: score, select, sample, plan, with the files that the interface promises."""

from __future__ import annotations

import csv
import json
import random
import re
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from .shell import HEAD, ROWS, cli, files, ok, read_jsonl, score, write_jsonl

FIRST = ["row", "id", "n_tokens", "truncated"]
IFD = ["ifd", "ifd.why", "ifd.ifd", "ifd.nll_given", "ifd.nll_alone"]
LENGTHS = [len(row["output"]) for row in ROWS]


def table(path: str = "scores.parquet") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def ranked(rows: list[dict[str, Any]], name: str) -> list[int]:
    """Eligible rows: best score first, then id, then row."""
    some = [row for row in rows if row[name] is not None]
    return [row["row"] for row in sorted(some, key=lambda row: (-row[name], row["id"], row["row"]))]


# ── score ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_score_gives_every_row_its_columns_in_order(model: str) -> None:
    ran = score(model, "ifd,longest")
    columns = [*FIRST, *IFD, "longest", "longest.why", "longest.length"]
    assert pq.read_table("scores.parquet").column_names == columns
    rows = table()
    assert [row["row"] for row in rows] == list(range(12))
    assert [row["n_tokens"] for row in rows] == LENGTHS
    assert [row["longest"] for row in rows] == LENGTHS
    assert not any(row["truncated"] for row in rows)
    assert len({row["id"] for row in rows}) == 11
    assert rows[3] == {**rows[11], "row": 3}
    for row in rows:
        assert len(row["id"]) == 32
        assert (row["ifd"], row["ifd.why"]) == ((row["ifd.ifd"], None) if row["ifd.ifd"] < 1 else (None, "filtered"))
        assert row["ifd.nll_given"] > 0 and row["ifd.nll_alone"] > 0
    assert files() == {"my.jsonl", "scores.parquet"}
    eligible = sum(row["ifd"] is not None for row in rows)
    assert 0 < eligible < 12
    assert ran.out.splitlines() == [
        "method   eligible  excluded",
        f"-------  --------  {'-' * len(f'{12 - eligible} filtered')}",
        f"ifd      {eligible:>8}  {12 - eligible} filtered",
        "longest        12  -",
        "",
        "Scored 12 rows (0 truncated) -> scores.parquet",
    ]


def test_the_file_says_what_made_it(model: str, tmp_path: Path) -> None:
    score(model, "ifd", "scores.parquet", "--set", "ifd.ratio=loss", "--dtype", "float32")
    meta = json.loads(pq.read_table("scores.parquet").schema.metadata[b"instdiff"])
    assert meta["data"]["origin"] == "my.jsonl" and meta["data"]["rows"] == 12
    assert meta["methods"]["ifd"]["spec"] == "ifd"
    assert meta["methods"]["ifd"]["params"]["ratio"] == "loss"
    assert meta["models"]["base"]["where"] == model
    assert meta["models"]["base"]["template"] == "alpaca"
    how = {"targets": "all", "reasoning": "learn", "system": "keep", "template_date": "2024-07-26"}
    assert meta["settings"] == {"dtype": "float32", "max_length": 2048, **how}
    assert meta["store"] == str(tmp_path / "store")


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_text_scores_have_the_same_columns_and_select_alike(model: str, suffix: str) -> None:
    score(model, "ifd,longest")
    score(model, "ifd,longest", f"scores.{suffix}")
    if suffix == "jsonl":
        found = read_jsonl("scores.jsonl")
        assert found == table()
        assert list(found[0]) == list(table()[0])
    else:
        with open("scores.csv", newline="", encoding="utf-8") as file:
            lines = list(csv.DictReader(file))
        assert list(lines[0]) == list(table()[0])
        same = [{k: "" if v is None else str(v) for k, v in row.items()} for row in table()]
        assert lines == same
    assert json.loads(Path(f"scores.{suffix}.meta.json").read_text())["methods"].keys() == {"ifd", "longest"}
    picks = []
    for kind in ("parquet", suffix):
        ok("select", "--data", "my.jsonl", "--scores", f"scores.{kind}", "--method", "ifd", "--budget", "100% eligible",
           "--output", f"{kind}.out.jsonl")  # fmt: skip
        picks.append(json.loads(Path(f"{kind}.out.selection.json").read_text())["rows"])
    assert picks[0] == picks[1] == ranked(table(), "ifd")


@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_text_scores_without_token_counts_can_be_read_again(suffix: str) -> None:
    ok("score", "--data", "my.jsonl", "--method", "longest", "--output", f"scores.{suffix}")
    ok("select", "--data", "my.jsonl", "--scores", f"scores.{suffix}", "--budget", "3", "--output", "out.jsonl")


def test_the_cut_is_marked(model: str) -> None:
    prompt = len(HEAD + ROWS[9]["instruction"] + "\n\n### Response:")
    score(model, "perplexity", "scores.parquet", "--max-length", prompt + 20)
    rows = table()
    assert (rows[9]["n_tokens"], rows[9]["truncated"]) == (20, True)
    assert not rows[0]["truncated"]


def test_the_second_run_computes_nothing_and_new_rows_only_themselves(
    model: str, computed: list[tuple[int, int]]
) -> None:
    score(model)
    assert [rows for rows, _ in computed] == [11, 11]  # the copy of a row is not scored again
    first = table()
    computed.clear()
    score(model)
    assert computed == []
    assert table() == first
    new = [{"instruction": "Say yes.", "output": "yes"}, {"instruction": "Say no.", "output": "no"}]
    write_jsonl("my.jsonl", [new[0], *reversed(ROWS), new[1]])
    again = score(model)
    assert [rows for rows, _ in computed] == [2, 2]
    assert [{**row, "row": 0} for row in table()[1:-1]] == [{**row, "row": 0} for row in reversed(first)]
    assert "86% cached" in again.err
    computed.clear()
    score(model, "entropy")
    assert [rows for rows, _ in computed] == [13]  # another measure of the same rows


def test_plan_says_what_will_be_computed_and_spends_nothing(model: str, computed: list[tuple[int, int]]) -> None:
    def plan() -> dict[str, Any]:
        return ok("plan", "--data", "my.jsonl", "--model", model, "--method", "ifd,entropy,longest", "--json").json

    before = plan()
    assert computed == []
    assert files() == {"my.jsonl"}
    passes = before["passes"]
    assert [(p["role"], p["view"], p["measures"]) for p in passes] == [
        ("base", "prompted", ["entropy", "nll"]),
        ("base", "response only", ["nll"]),
    ]
    assert [(p["rows"], p["cached_rows"], p["todo_rows"]) for p in passes] == [(12, 0, 11), (12, 0, 11)]
    assert passes[1]["tokens"] == sum(LENGTHS) + 12  # a start token each
    assert before["alone"]["passes"] == 3 and before["total"]["passes"] == 2
    assert before["alone"]["tokens"] == 2 * passes[0]["tokens"] + passes[1]["tokens"]
    assert before["alone"]["methods"]["longest"] == {"passes": 0, "tokens": 0}
    assert before["total"]["model_loads"] == 1

    score(model, "ifd,entropy,longest")
    assert computed == [(p["todo_rows"], p["todo_tokens"]) for p in passes]
    after = plan()
    assert [p["cached_rows"] for p in after["passes"]] == [12, 12]
    total = after["total"]
    assert (total["todo_passes"], total["todo_rows"], total["todo_tokens"], total["model_loads"]) == (0, 0, 0, 0)
    assert total["seconds"] == 0 and total["flops"] == 0


def test_plan_for_people(model: str) -> None:
    lines = ok("plan", "--data", "my.jsonl", "--model", model, "--method", "ifd").out.splitlines()
    assert lines[0].split() == [
        "wave",
        "role",
        "view",
        "measures",
        "rows",
        "tokens",
        "cached",
        "to",
        "do",
        "tokens",
        "to",
        "do",
        "GFLOP",
    ]
    assert lines[2].split()[:5] == ["0", "base", "prompted", "nll", "12"]
    assert lines[-1].startswith("To compute: 22 rows, ") and re.search(r", after [\d.]+ s to start$", lines[-1])
    tokens = sum(int(line.split("nll")[1].split()[1].replace(",", "")) for line in lines[2:4])
    assert lines[-2] == f"2 passes over {tokens:,} tokens"  # nothing is saved
    assert "\n1 pass over" in ok("plan", "--data", "my.jsonl", "--model", model, "--method", "perplexity").out
    nothing = ok("plan", "--data", "my.jsonl", "--method", "random").out
    assert nothing.startswith("no model pass is needed\n")


def test_equal_passes_are_one_line_of_the_plan(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("instdiff.scoring.cost.load_seconds", lambda source: 1000.0)
    asked = ("plan", "--data", "my.jsonl", "--model", model, "--method", "tshirt", "--set", "tshirt.model=base")
    _, _, *lines = ok(*asked).out.partition("\n\n")[0].splitlines()
    views = [line.split("nll")[0].split(maxsplit=2)[2].strip() for line in lines]
    assert views == [
        "noisy 0 to 29 prompted (30 passes)", "noisy 0 to 29 response only (30 passes)", "prompted", "response only",
    ]  # fmt: skip
    bill = ok(*asked, "--json").json
    assert len(bill["passes"]) == 62 and 1000 < bill["total"]["seconds"] < 2000  # loaded once
    for view, line in zip(("noisy 0 prompted", "noisy 0 response only"), lines, strict=False):
        (one,) = [each for each in bill["passes"] if each["view"] == view]
        told = line.partition("nll")[2].replace(",", "").split()
        assert told[:5] == [str(30 * one[key]) for key in COUNTS], line


COUNTS = ("rows", "tokens", "cached_rows", "todo_rows", "todo_tokens")


def test_standard_input(model: str) -> None:
    text = Path("my.jsonl").read_text()
    ran = ok("score", "--data", "-", "--model", model, "--method", "ifd", "--output", "scores.parquet", stdin=text)
    assert "stdin: 12 rows, format alpaca (instruction, input, output)" in ran.err
    ok("select", "--data", "-", "--scores", "scores.parquet", "--budget", "2", "--output", "out.jsonl", stdin=text)
    assert read_jsonl("out.jsonl") == [ROWS[i] for i in ranked(table(), "ifd")[:2]]


# ── select ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def select(*args: object) -> list[dict[str, Any]]:
    ok("select", "--data", "my.jsonl", "--scores", "scores.parquet", "--output", "selected.jsonl", *args)
    return read_jsonl("selected.jsonl")


def test_the_selection_is_the_inputs_own_rows_in_rank_order(model: str) -> None:
    score(model, "perplexity,longest")
    order = ranked(table(), "perplexity")
    assert len(order) == 12
    rows = select("--method", "perplexity", "--budget", "50%")
    assert rows == [ROWS[i] for i in order[:6]]
    source = Path("my.jsonl").read_text().splitlines()
    assert Path("selected.jsonl").read_text().splitlines() == [source[i] for i in order[:6]]
    assert files() == {"my.jsonl", "scores.parquet", "selected.jsonl", "selected.selection.json"}

    assert select("--method", "perplexity", "--budget", "6", "--order", "input") == [ROWS[i] for i in sorted(order[:6])]

    by_row = {row["row"]: row for row in table()}
    scored = select("--method", "perplexity", "--budget", "3", "--with-scores")
    wanted = [
        {**ROWS[i], "perplexity": by_row[i]["perplexity"], "perplexity.nll": by_row[i]["perplexity.nll"]}
        for i in order[:3]
    ]
    assert scored == wanted
    assert [list(row) for row in scored] == [list(row) for row in wanted]


@pytest.mark.parametrize(
    ("budget", "said", "count"),
    [
        ("4", "4", 4),
        ("4 rows", "4", 4),
        ("34%", "34%", 4),  # 4.08, rounded down
        ("25% eligible", "25% eligible", 3),
        ("120 tokens", "120 tokens", None),
        ("10% tokens", "10% tokens", None),
    ],
)
def test_budgets(budget: str, said: str, count: int | None, model: str) -> None:
    score(model, "longest")
    order = ranked(table(), "longest")
    if count is None:
        target = 120 if budget.startswith("120") else int(sum(LENGTHS) * 0.1)
        spent, count = 0, 0
        while spent < target:  # the row that crosses the budget is in
            spent, count = spent + LENGTHS[order[count]], count + 1
    select("--method", "longest", "--budget", budget)
    record = json.loads(Path("selected.selection.json").read_text())
    assert record["budget"] == said
    assert record["rows"] == order[:count]
    assert record["counts"]["selected_tokens"] == sum(LENGTHS[i] for i in order[:count])


def test_the_record(model: str) -> None:
    from instdiff import version
    from instdiff.core.files import read_json

    score(model)
    rows = table()
    order = ranked(rows, "ifd")
    ran = ok("select", "--data", "my.jsonl", "--scores", "scores.parquet", "--method", "ifd", "--budget", "2",
             "--output", "out/selected.jsonl", "--json")  # fmt: skip
    record = read_json("out/selected.selection.json")
    assert ran.json == {**record, "output": "out/selected.jsonl"}
    assert record["instdiff"] == version.__version__
    assert record["method"] == "ifd"
    assert record["params"] == {
        "ratio": "perplexity",
        "first_token": "aligned",
        "min_response_tokens": None,
        "model": "base",
        "compat": "default",
    }
    assert record["budget"] == "2"
    assert record["counts"] == {
        "pool_rows": 12,
        "scorable_rows": 12,
        "eligible_rows": len(order),
        "asked_rows": 2,
        "selected_rows": 2,
        "scorable_tokens": sum(LENGTHS),
        "selected_tokens": sum(LENGTHS[i] for i in order[:2]),
    }
    assert record["excluded"] == {"filtered": 12 - len(order)}
    assert record["rows"] == order[:2]
    assert record["ids"] == [rows[i]["id"] for i in order[:2]]
    assert record["data"]["origin"] == "my.jsonl" and len(record["data"]["fingerprint"]) == 32
    base = record["models"]["base"]
    assert base["where"] == model and len(base["fingerprint"]) == 32 and len(base["tokenizer"]) == 32
    assert record["settings"]["max_length"] == 2048
    assert {"torch", "transformers", "tokenizers"} <= record["packages"].keys()

    select("--method", "ifd", "--budget", "1", "--record", "why.json")
    assert json.loads(Path("why.json").read_text())["rows"] == order[:1]


def test_methods_without_a_model_need_no_scores() -> None:
    ok("select", "--data", "my.jsonl", "--method", "longest", "--budget", "2", "--output", "long.jsonl")
    assert read_jsonl("long.jsonl") == [ROWS[8], ROWS[9]]
    picks = []
    for seed in (1, 1, 2):
        ok("select", "--data", "my.jsonl", "--method", "random", "--seed", seed, "--budget", "5", "--output", "r.jsonl")
        picks.append(json.loads(Path("r.selection.json").read_text()))
    assert picks[0]["rows"] == picks[1]["rows"] != picks[2]["rows"]
    assert picks[0]["params"] == {"seed": 1, "balance": None}
    assert picks[0]["counts"]["selected_tokens"] is None


@pytest.mark.parametrize("suffix", ["json", "parquet", "csv"])
def test_the_selections_ending_decides_its_format(suffix: str) -> None:
    out = f"long.{suffix}"
    ok("select", "--data", "my.jsonl", "--method", "longest", "--budget", "2", "--output", out)
    again = ok("sample", "--data", out, "--max-samples", "9", "--output", "again.jsonl")
    assert "2 of 2 rows" in again.out
    assert [row["output"] for row in read_jsonl("again.jsonl")] == [ROWS[8]["output"], ROWS[9]["output"]]


# ── sample, methods ───────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("size", "seed", "limit"), [(3, 42, None), (5, 7, 8), (12, 1, None), (99, 1, 4)])
def test_sample_is_pythons_own(size: int, seed: int, limit: int | None) -> None:
    more = [] if limit is None else ["--limit", limit]
    ran = ok("sample", "--data", "my.jsonl", "--max-samples", size, "--seed", seed, "--output", "out.jsonl", *more)
    data = ROWS[:limit]
    wanted = data if size >= len(data) else random.Random(seed).sample(data, size)
    assert read_jsonl("out.jsonl") == wanted
    assert ran.out == f"Drew {len(wanted)} of {len(data)} rows (seed {seed}) -> out.jsonl\n"
    assert files() == {"my.jsonl", "out.jsonl"}


def test_methods_as_json() -> None:
    every = ok("methods", "--json").json["methods"]
    known = {method["name"]: method for method in every}
    assert list(known)[:8] == [
        "random", "full", "longest", "perplexity", "entropy", "ifd", "superfiltering", "instructdiff"
    ]  # fmt: skip
    assert known["instructdiff"]["roles"] == ["base", "calibrated"]
    assert known["instructdiff"]["defaults"]["nll_reject_ratio"] == 0.1
    assert known["instructdiff"]["defaults"]["exclude_warmup"] is False
    assert known["superfiltering"]["roles"] == ["proxy"]
    assert known["random"]["roles"] == []
    assert known["ifd"]["signals"].keys() == {"given", "alone"}
    assert known["ifd"]["defaults"]["ratio"] == "perplexity"
    for method in every:
        assert method["paper"] and method["doc"]
    assert ok("methods", "ifd", "--json").json == known["ifd"]
    assert known["ifd"]["cost"] == "2 passes of base" and known["longest"]["cost"] == "no model"
    assert known["instructdiff"]["cost"].endswith("training of calibrated")
    text = ok("methods").out.splitlines()
    assert text[0].split() == ["method", "what", "it", "does", "cost"]
    assert [line.split()[0] for line in text[2:-2]] == list(known)
    assert text[-1].endswith("instdiff methods NAME")
    told = ok("methods", "ifd").out
    assert told.startswith("ifd  (arXiv:2308.12032)\n")
    assert "  ratio='perplexity'\n" in told and 'compat="official"' in told and "``" not in told
    assert "(and 29 more draws)" in ok("methods", "tshirt").out


# ── configuration ─────────────────────────────────────────────────────────────────────────────────────────────────────


def params(path: str = "scores.parquet") -> dict[str, Any]:
    meta = json.loads(pq.read_table(path).schema.metadata[b"instdiff"])
    return {name: entry["params"] for name, entry in meta["methods"].items()}


def test_a_file_its_options_and_overrides(model: str) -> None:
    Path("exp.yaml").write_text(
        f"data: my.jsonl\nmodel: {{base: {model}}}\noutput: scores.parquet\nlimit: 5\ndtype: float32\n"
        "method: {ifd: {ratio: loss}, entropy: {band: max}}\n"
    )
    ok("score", "--config", "exp.yaml")
    assert len(table()) == 5
    assert params()["ifd"]["ratio"] == "loss" and params()["entropy"]["band"] == "max"
    ok(
        "score",
        "--config",
        "exp.yaml",
        "--limit",
        6,
        "--set",
        "entropy.band=mid",
        "limit=7",
        "method.ifd.ratio=perplexity",
    )
    assert len(table()) == 7  # an override goes before an option, and that before the file
    assert params()["ifd"]["ratio"] == "perplexity" and params()["entropy"]["band"] == "mid"
    ok("score", "--config", "exp.yaml", "--method", "entropy,random")
    assert list(params()) == ["entropy", "random"]  # the command line says which; the file's parameters stay
    assert params()["entropy"]["band"] == "max"
    ok("score", "--config", "exp.yaml", "method=longest")
    assert list(params()) == ["longest"]


def test_the_published_files(model: str) -> None:
    """`sample_med_1k_100.yaml` and `score_med.yaml` with their own keys; the data has `response`, as theirs."""
    rows = [{"instruction": r["instruction"], "input": r["input"], "response": r["output"]} for r in ROWS]
    write_jsonl("med.jsonl", rows)
    Path("sample_med.yaml").write_text(
        "seed: 42\ndata_path: med.jsonl\noutput_path: runs/med.jsonl\nmax_samples: 4\nlimit: 8\n"
    )
    ok("sample", "--config", "sample_med.yaml")
    assert read_jsonl("runs/med.jsonl") == random.Random(42).sample(rows[:8], 4)
    Path("score_med.yaml").write_text(
        f"seed: 42\ndata_path: med.jsonl\nmodel_path: {model}\noutput_path: runs/score_med.jsonl\nmax_samples: 10\n"
        "instruction_key: instruction\ninput_key: input\nresponse_key: response\n"
        "prompt_template: |-\n  ### Instruction:\n  {instruction}\n\n  ### Response:\n"
    )
    ok("score", "--config", "score_med.yaml", "--method", "perplexity,entropy")
    scored = read_jsonl("runs/score_med.jsonl")
    assert list(scored[0]) == [*FIRST, "perplexity", "perplexity.why", "perplexity.nll",
                               "entropy", "entropy.why", "entropy.entropy"]  # fmt: skip
    assert [row["row"] for row in scored] == list(range(10))
    template = json.loads(Path("runs/score_med.jsonl.meta.json").read_text())["models"]["base"]["template"]
    assert template == "### Instruction:\n{instruction}\n\n### Response:"
    # The same text as an option gives the same numbers, the named template others.
    for name, same in ((template, True), ("DEFAULT_PROMPT", False)):
        ok("score", "--data", "med.jsonl", "--model", model, "--method", "perplexity", "--template", name,
           "--limit", 10, "--output", "again.jsonl")  # fmt: skip
        again = [row["perplexity.nll"] for row in read_jsonl("again.jsonl")]
        assert (again == [row["perplexity.nll"] for row in scored]) is same


def test_columns_can_be_mapped(model: str) -> None:
    write_jsonl("qa.jsonl", [{"frage": row["instruction"], "antwort": row["output"]} for row in ROWS])
    more = ("--map", "instruction=frage,response=antwort")
    score(model, "longest", "scores.parquet", *more, data="qa.jsonl")
    assert [row["longest"] for row in table()] == LENGTHS
    Path("c.yaml").write_text("data_path: qa.jsonl\ninstruction_key: frage\nresponse_key: antwort\nmethod: longest\n")
    ok("select", "--config", "c.yaml", "--budget", "1", "--output", "one.jsonl")
    assert read_jsonl("one.jsonl") == [{"frage": ROWS[8]["instruction"], "antwort": ROWS[8]["output"]}]


MINE = '''
from dataclasses import dataclass
from instdiff.core import Method, Nll, Scores, Signal

@dataclass(frozen=True)
class Margin(Method):
    """Distance from a hard row."""
    name = "margin"
    center: float = 3.0

    def signals(self):
        return {"nll": Signal(Nll())}

    def score(self, s):
        nll = s.nll.mean()
        return Scores(-abs(nll - self.center), nll=nll)
'''


def test_a_method_of_ones_own(model: str) -> None:
    Path("lib").mkdir()
    Path("lib/mine.py").write_text(MINE)
    spec = "./lib/mine.py:Margin"
    score(model, spec, "scores.parquet", "--set", "margin.center=5")
    rows = table()
    assert list(rows[0]) == [*FIRST, "margin", "margin.why", "margin.nll"]
    for row in rows:
        assert row["margin"] == pytest.approx(-abs(row["margin.nll"] - 5))
    assert params() == {"margin": {"center": 5.0}}
    order = ranked(rows, "margin")
    assert select("--method", spec, "--budget", "3") == [ROWS[i] for i in order[:3]]
    # A score file may come from anywhere: the file that it names is only run when it is named here, too.
    for method in (["--method", "margin"], []):
        words = ["select", "--data", "my.jsonl", "--scores", "scores.parquet", *method, "--output", "o.jsonl"]
        assert cli(*words).error.endswith(f"give --method {spec}")
    Path("c.yaml").write_text(f"data: my.jsonl\nmodel: {model}\nmethod: {{'{spec}': {{center: 4}}}}\n")
    ok("score", "--config", "c.yaml", "--output", "again.parquet")
    assert params("again.parquet") == {"margin": {"center": 4.0}}
    ok("score", "--config", "c.yaml", "--output", "again.parquet", "method.margin.center=6")
    assert params("again.parquet") == {"margin": {"center": 6.0}}
    assert ok("methods", spec, "--json").json["defaults"] == {"center": 3.0}


# ── how it speaks ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_strict_exits_with_3_and_writes_all_the_same(model: str) -> None:
    write_jsonl("my.jsonl", [*ROWS, {"instruction": "Say nothing.", "output": ""}])
    ran = cli("score", "--data", "my.jsonl", "--model", model, "--method", "ifd", "--output", "s.parquet", "--strict")
    assert ran.code == 3
    assert ran.err.splitlines()[-1] == "error: --strict, and some rows could not be scored (see above)"
    assert "Traceback" not in ran.err
    assert table("s.parquet")[12]["ifd.why"] == "empty_response"
    # What a method filters could be scored: that is no failure.
    write_jsonl("my.jsonl", ROWS)
    score(model, "ifd", "s.parquet", "--strict")


def test_json_is_json_in_every_line(model: str) -> None:
    write_jsonl("my.jsonl", [*ROWS, "{broken"])
    ran = score(model, "ifd", "scores.parquet", "--json")
    facts = ran.json
    assert facts["output"] == "scores.parquet" and facts["rows"] == 12 and facts["truncated"] == 0
    assert facts["methods"]["ifd"]["eligible"] + facts["methods"]["ifd"]["excluded"]["filtered"] == 12
    lines = [json.loads(line) for line in ran.err.splitlines()]
    assert all(line["message"] for line in lines)
    passes = [line for line in lines if "tokens_per_s" in line]
    assert [(line["rows"], line["of"]) for line in passes] == [(11, 11), (11, 11)]
    sampled = ok("sample", "--data", "my.jsonl", "--max-samples", 2, "--output", "s.jsonl", "--json")
    assert sampled.json == {"rows": 2, "of": 12, "seed": 42, "output": "s.jsonl"}
    assert "tokens_per_s" not in sampled.err


def test_quiet_says_results_alone(model: str) -> None:
    write_jsonl("my.jsonl", [*ROWS, "{broken"])
    ran = score(model, "ifd", "scores.parquet", "--quiet")
    assert ran.err == ""
    assert ran.out.endswith("Scored 12 rows (0 truncated) -> scores.parquet\n")


def test_nothing_is_coloured_or_wrapped_without_a_terminal(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("FORCE_COLOR", "1")
    ran = score(model)
    plan = ok("plan", "--data", "my.jsonl", "--model", model, "--method", "ifd")
    name = "a folder with a rather long name/and a file that is not there.jsonl"
    bad = cli("score", "--data", name, "--method", "random", "--output", "s.parquet")
    assert bad.error.startswith(f"{name} is not there: no folder a folder with a rather long name; ")
    assert bad.err.count("\n") == 1
    seen = [ran.out, ran.err, ok("methods").out, plan.out, plan.err, bad.err, ok("score", "--help").out]
    assert "\x1b" not in "".join(seen)
    assert ran.err.splitlines()[0] == "my.jsonl: 12 rows, format alpaca (instruction, input, output)"
    assert max(len(line) for line in ok("methods").out.splitlines()) > 100


def test_the_version_and_the_help() -> None:
    from instdiff import version

    assert ok("--version").out == f"{version.__version__}\n"
    for verb in ("score", "select", "sample", "plan", "methods"):
        told = ok(verb, "--help").out
        assert f"\n  instdiff {verb} " in told[told.index("\nExample") :]
    assert "  instdiff select --data my.jsonl --scores scores.parquet" in ok("--help").out
