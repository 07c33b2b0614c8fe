"""``instdiff explain``, ``diff`` and ``export``: what they say is what the files say."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from .shell import ROWS, cli, files, ok, read_jsonl, score, write_jsonl

HOSTILE = {
    "instruction": "Say \x1b[2J\u202e<b>[red]hi[/red]",
    "input": "",
    "output": "\x1b]0;x\x07 [bold]ok",
    "source": "a",
}


def table(path: str = "scores.parquet") -> list[dict[str, object]]:
    return pq.read_table(path).to_pylist()


def selected(method: str, budget: str, folder: str, *more: object) -> list[int]:
    command = [
        "select",
        "--data",
        "my.jsonl",
        "--method",
        method,
        "--budget",
        budget,
        "--output",
        f"{folder}/selected.jsonl",
    ]
    ok(*command, *more)
    return list(json.loads(Path(folder, "selected.selection.json").read_text())["rows"])


def explain(row: object, *more: object, data: str = "my.jsonl", scores: str = "scores.parquet"):
    return ok("explain", row, "--data", data, "--scores", scores, *more)


# ── explain ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_ranks_and_reasons(model: str) -> None:
    score(model, "ifd,longest", "scores.parquet")
    chosen = selected("ifd", "3", "a", "--scores", "scores.parquet")
    rows = table()
    scored = sorted((r for r in rows if r["ifd"] is not None), key=lambda r: (-r["ifd"], r["id"], r["row"]))
    assert 3 <= len(scored) < len(rows), "the data has both kinds"
    for rank, row in enumerate(scored[:4], 1):
        said = explain(row["row"], "--selection", "a", "--json").json
        ifd = said["methods"]["ifd"]
        assert (said["row"], said["id"], said["n_tokens"]) == (row["row"], row["id"], row["n_tokens"])
        assert (ifd["value"], ifd["rank"], ifd["of"], ifd["why"]) == (row["ifd"], rank, len(scored), None)
        assert ifd["above"] == sum(r["ifd"] < row["ifd"] for r in scored) / len(scored)
        budget = f"a budget of {rank} rows or more takes it" if rank > 1 else "any budget takes it"
        assert budget in ifd["reasons"][-1]
        assert "below the cut at 1" in ifd["reasons"][0]
        assert ifd["details"]["nll_given"]["value"] == row["ifd.nll_given"]
        place = said["selection"]
        assert (place["chosen"], place["place"]) == ((True, rank) if row["row"] in chosen else (False, None))
        last = f"{scored[2]['ifd']:.4g}"
        assert place["reason"].endswith(f"budget 3 took the best 3, down to {last}")
    (out,) = [r for r in rows if r["ifd.why"] == "filtered"][:1]
    said = explain(out["row"], "--selection", "a/selected.selection.json", "--json").json
    assert said["methods"]["ifd"]["rank"] is None and said["methods"]["ifd"]["why"] == "filtered"
    assert "at or above 1" in said["methods"]["ifd"]["reasons"][1]
    assert said["selection"]["reason"] == "excluded: it has no score (filtered)"
    assert explain(3, "--json").json["copies"] == [11]


def test_instructdiff_says_which_side_of_the_cut(model: str, calibrated: str) -> None:
    cut = ["--set", "instructdiff.nll_reject_ratio=0.2", "--model", f"calibrated={calibrated}"]
    score(model, "instructdiff", "scores.parquet", *cut)
    rising = sorted(table(), key=lambda r: r["instructdiff.diff_nll"])
    assert [r["instructdiff.why"] for r in rising] == ["filtered"] * 2 + [None] * 8 + ["filtered"] * 2
    said = [
        explain(r["row"], "--json").json["methods"]["instructdiff"]["reasons"]
        for r in (rising[0], rising[-1], rising[5])
    ]
    edge = [f"{rising[at]['instructdiff.diff_nll']:.4g}" for at in (1, -2, 2, -3)]
    assert f"among the 2 lowest (up to {edge[0]})" in said[0][2]
    assert f"among the 2 highest (from {edge[1]})" in said[1][2]
    assert f"kept band from {edge[2]} to {edge[3]}; 2 rows are cut on each side" in said[2][1]
    assert f"delta entropy is {rising[5]['instructdiff.diff_entropy']:.4g}" in said[2][2]


def test_tokens_are_those_of_the_store(model: str, calibrated: str) -> None:
    score(model, "ifd,instructdiff", "scores.parquet", "--model", f"calibrated={calibrated}")
    row = table()[4]
    said = explain(4, "--json").json
    shown = {one["view"]: one for one in said["tokens"]}
    assert set(shown) == {"prompted", "response only"}
    one = shown["prompted"]
    pieces = [piece for piece, target in zip(one["pieces"], one["target"], strict=True) if target]
    assert "".join(pieces) == ROWS[4]["output"] and "".join(one["pieces"]).endswith(ROWS[4]["output"])
    columns = one["columns"]
    assert np.mean(columns["base nll"]) == pytest.approx(row["ifd.nll_given"])
    assert np.mean(columns["delta entropy"]) == pytest.approx(row["instructdiff.diff_entropy"], abs=1e-6)
    text = explain(4, "--by", "delta nll").out
    marked = text.split("on either side of 0\n")[1]
    assert marked.endswith("".join(f"[{p}|{v:.2f}]" for p, v in zip(pieces, columns["delta nll"], strict=True)) + "\n")
    assert "\x1b" not in text and text.count("tokens, mean") == 1


def test_informative_tokens_are_those_that_the_prompt_changes_enough(model: str) -> None:
    score(model, "tshirt", "scores.parquet", "--set", "tshirt.draws=2", "--model", f"proxy={model}")
    row = next(row for row in table() if row["tshirt.informative"] not in (None, 0.0, 1.0))
    said = explain(row["row"], "--json").json
    shown = {one["view"]: one["columns"] for one in said["tokens"]}
    size = np.abs(np.subtract(shown["prompted"]["proxy nll"], shown["response only"]["proxy nll"]))
    marks = shown["prompted"]["tshirt informative"]
    assert marks == (size >= row["tshirt.least"]).astype(float).tolist()
    assert np.mean(marks) == pytest.approx(row["tshirt.informative"])
    share = f"{100 * row['tshirt.informative']:.3g} % of its tokens are informative"
    assert share in said["methods"]["tshirt"]["reasons"][-1 if row["tshirt"] is None else 1]
    text = explain(row["row"], "--by", "informative").out
    assert "1 where the method selects the token" in text and text.count("tokens, mean") == 1


def test_without_the_store_it_says_what_to_run(model: str, tmp_path: Path) -> None:
    score(model, "ifd", "scores.parquet", "--max-length", "300")
    shutil.rmtree(tmp_path / "store" / "columns")
    said = explain(2)
    assert f"tokens: there is no store in '{tmp_path / 'store'}'" in said.out
    command = said.out.rstrip().splitlines()[-1].split()
    assert command[:4] == ["instdiff", "score", "--data", "my.jsonl"] and "--max-length" in command
    ok(*command[1:])
    assert "base nll, prompted" in explain(2).out
    other = explain(2, "--store", tmp_path / "other", "--json").json
    assert other["tokens"] == [] and f"--store {tmp_path / 'other'}" in other["to_see_tokens"]


def test_rows_by_id_and_their_errors(model: str) -> None:
    write_jsonl("some.jsonl", [ROWS[0], '{"broken', *ROWS[1:]])
    score(model, "longest", data="some.jsonl")
    rows = table()
    name = str(rows[5]["id"])
    assert explain(name[:8].upper(), "--json", data="some.jsonl").json["row"] == rows[5]["row"] == 6
    for row, said in [
        ("99", "no row '99': rows are 0 to 12"),
        ("1", "row 1 is not there: its record was rejected"),
        ("xyz", "no row 'xyz'"),
    ]:
        assert said in cli("explain", row, "--data", "some.jsonl", "--scores", "scores.parquet").error
    ids = [str(row["id"]) for row in rows]
    letter = next((name[0] for name in ids if name[0].isalpha() and sum(o[0] == name[0] for o in set(ids)) > 1), None)
    assert letter, "two ids begin with the same letter"
    error = cli("explain", letter, "--data", "some.jsonl", "--scores", "scores.parquet").error
    assert f"rows have an id that begins with '{letter}'" in error
    assert "no scores are named; give --scores FILE" in cli("explain", "1").error
    write_jsonl("other.jsonl", ROWS[3:])
    assert "score this file again" in cli("explain", "1", "--data", "other.jsonl", "--scores", "scores.parquet").error
    said = explain(0, "--by", "nll", data="some.jsonl").out
    assert said.endswith("tokens: these methods score no tokens\n")


def test_hostile_text_stays_text(model: str) -> None:
    write_jsonl("my.jsonl", [*ROWS, HOSTILE])
    score(model, "ifd")
    said = explain(len(ROWS)).out
    assert "Say ⟨U+001B⟩[2J⟨U+202E⟩<b>[red]hi[/red]" in said and not set("\x1b\x07\u202e") & set(said)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from instdiff.cli.token_view import print_tokens, style
    from instdiff.selection.tokens import Spoken

    assert [style("base nll", v) for v in (0.1, float("nan"))] == ["", ""]
    assert len({style("base nll", v) for v in (0.1, 0.6, 1.5, 3.0, 9.0)}) == 5
    assert style("delta nll", 2.0) != style("delta nll", -2.0) != style("delta nll", 0.01) == ""
    one = Spoken("prompted", ["Hi", "[b]", "\x1b["], [False, True, True], {"base nll": [0.1, 9.0]})
    screen = Terminal()
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout", screen)
    print_tokens([one])
    said = screen.getvalue()
    assert "[b]" in said and "⟨U+001B⟩[" in said and "48;2;201;42;42" in said


# ── diff ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_diff_counts_what_is_there(model: str) -> None:
    score(model, "ifd,longest")
    a = selected("longest", "6", "a", "--scores", "scores.parquet")
    b = selected("random", "5", "b")
    said = ok("diff", "a", "b/selected.jsonl", "--scores", "scores.parquet", "--json").json
    shared = len(set(a) & set(b))
    assert (said["shared"], said["only_a"], said["only_b"]) == (shared, 6 - shared, 5 - shared)
    assert said["jaccard"] == shared / (11 - shared) and said["overlap"] == shared / 5
    assert said["shared_by_chance"] == pytest.approx(6 * 5 / 12) and said["pool_rows"] == 12
    tokens = {r["row"]: r["n_tokens"] for r in table()}
    assert said["lengths"]["tokens"]["A"]["median"] == np.median([tokens[row] for row in a])
    assert said["lengths"]["tokens"]["only B"]["rows"] == 5 - shared
    chars = [len(ROWS[row]["output"]) for row in b]
    assert said["lengths"]["response characters"]["B"]["mean"] == pytest.approx(np.mean(chars))
    longest = {r["row"]: r["longest"] for r in table()}
    assert said["scores"]["longest"]["A"]["max"] == max(longest[row] for row in a)
    assert said["groups"]["by"] == "source"
    counts = {row["value"]: (row["A"], row["B"]) for row in said["groups"]["rows"]}
    for source in "abc":
        mine = tuple(sum(ROWS[row]["source"] == source for row in rows) for rows in (a, b))
        assert counts.get(source, (0, 0)) == mine
    for side, rows, others in (("only A", a, b), ("only B", b, a)):
        only = [row for row in rows if row not in others]
        assert [e["row"] for e in said["examples"][side]] == only[:3]
        assert said["examples"][side][0]["instruction"] == ROWS[only[0]]["instruction"]
    text = ok("diff", "a", "b/selected.jsonl", "--scores", "scores.parquet", "--examples", "0").out
    assert f"Jaccard {said['jaccard']:.3f}" in text and "longest within 6" in text and "only A:" not in text


def test_diff_counts_copies_and_other_files() -> None:
    write_jsonl("one.jsonl", [ROWS[0], ROWS[3], ROWS[11]])  # the last two say the same
    write_jsonl("two.jsonl", [ROWS[3], ROWS[5]])
    said = ok("diff", "one.jsonl", "two.jsonl", "--by", "output", "--json").json
    assert (said["shared"], said["only_a"], said["only_b"]) == (1, 2, 1) and said["scores"] == {}
    assert "shared_by_chance" not in said and said["groups"]["by"] == "output"
    assert "no row of one.jsonl has a column 'sauce'" in cli("diff", "one.jsonl", "two.jsonl", "--by", "sauce").error
    assert "none.jsonl is not there" in cli("diff", "one.jsonl", "none.jsonl").error


def test_diff_of_runs_takes_the_last_round() -> None:
    for run, last in (("a", 10), ("b", 2)):
        for number in (1, last):
            folder = f"{run}/iter_{number}"
            selected("random", "4", folder, "--seed", number)
            Path(folder, "selected.selection.json").rename(f"{folder}/selection.json")
    said = ok("diff", "a", "b", "--json").json
    mine, theirs = (json.loads(Path(p, "selection.json").read_text())["rows"] for p in ("a/iter_10", "b/iter_2"))
    assert said["shared"] == len(set(mine) & set(theirs)) and said["a"]["rows"] == 4
    Path("empty").mkdir()
    Path("empty/config.yaml").write_text("{}")
    assert "has no selection yet" in cli("diff", "a", "empty").error


def test_diff_without_the_rows_says_what_is_left_out() -> None:
    selected("random", "4", "a")
    selected("longest", "4", "b")
    for name in ("a", "b"):
        Path(name, "selected.jsonl").unlink()
    Path("my.jsonl").rename("moved.jsonl")
    ran = ok("diff", "a", "b")
    assert "texts and lengths in characters are left out" in ran.err and "Jaccard" in ran.out
    assert "give --data FILE" in cli("diff", "a", "b", "--by", "source").error
    assert ok("diff", "a", "b", "--data", "moved.jsonl", "--json").json["groups"]["by"] == "source"


# ── export ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_export_of_a_record_brings_the_rows_in_order(model: str) -> None:
    score(model, "longest")
    rows = selected("longest", "3", "a", "--scores", "scores.parquet")
    Path("a/selected.jsonl").unlink()
    ok("export", "--data", "a/selected.selection.json", "--format", "jsonl", "--output", "out", "--name", "mine")
    assert read_jsonl("out/mine.jsonl") == [ROWS[row] for row in rows]
    Path("my.jsonl").rename("moved.jsonl")
    error = cli("export", "--data", "a", "--format", "jsonl", "--output", "out").error
    assert error.startswith("the rows of 'a' are of my.jsonl, which cannot be read (my.jsonl is not there")
    ok("export", "--data", "a", "--format", "jsonl", "--output", "out", "--source", "moved.jsonl", "--name", "again")
    assert read_jsonl("out/again.jsonl") == read_jsonl("out/mine.jsonl")
    said = ok("export", "--data", "a", "--source", "moved.jsonl", "--format", "trl", "--output", "trl", "--json").json
    assert said["command"] == "trl sft --config trl/a.trl.yaml" and said["files"] == ["trl/a.jsonl", "trl/a.trl.yaml"]
    assert said["config"]["model_name_or_path"] == model and said["layout"] == "text"  # it has no chat template
    assert files("trl") == {"a.jsonl", "a.trl.yaml"}


def test_export_by_a_config_file_and_overrides() -> None:
    Path("export.yaml").write_text("data: my.jsonl\nformat: llamafactory\noutput: out\nname: mine\n")
    ran = ok("export", "--config", "export.yaml", "name=other")
    assert "dataset: other" in ran.out and "12 rows, layout alpaca" in ran.out
    assert files("out") == {"other.jsonl", "dataset_info.json"}
    assert "give --format, one of llamafactory, axolotl" in cli("export", "--data", "my.jsonl").error
    assert "give --output PATH" in cli("export", "--data", "my.jsonl", "--format", "trl").error
    assert "no data is named" in cli("export", "--format", "trl", "--output", "out").error
    pushed = cli("export", "--data", "my.jsonl", "--format", "hub", "--output", "card", "--push", "hub:me/x")
    assert "cannot push to me/x: HF_HUB_OFFLINE is set" in pushed.error and not Path("card").exists()


def test_explain_never_changes_the_input(model: str) -> None:
    score(model)
    before = {name: Path(name).read_bytes() for name in files()}
    explain(0)
    ok("diff", "my.jsonl", "my.jsonl")
    assert {name: Path(name).read_bytes() for name in files()} == before


def test_two_selections_in_a_folder_keep_both_records() -> None:
    """Each record is named after its output, and is found by its output's name."""
    for method, budget in (("longest", 3), ("random", 4)):
        ok("select", "--data", "my.jsonl", "--method", method, "--budget", budget, "--output", f"{method}.jsonl")
    assert {"longest.selection.json", "random.selection.json"} < files() and "selection.json" not in files()
    records = {name: json.loads(Path(f"{name}.selection.json").read_text()) for name in ("longest", "random")}
    assert {name: (one["method"], len(one["rows"])) for name, one in records.items()} == {
        "longest": ("longest", 3), "random": ("random", 4)
    }  # fmt: skip
    said = ok("diff", "longest.jsonl", "random.selection.json", "--json").json
    assert (said["a"]["method"], said["a"]["rows"]) == ("longest", 3)
    assert (said["b"]["method"], said["b"]["rows"]) == ("random", 4)
    ok("export", "--data", "random.selection.json", "--format", "jsonl", "--output", "out")
    assert read_jsonl("out/random.jsonl") == [ROWS[row] for row in records["random"]["rows"]]
    ok("score", "--data", "my.jsonl", "--method", "longest,random", "--output", "scores.parquet")
    first = records["longest"]["rows"][0]
    chosen = explain(first, "--selection", "longest.jsonl", "--json").json["selection"]
    assert (chosen["chosen"], chosen["place"]) == (True, 1)
    error = cli("diff", ".", "random.jsonl").error
    assert error == "'.' holds 2 selections (longest.selection.json, random.selection.json); name one of them"
