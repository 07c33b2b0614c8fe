"""``instdiff doctor``: what is planted is found, the verdict says what to do, and the next command can be run."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import instdiff
from instdiff.core.files import read_json

from .shell import Ran, cli, ok, write_jsonl
from .test_startup import run

TINY = ("--model", "builtin:tiny", "--max-length", 256, "--dtype", "float32")
RNG = np.random.default_rng(5)
WORDS = ["".join(RNG.choice(list("abcdefghijklmnopqrstuvwxyz"), 5)) for _ in range(900)]


def text(words: int) -> str:
    return " ".join(RNG.choice(WORDS, words))


def planted() -> list[dict[str, str] | str]:
    """Sixty rows of their own, and what is wrong with the rest."""
    plain = [{"instruction": text(8), "output": text(30), "domain": "a"} for _ in range(60)]
    wrong: list[dict[str, str] | str] = [*plain[:6], *({**one, "output": one["output"] + " so"} for one in plain[6:10])]
    wrong += [{"instruction": text(8), "output": "", "domain": "b"} for _ in range(3)]
    wrong += [{"instruction": text(8), "output": "Да", "domain": "b"} for _ in range(2)]
    wrong += [
        {"instruction": f"Скажи слово номер {n}", "output": f"Вот слово {n}: {n * n}", "domain": "b"} for n in range(8)
    ]
    return [*plain, *wrong, '{"instruction": "cut', '{"instruction": "no answer"}']


@pytest.fixture
def _short_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the machine's speed with a model: what it costs is told from fewer tokens."""
    monkeypatch.setattr("instdiff.engine.speed.TRIAL_S", 0.2)


short_trials = pytest.mark.usefixtures("_short_trials")


@pytest.fixture
def data() -> str:
    write_jsonl("planted.jsonl", planted())
    return "planted.jsonl"


def next_of(ran: Ran) -> list[str]:
    (line,) = [line for line in ran.err.splitlines() if line.startswith("next: ")]
    return shlex.split(line.removeprefix("next: instdiff "))


def findings(ran: Ran) -> list[str]:
    return [line.strip() for line in ran.out[ran.out.index("\nverdict\n") :].splitlines()[2:]]


def test_without_a_model(data: str) -> None:
    ran = ok("doctor", "--data", data)
    assert "  planted.jsonl: 83 rows, format alpaca (instruction, output); 2 rejected\n" in ran.out
    assert "  columns that are not read: domain\n" in ran.out
    assert re.search(r"copies of an earlier row +6 +7\.2%\n", ran.out)
    assert re.search(r"near copies of an earlier row +4 +4\.8%\n", ran.out)
    assert re.search(r"nothing to learn +3 +3\.6%\n", ran.out)
    assert "Latin 75, Cyrillic 8" in ran.out
    assert "### Response:⟦" in ran.out
    assert "longest" in ran.out and "a model for role 'base'; give --model base=WHERE" in ran.out
    assert findings(ran)[::2] == [
        "1. 10 of 83 rows (12.0%) are copies or near copies of an earlier row",
        "2. 3 of 83 rows (3.6%) teach nothing: 3 empty_response",
        "3. rows are written in several scripts: Latin 90.4%, Cyrillic 9.6%",
        "4. 2 of 85 rows (2.4%) cannot be read",
        "5. there is a column 'domain'",
    ]
    assert findings(ran)[7].startswith("-> fix or drop them; the first is planted.jsonl:84: broken JSON")
    assert len(findings(ran)) == 10, "five findings, each with what to do"
    assert next_of(ran) == [
        "select",
        "--data",
        data,
        "--method",
        "longest",
        "--budget",
        "50%",
        "--output",
        "selected.jsonl",
    ]
    ok(*next_of(ran))


TRACES = [
    {"messages": [{"role": "user", "content": f"What is {n // 2} plus 3?"},
                  {"role": "assistant", "content": f"It is {n // 2 + 3}.", "reasoning_content": text(12)}]}
    for n in range(8)
]  # fmt: skip
OF_TRACES = ("rsr", "lark", "lalp")


def test_methods_for_traces(data: str) -> None:
    def found(*rows: Any, more: tuple[object, ...] = ()) -> dict[str, Any]:
        write_jsonl("traces.jsonl", rows)
        return dict(ok("doctor", "--data", "traces.jsonl", "--json", *more).json)

    def against(told: dict[str, Any]) -> dict[str, Any]:
        return {one["name"]: one["against"] for one in told["methods"] if one["name"] in (*OF_TRACES, "hes")}

    tiny = (*TINY, "--template", "plain")
    plain = found(*(row for row in planted()[:20]), more=tiny)
    wanted = "reasoning traces are wanted: no row has a thought before its answer (`reasoning_content`, or <think>)"
    assert against(plain) == {**dict.fromkeys(OF_TRACES, wanted), "hes": None}
    assert not any("trace" in one["says"] for one in plain["findings"])

    several = found(*TRACES, more=tiny)
    assert against(several) == dict.fromkeys((*OF_TRACES, "hes"))
    because = {one["name"]: one["because"] for one in several["methods"]}
    assert because["lalp"] == because["rsr"] == "which trace of a problem suits the model: use --per prompt 1"
    (finding,) = [one for one in several["findings"] if "trace" in one["says"]]
    assert finding == {
        "says": "8 of 8 rows (100.0%) have a reasoning trace, 4 of them to a problem that an earlier one solves",
        "do": "choose among the traces of a problem: --method rsr,lark,lalp and --per prompt 1",
    }
    (finding,) = [one for one in found(*TRACES[::2])["findings"] if "trace" in one["says"]]
    assert finding["says"] == "4 of 4 rows (100.0%) have a reasoning trace, one to each problem"
    assert "between problems take `hes` or `longest`" in finding["do"]


def test_without_a_model_nothing_of_torch_is_loaded(folder: Path, data: str) -> None:
    run(folder, "doctor", "--data", data, "--json")


@short_trials
def test_with_a_model(data: str) -> None:
    ran = ok(
        "doctor", "--data", "builtin:demo", "--limit", 60, *TINY, "--template", "plain", "--json", "--output", "d.json"
    )
    found: dict[str, Any] = read_json("d.json")
    assert found == ran.json and found["begin"] == "ifd"
    assert found["lengths"]["one_token"] == 0 and found["lengths"]["limit"] == 256
    assert found["strength"]["rows"] == 60 and found["strength"]["misled"] < 0.5
    assert 0 < found["strength"]["nll"] < found["strength"]["nll_alone"]
    assert [len(one["runs"]) for one in found["examples"]] == [2, 2, 2]
    methods = {one["name"]: one for one in found["methods"]}
    assert methods["ifd"]["against"] is None and methods["ifd"]["passes"] == 2 and methods["ifd"]["seconds"] > 0
    how = {"max_length": 256, "template": "plain", "store": "fresh"}
    bill = instdiff.plan(instdiff.load("builtin:demo", limit=60), "ifd", model="builtin:tiny", **how).to_dict()
    assert methods["ifd"]["tokens"] == bill["total"]["todo_tokens"]  # type: ignore[index]
    assert methods["longest"]["passes"] == 0 and methods["longest"]["seconds"] is None
    assert methods["instructdiff"]["against"] == "a model is to be trained, and 60 rows are few for it"
    assert "--model judge=WHERE" in methods["alpagasus"]["against"] and "--target" in methods["rds"]["against"]
    assert methods["column"]["against"] == "a column of numbers is wanted: --set column.path=COLUMN"
    assert methods["decontaminate"]["against"] == "a report is wanted: instdiff decontaminate --output leaks.json"
    assert methods["selectit"]["against"].startswith("the base is asked for ratings")
    assert found["next"][:1] == ["score"] and len(found["findings"]) <= 5
    ok(*found["next"])


def test_rows_that_a_model_cuts_and_rows_of_one_token(model: str) -> None:
    rows = [{"instruction": "a", "output": "b" * n} for n in [*range(2, 60), *[300] * 20, *[1] * 22]]
    write_jsonl("lengths.jsonl", rows)
    ran = ok("doctor", "--data", "lengths.jsonl", "--model", model, "--max-length", 280, "--template", "plain")
    assert re.search(r"one token to learn +22 +22\.0%\n", ran.out)
    assert re.search(r"cut at 280 tokens +20 +20\.0%\n", ran.out)
    assert "20 of 100 rows (20.0%) are cut at 280 tokens" in ran.out and "-> give --max-length 3" in ran.out
    assert "22 of 100 rows (22.0%) teach a single token" in ran.out
    assert "--max-length 280" in shlex.join(next_of(ran)) and "--template plain" in shlex.join(next_of(ran))


@short_trials
def test_a_model_that_the_prompt_does_not_help_is_called_weak() -> None:
    """The embedded model never saw Alpaca's words."""
    ran = ok("doctor", "--data", "builtin:demo", "--limit", 40, *TINY, "--template", "alpaca")
    first, do, *_ = findings(ran)
    said = re.fullmatch(r"1\. the prompt does not help the model in (\d+)% of (\d+) rows \(IFD of 1 or more\)", first)
    assert said and 50 <= int(said[1]) <= 100 and 33 <= int(said[2]) <= 40
    assert do.startswith("-> see that --template is the model's, and take a stronger model")
    assert f"ifd: IFD is 1 or more in {said[1]}% of the rows, which are left out: the model is too weak" in ran.out
    assert "instructdiff, learnability: a model is to be trained, and 40 rows are few for it" in ran.out
    assert next_of(ran)[0] == "select"


@short_trials
def test_a_model_that_is_too_slow_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("instdiff.scoring.strength.TRIAL_S", 0.0)
    ran = ok("doctor", "--data", "builtin:demo", "--limit", 40, *TINY)
    assert "too slow on this machine for a trial of a few seconds" in ran.out and next_of(ran)[0] == "score"
    monkeypatch.setattr("instdiff.experiments.doctor.LONG_S", 0.0)
    first, do, *_ = findings(ok("doctor", "--data", "builtin:demo", "--limit", 40, *TINY, "--template", "plain"))
    assert re.fullmatch(r"1\. `ifd` takes about [\d.]+ (s|min) on this machine for all rows", first)
    assert do.startswith("-> take a smaller model")


def test_rows_that_teach_nothing() -> None:
    write_jsonl("silent.jsonl", [{"instruction": f"say {n}", "output": ""} for n in range(30)])
    ran = ok("doctor", "--data", "silent.jsonl", *TINY)
    assert findings(ran)[0] == "1. 30 of 30 rows (100.0%) teach nothing: 30 empty_response"
    assert next_of(ran)[0] == "render"
    ok(*next_of(ran))
    assert "next: " not in ok("doctor", "--data", "silent.jsonl").err


def test_calls_that_nobody_learns_have_their_option() -> None:
    call = {"type": "function", "function": {"name": "rain", "arguments": {"city": "Lima"}}}
    said = [{"role": "user", "content": "Rain?"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    write_jsonl("calls.jsonl", [{"messages": said}])
    first, do, *_ = findings(ok("doctor", "--data", "calls.jsonl"))
    assert first == "1. 1 of 1 rows (100.0%) teach nothing: 1 no_target" and do.startswith("-> --targets all+calls")
    assert "teach nothing" not in ok("doctor", "--data", "calls.jsonl", "--targets", "all+calls").out


@short_trials
def test_a_small_model_alone_has_the_methods_of_its_role() -> None:
    ran = ok("doctor", "--data", "builtin:demo", "--limit", 60, "--model", "proxy=builtin:tiny", "--json")
    against = {one["name"]: one["against"] for one in ran.json["methods"]}
    assert ran.json["template"] == "plain" and ran.json["begin"] == "superfiltering"
    assert against["superfiltering"] is against["superfiltering_d"] is against["tshirt"] is None
    assert against["ifd"] == "a model for role 'base'; give --model base=WHERE"
    assert [one["because"] for one in ran.json["methods"] if one["name"] == "superfiltering_d"] == [
        "how much the prompt helps"
    ]


def test_standard_input_has_no_next_command() -> None:
    line = json.dumps({"instruction": "say it", "output": "here it is"})
    assert "next: " not in ok("doctor", "--data", "-", stdin=f"{line}\n").err


def test_what_is_wrong_is_one_sentence() -> None:
    assert cli("doctor").error == "no data is named; give --data FILE"
    assert "no model folder './nowhere'" in cli("doctor", "--data", "my.jsonl", "--model", "./nowhere").error
    assert (
        "unknown key 'cluster'; it is a key of compare" in cli("doctor", "--data", "my.jsonl", "cluster=gpus=1").error
    )


def test_in_python() -> None:
    found = instdiff.doctor([{"instruction": f"say {text(3)}", "output": text(9)} for _ in range(20)])
    assert repr(found) == (
        "<Diagnosis of 20 rows from rows\n  1. 20 rows are few: a tenth is 2; take a larger --budget>"
    )
    assert "<td>20 rows are few</td>" in found._repr_html_()
    assert found.begin == "longest" and found.model is None and found.to_dict()["lengths"] is None
    clean = instdiff.doctor([{"instruction": f"say {text(6)}", "output": text(20)} for _ in range(1000)])
    assert [one.says for one in clean.findings] == ["nothing stands in the way"]
    assert clean.findings[0].do == "begin with `longest`, and compare it with random rows"
