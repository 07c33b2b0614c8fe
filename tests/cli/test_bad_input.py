"""What users get wrong: one message with exit code 2, or a reason per row; and nothing half-written is left."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from .shell import CONTEXT, HEAD, ROWS, cli, files, ok, read_jsonl, score, write_jsonl


def table(path: str = "scores.parquet") -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    return rows


def refused(*args: object, stdin: str | None = None) -> str:
    """The message of a command that must fail and leave no file."""
    before = files()
    ran = cli(*args, stdin=stdin)
    assert files() == before
    assert ran.out == ""
    return ran.error


def scoring(model: str, *more: object, data: str = "my.jsonl", output: str = "s.parquet", method: str = "ifd") -> str:
    return refused("score", "--data", data, "--model", model, "--method", method, "--output", output, *more)


def selecting(*more: object, scores: str = "scores.parquet", output: str = "out.jsonl") -> str:
    return refused("select", "--data", "my.jsonl", "--scores", scores, "--output", output, *more)


# ── data ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_broken_line_is_named_and_the_rest_goes_on(model: str) -> None:
    write_jsonl("my.jsonl", [*ROWS[:2], '{"instruction": "x", "output": ', *ROWS[2:4], '{"instruction": "no answer"}'])
    ran = score(model, "perplexity", "out/scores.parquet")
    lines = ran.err.splitlines()
    assert lines[0] == "my.jsonl: 4 rows, format alpaca (instruction, input, output); 2 rejected"
    assert lines[1].startswith("my.jsonl:3: ") and "JSON" in lines[1]
    assert lines[2] == "my.jsonl:6: missing key 'output' (or 'response'); it has: instruction"
    rejected = read_jsonl("out/scores.rejected.jsonl")
    assert [(r["file"], r["line"]) for r in rejected] == [("my.jsonl", 3), ("my.jsonl", 6)]
    assert [f"{r['file']}:{r['line']}: {r['reason']}" for r in rejected] == lines[1:3]
    assert rejected[1]["text"] == '{"instruction": "no answer"}'
    rows = table("out/scores.parquet")
    assert [row["row"] for row in rows] == [0, 1, 3, 4]  # positions in the input
    ok("select", "--data", "my.jsonl", "--scores", "out/scores.parquet", "--budget", "4", "--output", "out/sel.jsonl")
    order = sorted(rows, key=lambda row: -row["perplexity"])
    record = json.loads(Path("out/sel.selection.json").read_text())
    assert record["rows"] == [row["row"] for row in order]
    assert read_jsonl("out/sel.jsonl") == [ROWS[{0: 0, 1: 1, 3: 2, 4: 3}[row["row"]]] for row in order]


def test_more_than_half_bad_is_an_error() -> None:
    write_jsonl("my.jsonl", [*ROWS[:1], *({"instruction": "no answer", "text": "x"} for _ in range(2))])
    ran = cli("sample", "--data", "my.jsonl", "--max-samples", "1", "--output", "out.jsonl")
    lines = ran.error.splitlines()
    assert lines[0] == "my.jsonl: 2 of 3 records cannot be used, which is more than half. The first:"
    assert lines[1] == "  my.jsonl:2: missing key 'output' (or 'response'); it has: instruction, text"
    assert lines[-1].endswith("They would be read with --map instruction=instruction,response=text")
    assert files() == {"my.jsonl", "out.rejected.jsonl"}  # for a look at what was wrong


def test_unknown_keys_list_the_formats() -> None:
    write_jsonl("my.jsonl", [{"frage": "a", "antwort": "b"}])
    message = refused("sample", "--data", "my.jsonl", "--max-samples", "1", "--output", "out.jsonl")
    assert message.startswith("my.jsonl: the rows fit no known format; keys found: frage, antwort. Formats: ")
    assert "alpaca (instruction, output or response)" in message
    assert message.endswith("They would be read with --map instruction=frage,response=antwort")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("mi.jsonl", "mi.jsonl is not there; did you mean my.jsonl?"),
        ("nowhere/my.jsonl", "nowhere/my.jsonl is not there: no folder nowhere; for a data set on the Hugging Face hub "
         "write hub:nowhere/my.jsonl"),
        ("builtin:dem", "no built-in data 'builtin:dem'; did you mean 'builtin:demo'?"),
        ("my.doc", "my.doc: unknown kind of file; known: .jsonl, .json, .ndjson, .jsonlines, .csv, .tsv, .parquet, "
         ".arrow; texts also with .gz, .zst, .bz2, .xz"),
        ("empty.jsonl", "empty.jsonl is empty: no record in it; check the path"),
    ],
)  # fmt: skip
def test_data_that_is_not_there(data: str, message: str, model: str) -> None:
    if data in ("my.doc", "empty.jsonl"):
        Path(data).write_text("x" if data == "my.doc" else "")
    assert scoring(model, data=data) == message


def test_unknown_columns_and_formats(model: str) -> None:
    assert scoring(model, "--format", "alpaka") == "unknown format 'alpaka'; did you mean 'alpaca'?"
    ran = cli("score", "--data", "my.jsonl", "--model", model, "--method", "ifd", "--output", "out/s.parquet",
              "--map", "instruction=instrution,response=output")  # fmt: skip
    assert files("out") == {"s.rejected.jsonl"}
    assert ran.error == (
        "my.jsonl: map instruction=instrution: no row has a column 'instrution'; did you mean 'instruction'?; "
        "columns: instruction, input, output, source, meta"
    )
    assert scoring(model, "--map", "instruction") == (
        "'map': 'instruction' is not name=column; write map as instruction=question,response=answer"
    )
    assert "Input should be 'all', 'last' or 'all+calls' (given: 'first')" in scoring(model, "--targets", "first")
    assert scoring(model, "--limit", 0) == ("the command line: 'limit': Input should be greater than 0 (given: 0)")


def test_rows_that_cannot_be_scored_say_why(model: str) -> None:
    long = "a" * CONTEXT
    write_jsonl(
        "my.jsonl",
        [*ROWS[:4], {"instruction": "empty", "output": ""}, {"instruction": long, "output": "b"},
         {"instruction": "one token", "output": "c"}, {"instruction": "cut", "output": long}],
    )  # fmt: skip
    ran = score(model, "perplexity,ifd")
    rows = table()
    for name in ("perplexity", "ifd"):
        assert [row[f"{name}.why"] for row in rows[4:6]] == ["empty_response", "too_long"]
        assert [row[name] for row in rows[4:6]] == [None, None]
    assert [row["perplexity.nll"] for row in rows[4:6]] == [None, None]
    assert [row["n_tokens"] for row in rows[4:7]] == [0, 0, 1]
    cut = CONTEXT - len(HEAD + "cut\n\n### Response:")
    assert (rows[7]["n_tokens"], rows[7]["truncated"]) == (cut, True)
    # One token is enough for a number: it follows the prompt here and a start token there.
    assert rows[6]["perplexity"] == -rows[6]["ifd.nll_given"] < 0
    assert rows[6]["ifd.nll_alone"] > 0 and rows[6]["ifd.why"] in (None, "filtered", "too_short")
    assert "perplexity         6  1 empty_response, 1 too_long" in ran.out
    assert "8 rows (2 truncated)" in ran.out
    ok("select", "--data", "my.jsonl", "--scores", "scores.parquet", "--method", "perplexity", "--budget", "100%",
       "--output", "out.jsonl")  # fmt: skip
    record = json.loads(Path("out.selection.json").read_text())
    assert record["excluded"] == {"empty_response": 1, "too_long": 1}
    assert sorted(record["rows"]) == [0, 1, 2, 3, 6, 7]
    score(model, "ifd", "short.parquet", "--set", "ifd.min_response_tokens=2")
    assert table("short.parquet")[6]["ifd.why"] == "too_short"


def test_nothing_scorable_is_said(model: str) -> None:
    write_jsonl("my.jsonl", [{"instruction": "a", "output": ""}, {"instruction": "b", "output": ""}])
    score(model)
    assert selecting() == "no row has a score by ifd: 2 empty_response"


# ── models ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def spoilt(model: str, folder: str, letter: str | None) -> str:
    """A copy of a model whose weights, or those of one letter, are no numbers."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(model, folder)
    weights = load_file(f"{folder}/model.safetensors")
    embedding = weights["model.embed_tokens.weight"]
    if letter is None:
        embedding[:] = float("nan")
    else:
        words = json.loads(Path(folder, "tokenizer.json").read_text())["model"]["vocab"]
        embedding[words[letter]] = float("nan")
    save_file(weights, f"{folder}/model.safetensors", {"format": "pt"})
    return folder


def test_weights_that_are_no_numbers_are_an_error(model: str) -> None:
    bad = spoilt(model, "bad", None)
    assert scoring(bad) == (
        "the model's weights are not finite (first in 'model.embed_tokens.weight'); the checkpoint is damaged"
    )


def test_rows_that_come_out_non_finite_are_named_and_tried_again(model: str, computed: list[tuple[int, int]]) -> None:
    bad = spoilt(model, "bad", "j")  # in 'jay' alone
    for _ in range(2):
        computed.clear()
        ran = score(bad, "perplexity")
        assert "warning: 1 rows of prompted by base came out non-finite" in ran.err
        assert [row["row"] for row in table() if row["perplexity.why"] == "non_finite"] == [9]
        assert table()[9]["perplexity"] is None and table()[9]["perplexity.nll"] is None
    assert [rows for rows, _ in computed] == [1]
    assert cli("score", "--data", "my.jsonl", "--model", bad, "--method", "perplexity", "--output", "s.parquet",
               "--strict").code == 3  # fmt: skip


def test_models_that_are_not_there(model: str) -> None:
    assert scoring("./nowhere") == (
        "no model folder './nowhere'; give a local folder, a hub id as owner/name, or builtin:tiny"
    )
    assert scoring("builtin:tinny") == "no built-in named 'tinny'; did you mean 'tiny'?"
    assert scoring("nobody/nothing").startswith(
        "model 'nobody/nothing' is no local folder, and the hub did not give it"
    )
    Path("empty").mkdir()
    assert scoring("empty") == "'empty' has no config.json, so it is no Hugging Face model folder"
    shutil.copytree(model, "light")
    Path("light/model.safetensors").unlink()
    assert scoring("light") == "'light' has no weights (*.safetensors)"
    Path("light/pytorch_model.bin").write_bytes(b"x")
    assert scoring("light").endswith(
        "'light' has only pickled weights (*.bin), which are not read; convert them to safetensors"
    )


def test_roles(model: str) -> None:
    assert scoring(f"bse={model}") == "unknown model role 'bse'; did you mean 'base'?" or Path(model).is_absolute()
    assert refused("score", "--data", "my.jsonl", "--method", "ifd", "--output", "s.parquet") == (
        "ifd needs a model for role 'base'; give --model base=WHERE"
    )
    assert scoring(model, method="instructdiff") == (
        "instructdiff needs a model for role 'calibrated'; "
        "give --model calibrated=WHERE or let `instdiff pipeline` train it"
    )
    assert scoring(model, "--model", "builtin:tiny") == f"role 'base' is given twice: '{model}' and 'builtin:tiny'"
    assert scoring("base=") == "'--model base=': write ROLE=WHERE, or WHERE alone for the base"
    assert scoring("bse=builtin:tiny") == "unknown model role 'bse'; did you mean 'base'?"


# ── names and values ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("method", "more", "message"),
    [
        ("idf", [], "unknown method 'idf'; did you mean 'ifd'?"),
        ("ifd,ifd", [], "method 'ifd' is given twice"),
        ("ifd", ["--set", "ifd.ration=loss"], "method 'ifd' has no parameter 'ration'; did you mean 'ratio'?"),
        ("ifd", ["--set", "ratio=loss"], "'--set ratio=loss' names no method; write --set METHOD.ratio=loss, as "
         "--set ifd.ratio=loss"),
        ("ifd", ["--set", "ifd.ratio=los"], "'ifd.ratio': Input should be 'perplexity' or 'loss' (given: 'los')"),
        ("ifd", ["--set", "fid.ratio=loss"], "'method.fid.ratio': 'fid' is not among the methods; did you mean 'ifd'?"),
        ("ifd", ["--set", "ifd.ratio"], "'method.ifd.ratio': an override is written key.sub=value"),
        ("ifd", ["limt=3"], "'limt=3': unknown key 'limt'; did you mean 'limit'?"),
        ("ifd", ["limit=few"], "the command line: 'limit': Input should be a valid integer, unable to parse string as "
         "an integer (given: 'few')"),
        ("ifd", ["5"], "'5': an override is written key.sub=value"),
        ("ifd", ["--template", "alpca"], "unknown template 'alpca'; did you mean 'alpaca'?"),
        ("ifd", ["--template", "Answer: "], "template 'Answer: ' has no {instruction}, so the model would not see the "
         "instruction"),
        ("ifd", ["--template", "t.yaml"], "template file 't.yaml': No such file or directory"),
        ("ifd", ["--template", "chat"], None),
        ("ifd", ["--dtype", "float8"], "the command line: 'dtype': Input should be 'auto', 'float32', 'bfloat16' or "
         "'float16' (given: 'float8')"),
        ("ifd", ["--device", "gpu"], None),
        ("ifd", ["--batch-tokens", "many"], "the command line: 'batch_tokens': Input should be a valid integer, unable "
         "to parse string as an integer (given: 'many')"),
        ("ifd", ["--executor", "rey"], "the command line: 'executor': Input should be 'local' or 'ray' (given: 'rey')"),
        ("./nowhere.py:Mine", [], "method './nowhere.py:Mine': no file './nowhere.py'; "
         "write it as path/to/file.py:Class"),
        ("./ok.py:Mein", [], None),
        ("./ok.py:Not", [], "method './ok.py:Not': 'Not' is not a subclass of instdiff.Method"),
        ("./broken.py:Mine", [], "method './broken.py:Mine': broken.py cannot be imported: SyntaxError: "
         "invalid syntax (broken.py, line 1)"),
        ("./needs.py:Mine", [], "method './needs.py:Mine': needs.py cannot be imported: ModuleNotFoundError: "
         "No module named 'nothing_of_that_name'"),
    ],
)  # fmt: skip
def test_names_and_values(method: str, more: list[str], message: str | None, model: str) -> None:
    Path("ok.py").write_text("class Mine: ...\nclass Not: ...\n")
    Path("broken.py").write_text("def (\n")
    Path("needs.py").write_text("import nothing_of_that_name\n")
    said = scoring(model, *more, method=method)
    if message is not None:
        assert said == message
    elif "chat" in more:
        assert said == (
            f"the tokenizer of '{model}' has no chat template; give --template alpaca, plain, direct or a .jinja file"
        )
    elif "gpu" in more:
        assert said.startswith("device 'gpu' cannot be used: ")
    else:
        assert said.startswith("method './ok.py:Mein': ok.py has no 'Mein'; did you mean 'Mine'?")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["scroe"], "error: no such command 'scroe'; did you mean 'score' or 'store'? (see `instdiff --help`)"),
        (["score", "--modle", "x"], "error: no such option '--modle'; did you mean '--method', '--model'? (see "),
        (["score", "--data"], "error: option '--data' requires an argument"),
        (["score", "--limit", "few"], "error: invalid value for '--limit'"),
    ],
)
def test_verbs_and_options_that_do_not_exist(args: list[str], message: str) -> None:
    ran = cli(*args)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith(message) and ran.err.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["score", "--method", "random", "--data", "my.jsonl"], "no output is named; give --output PATH"),
        (["score", "--method", "random", "--output", "s.parquet"], "no data is named; give --data FILE"),
        (["score", "--data", "my.jsonl", "--output", "s.parquet"],
         "no method is named; give --method (see `instdiff methods`)"),
        (["score", "--method", "idf,tshirt", "--data", "nope.jsonl", "--model", "./nowhere"],
         "5 things to fix:\n"
         "- unknown method 'idf'; did you mean 'ifd'?\n"
         "- tshirt needs a model for role 'proxy'; give --model proxy=WHERE, or --set tshirt.model=base\n"
         "- no output is named; give --output PATH\n"
         "- nope.jsonl is not there; check the path\n"
         "- no model folder './nowhere'; give a local folder, a hub id as owner/name, or builtin:tiny"),
        (["train"], "3 things to fix:\n- no data is named; give --data FILE\n"
         "- no model is named; give --model WHERE\n- no output is named; give --output PATH"),
        (["plan", "--data", "my.jsonl"], "no method is named; give --method (see `instdiff methods`)"),
        (["sample", "--data", "my.jsonl", "--output", "o.jsonl"], "no size is named; give --max-samples N"),
        (["select", "--data", "my.jsonl", "--output", "o.jsonl"],
         "no scores are named; give --scores FILE, or --method random, longest or full"),
        (["methods", "idf"], "unknown method 'idf'; did you mean 'ifd'?"),
    ],
)  # fmt: skip
def test_what_is_lacking_is_named(args: list[str], message: str) -> None:
    assert refused(*args) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "config file 'c.yaml': No such file or directory"),
        ("a: [1\n", "config file 'c.yaml' is not YAML: "),
        ("- a\n", "config file 'c.yaml' must hold a mapping of keys, not ['a']"),
        ("", "config file 'c.yaml' must hold a mapping of keys, not None"),
        ("slect: 1\n", "c.yaml: unknown key 'slect'; `instdiff select --help` and docs/configuration.md list the keys"),
        ("bugdet: 1\n", "c.yaml: unknown key 'bugdet'; did you mean 'budget'?"),
        ("data: a\ndata_path: b\n", "c.yaml: 'data_path' is another name of 'data', which is given too; keep one"),
        ("limit: few\n", "c.yaml: 'limit': Input should be a valid integer"),
        ("model: {bse: x}\n", "unknown model role 'bse'; did you mean 'base'?"),
    ],
)
def test_configuration_files(text: str | None, message: str) -> None:
    if text is not None:
        Path("c.yaml").write_text(text)
    assert refused("select", "--config", "c.yaml", "--output", "o.jsonl").startswith(message)


# ── scores and budgets ────────────────────────────────────────────────────────────────────────────────────────────────

EXAMPLES = "write 500, 10%, '25% eligible', '200000 tokens', '10% tokens' or '10% answer tokens'"


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("ten", f"budget 'ten' is not understood; {EXAMPLES}"),
        ("-3", f"budget '-3' is not understood; {EXAMPLES}"),
        ("10% rowz", f"budget '10% rowz' is not understood; {EXAMPLES}"),
        ("0%", "budget '0%': a share lies above 0 and up to 100 %"),
        ("101% tokens", "budget '101% tokens': a share lies above 0 and up to 100 %"),
        ("0.1", f"budget '0.1' is no whole count; for a share write 10%; {EXAMPLES}"),
        ("0", f"budget '0' is no whole count; for a share write 0%; {EXAMPLES}"),
        ("25 eligible", f"budget '25 eligible': 'eligible' goes with a share; {EXAMPLES}"),
        ("1%", "budget '1%' of 12 rows takes none; give a larger one"),
        ("10% tokens", "budget '10% tokens' counts tokens, but these scores were made without a tokenizer; "
         "score with --model"),
    ],
)  # fmt: skip
def test_budgets(budget: str, message: str) -> None:
    ok("score", "--data", "my.jsonl", "--method", "random", "--output", "scores.parquet")
    assert selecting("--budget", budget) == message


def test_published_budgets() -> None:
    ok("score", "--data", "my.jsonl", "--method", "random", "--output", "scores.parquet")
    assert selecting("select_ratio=2", "--budget", "rows") == "select_ratio 2.0 lies outside 0 to 1"
    assert selecting("select_ratio=0.5", "--budget", "words").startswith(
        "budget 'words' is not understood; write 500, 10%"
    )
    ok("select", "--data", "my.jsonl", "--scores", "scores.parquet", "--output", "o.jsonl", "--budget", "rows",
       "select_ratio=0.5")  # fmt: skip
    assert len(read_jsonl("o.jsonl")) == 6


def test_scores_of_other_data() -> None:
    ok("score", "--data", "my.jsonl", "--method", "random", "--output", "scores.parquet")
    write_jsonl("my.jsonl", [*ROWS[:2], {**ROWS[2], "output": "other"}, *ROWS[3:]])
    assert selecting() == "row 2 of my.jsonl is not the row that was scored; score this file again"
    write_jsonl("my.jsonl", ROWS[:-1])
    assert selecting() == "the scores have 12 rows, my.jsonl has 11; score this file again"


def test_scores_that_are_none() -> None:
    assert selecting(scores="s.parquet") == ("cannot read scores 's.parquet': no such file; `instdiff score` writes it")
    Path("s.parquet").write_text("no parquet")
    assert selecting(scores="s.parquet").startswith("cannot read scores 's.parquet': ")
    pq.write_table(pa.table({"row": [0], "id": ["a"]}), "t.parquet")
    assert selecting(scores="t.parquet") == ("'t.parquet' is no score file of instdiff: it lacks n_tokens, truncated")
    ok("score", "--data", "my.jsonl", "--method", "full", "--output", "scores.jsonl")
    pq.write_table(
        pa.table({"row": [0], "id": ["a"], "n_tokens": [1], "truncated": [False], "ifd": [0.5]}), "u.parquet"
    )
    assert selecting(scores="u.parquet") == "'u.parquet' is no score file of instdiff: it lacks its metadata"
    assert selecting(scores="my.jsonl").startswith("'my.jsonl' is no score file of instdiff: it lacks row, id")


def test_a_method_that_was_not_scored_or_otherwise(model: str) -> None:
    score(model, "ifd,longest")
    assert selecting("--method", "idf") == "these scores have no method 'idf'; did you mean 'ifd'?"
    assert selecting() == "a selection goes by one method; give --method, one of ifd, longest"
    assert selecting("--method", "ifd,longest") == "a selection goes by one method; give --method, one of ifd, longest"
    assert selecting("--method", "ifd", "--set", "ifd.ratio=loss") == (
        "'scores.parquet' was scored with ifd.ratio='perplexity', not 'loss'; "
        "run `instdiff score` again with it (what the store has is not computed again)"
    )
    assert selecting("--method", "ifd", "--order", "random") == (
        "the command line: 'order': Input should be 'rank' or 'input' (given: 'random')"
    )


def test_a_seed_that_the_scores_do_not_have() -> None:
    ok("score", "--data", "my.jsonl", "--method", "random", "--seed", "3", "--output", "scores.parquet")
    assert selecting("--method", "random", "--seed", "7").startswith(
        "'scores.parquet' was scored with random.seed=3, not 7; "
    )
    ok("select", "--data", "my.jsonl", "--scores", "scores.parquet", "--method", "random", "--seed", "3", "--output",
       "o.jsonl")  # fmt: skip


# ── outputs ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_endings_that_say_nothing(model: str) -> None:
    assert scoring(model, output="s.txt") == "scores go to .parquet, .jsonl or .csv, not to 's.txt'"
    for verb in (["sample", "--max-samples", "1"], ["select", "--method", "random", "--budget", "1"]):
        assert refused(*verb, "--data", "my.jsonl", "--output", "o.txt") == (
            "cannot tell the format of output o.txt: it must end in .jsonl, .json, .parquet, .csv"
        )


def test_an_ending_is_refused_before_anything_is_computed(model: str, computed: list[tuple[int, int]]) -> None:
    scoring(model, output="s.txt")
    assert computed == []


def test_outputs_that_cannot_be_written(model: str) -> None:
    below = "my.jsonl/deep/o"  # a path below a file, which stops root too
    assert scoring(model, output=f"{below}.parquet").startswith(f"cannot write '{below}.parquet': ")
    said = refused("sample", "--data", "my.jsonl", "--max-samples", "1", "--output", f"{below}.jsonl")
    assert said.startswith(f"cannot write '{below}.jsonl': Not a directory; nothing was written there.")
    Path("folder.jsonl").mkdir()
    said = refused("sample", "--data", "my.jsonl", "--max-samples", "1", "--output", "folder.jsonl")
    assert said.startswith("cannot write 'folder.jsonl': it is a folder")
    said = scoring(model, "--store", "my.jsonl/store")
    assert said.startswith("cannot write 'my.jsonl/store': ")
    assert read_jsonl("my.jsonl") == ROWS


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this machine")
@pytest.mark.parametrize("verb", [["sample", "--max-samples", "9"], ["select", "--method", "random", "--budget", "9"]])
def test_a_full_disk(verb: list[str]) -> None:
    Path("o.jsonl").symlink_to("/dev/full")
    said = refused(*verb, "--data", "my.jsonl", "--output", "o.jsonl")
    assert said.startswith("cannot write 'o.jsonl': No space left on device; ")
    assert Path("o.jsonl").is_symlink()


def test_a_disk_that_fills_up_while_scores_are_written(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import instdiff.store.parquet

    score(model)
    old = Path("scores.parquet").read_bytes()

    def filling(path: Path, *args: Any, **options: Any) -> None:
        path.write_bytes(b"PAR1 half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(instdiff.store.parquet.pq, "ParquetWriter", filling)
    assert scoring(model, output="scores.parquet") == (
        "cannot write 'scores.parquet': No space left on device; nothing was written there. "
        "Free space or choose another place, then run the command again"
    )
    assert Path("scores.parquet").read_bytes() == old


# ── ends that are nobody's fault, or ours ─────────────────────────────────────────────────────────────────────────────


def test_a_bug_keeps_its_traceback(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import instdiff.scoring.scorer

    def broken(*args: object, **options: object) -> None:
        raise ValueError("operands could not be broadcast")

    monkeypatch.setattr(instdiff.scoring.scorer, "tabulate", broken)
    ran = cli("score", "--data", "my.jsonl", "--model", model, "--method", "ifd", "--output", "s.parquet")
    assert ran.code == 1
    lines = ran.err.splitlines()
    assert "Traceback (most recent call last):" in lines
    assert lines[-2] == "ValueError: operands could not be broadcast"
    assert lines[-1] == "this is a bug of instdiff; please report it with the lines above"
    assert files() == {"my.jsonl"}


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_reader_that_leaves_is_no_bug(more: list[str]) -> None:
    """As in `instdiff methods | head -1`."""
    command = subprocess.Popen(
        [sys.executable, "-m", "instdiff", "methods", *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert command.stdout is not None and command.stderr is not None
    command.stdout.close()
    assert command.stderr.read() == ""
    assert command.wait() == 0
    command.stderr.close()


def test_all_faults_of_a_configuration_are_told_at_once() -> None:
    Path("two.yaml").write_text("ouptut: a\nlimti: 3\n")
    told = refused("score", "--config", "two.yaml").splitlines()
    assert told == [
        "2 things to fix:",
        "- two.yaml: unknown key 'ouptut'; did you mean 'output'?",
        "- two.yaml: unknown key 'limti'; did you mean 'limit'?",
    ]
    told = refused("score", "bugdet=1", "max_lenght=2", "no equals sign").splitlines()
    assert told[1:] == [
        "- 'bugdet=1': unknown key 'bugdet'; `instdiff score --help` and docs/configuration.md list the keys",
        "- 'max_lenght=2': unknown key 'max_lenght'; did you mean 'max_length'?",
        "- 'no equals sign': an override is written key.sub=value",
    ]
    told = refused("score", "max_length=no", "targets=none").splitlines()
    assert len(told) == 3 and "'max_length'" in told[1] and "'targets'" in told[2]


@pytest.mark.parametrize(
    ("words", "module", "message"),
    [
        (["pipeline"], "trl", 'training needs TRL, which is missing; run: pip install "instdiff[train]"'),
        (["compare", "--method", "ifd"], "trl", "training needs TRL"),
        (["search"], "trl", "training needs TRL"),
        (["train"], "trl", "training needs TRL"),
        (
            ["score", "--method", "random", "executor=ray"],
            "ray",
            "the executor ray needs Ray, which is missing; run: pip",
        ),
        (["pipeline", "eval.suite=math"], "math_verify", "the suite math needs math-verify"),
        (["score", "--method", "alpagasus", "--model", "judge=openai:m@http://h/v1"], "httpx2", "a judge behind"),
    ],
)
def test_packages_that_lack_are_found_before_anything_is_made(
    words: list[str], module: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in {module, "httpx"} if module == "httpx2" else {module}:
        monkeypatch.setitem(sys.modules, name, None)
    said = refused(*words, "--data", "my.jsonl", "--model", "builtin:tiny", "--output", "s.parquet")
    assert said.startswith(message)


GRADER = "openai:m@https://api.openai.com/v1"


@pytest.mark.parametrize(
    ("words", "key", "message"),
    [
        (["score", "--method", "alpagasus", "--model", f"judge={GRADER}"], "", "OPENAI_API_KEY is not set, and api."),
        (["pipeline", "eval.suite=general", f"eval.judge={GRADER}"], "", "OPENAI_API_KEY is not set, and api.openai"),
        (["compare", "--method", "ifd", "eval.suite=general", f"eval.judge={GRADER}"], "k\u20ac", "OPENAI_API_KEY has"),
        (["pipeline", "eval.suite=general", "eval.judge=openai:m"], "k", "judge 'openai:m' must be written openai:M"),
    ],
)  # fmt: skip
def test_a_judge_that_must_refuse_is_told_before_the_work(
    words: list[str], key: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    asked = words if "score" in words else [*words, "--model", "builtin:tiny"]
    assert refused(*asked, "--data", "my.jsonl", "--output", "new.parquet").startswith(message)
    assert not Path("new.parquet").exists()


def test_a_hint_for_a_file_goes_by_its_stem() -> None:
    for name in ("dup.jsonl", "esc.jsonl", "b.jsonl"):
        Path(name).write_text("{}")
    ask = ("sample", "--max-samples", "1", "--output", "o.jsonl", "--data")
    assert refused(*ask, "nope.jsonl") == "nope.jsonl is not there; check the path"
    Path("alpaca_en.json").write_text("[]")
    assert refused(*ask, "alpca_en.jsonl") == "alpca_en.jsonl is not there; did you mean alpaca_en.json?"


@pytest.mark.parametrize(
    ("key", "users"),
    [
        ("executor=ray", "compare, eval, pipeline, plan, score, search"),
        ("shared=s3://x", "plan, score"),
        ("workers=2", "compare, eval, pipeline, plan, score, search, select"),
        ("judge_tries=2", "compare, eval, pipeline, plan, score, search, select"),
    ],
)
def test_a_key_without_effect_names_the_verbs_that_use_it(key: str, users: str) -> None:
    said = refused(
        "train", "--data", "my.jsonl", "--model", "builtin:tiny", "--output", "tr", "--print-launch", "L", key
    )
    assert f"'{key.partition('=')[0]}'" in said and said.endswith(f"it is a key of {users}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train"], "a model that is trained takes 10.4 MB or more, and '{here}' has 1 MB free; free space or choose"),
        (["pipeline", "iterations=3"], "3 models that are trained take 31.1 MB or more, and '{here}' has 1 MB free; "
         "free space, give keep_models=false, or choose another --output"),
        (["compare", "--method", "ifd,longest", "seeds=[0,1]"], "4 models that are trained take 41.5 MB or more"),
        (["search"], "a model that is trained takes"),
    ],
)  # fmt: skip
def test_a_disk_that_is_too_small_is_told_before_the_work(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=10**6))
    asked = (*words, "--data", "my.jsonl", "--model", "builtin:tiny", "--output", "new/run")
    assert refused(*asked).startswith(said.format(here=Path.cwd()))
    assert not Path("new").exists()


def test_an_adapter_is_small(monkeypatch: pytest.MonkeyPatch) -> None:
    from instdiff.cli.preflight import check
    from instdiff.config.base import load
    from instdiff.config.commands import TrainConfig

    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=10**6))
    given = {"data": "builtin:demo", "model": "builtin:tiny", "output": "new"}
    check("train", load(TrainConfig, None, given, ["train.use_lora=true"]), [])
