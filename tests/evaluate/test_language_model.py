"""A model as lm-eval asks it: the numbers and answers of lm-eval's own class, from the sweep and the generator."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from helpers import Counting
from instdiff.config.base import build
from instdiff.config.evaluate import EvalConfig
from instdiff.core import ModelRef, Settings
from instdiff.errors import ConfigError
from instdiff.evaluation.harness.language_model import SweepLM
from instdiff.evaluation.harness.suite import (
    MED,
    MORE,
    OPENLLM,
    HarnessSuite,
    HarnessTask,
    _find,
    _item,
    openllm_suite,
    quietly,
)
from instdiff.evaluation.subject import Subject, make_generator
from instdiff.store import Store

REAL = Path(os.environ.get("INSTDIFF_MODELS", Path.home() / ".cache" / "instdiff-models")) / "smollm2-135m"


def subject(model: Path, home: Path, log: list[str] | None = None, **settings: Any) -> Subject:
    asked = Subject(
        "tested",
        ModelRef(str(model)),
        Settings(**{"dtype": "float32", "device": "cpu", **settings}),
        Store(home / "store"),
        home / "answers",
        None,  # type: ignore[arg-type]
        ([] if log is None else log).append,
        Counting(),
    )
    return replace(asked, generator=make_generator("hf", asked))


def hflm(model: Path, max_length: int | None = None, dtype: str = "float32") -> Any:
    """Lm-eval's own class."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quietly():
        return HFLM(
            pretrained=AutoModelForCausalLM.from_pretrained(model, dtype=dtype),
            tokenizer=AutoTokenizer.from_pretrained(model),
            batch_size=3,
            max_length=max_length,
        )


def ask(kind: str, args: Sequence[tuple[Any, ...]]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=one, idx=0) for one in args]  # type: ignore[arg-type]


def same(lm: SweepLM, other: Any, kind: str, args: Sequence[tuple[Any, ...]]) -> list[Any]:
    """What both answer to the same requests, once it is found equal."""
    found, expected = (getattr(one, kind)(ask(kind, args), disable_tqdm=True) for one in (lm, other))
    numbers = [[one[0] if isinstance(one, tuple) else one for one in said] for said in (found, expected)]
    if kind == "generate_until":
        assert found == expected
    else:
        np.testing.assert_allclose(*numbers, atol=1e-4, rtol=1e-7)  # lm-eval's sum over a window is in fp32
    if kind == "loglikelihood":
        assert [bool(greedy) for _, greedy in found] == [greedy for _, greedy in expected]
    return list(found)


# ── request by request, with tiny models ──────────────────────────────────────────────────────────────────────────────

LONG = "why the sky is blue and the grass is green, then list 7 things that are not. " * 12
PAIRS = [
    ("Question: why?\nAnswer:", " the sky"),
    ("Question: why?\nAnswer:", " the sky"),
    ("the grass ", "is green"),
    ("the grass \n ", "is green"),
    ("", "the user asks"),
    ("", "7"),
    ("the sk", "y"),
    (LONG, " blue"),
    (LONG, " green"),
    ("why", LONG[:300]),
    ("<s>the sky", " is"),
]


@pytest.fixture(params=["llama", "gpt2"])
def pair(request: Any, models: dict[str, Path], tmp_path: Path) -> tuple[SweepLM, Any]:
    model = models[request.param]
    return SweepLM(subject(model, tmp_path)), hflm(model)


def test_likelihoods_are_lm_evals(pair: tuple[SweepLM, Any]) -> None:
    found = same(*pair, "loglikelihood", PAIRS)
    assert found[0] == found[1] and found[7] != found[8]
    assert pair[0].max_length == pair[1].max_length
    assert pair[0].truncated == 2 + (len(pair[1].tok_encode("why" + LONG[:300])) > pair[1].max_length + 1)


def test_what_greedy_writing_gives_is_called_so(models: dict[str, Path], tmp_path: Path) -> None:
    lm, other = SweepLM(subject(models["llama"], tmp_path)), hflm(models["llama"])
    tokens = [lm.coder.hf.decode([number]) for number in range(300)]
    asked = [(context, text) for context in ("Explain why the sky is", "list 7", "the grass") for text in tokens]
    found = same(lm, other, "loglikelihood", asked)
    likely = [one for one, (_, greedy) in zip(asked, found, strict=True) if greedy]
    assert likely
    assert not any(greedy for _, greedy in same(lm, other, "loglikelihood", [(a, f"{b} 7 7 7 7") for a, b in likely]))


def test_long_texts_are_read_in_windows(pair: tuple[SweepLM, Any]) -> None:
    same(*pair, "loglikelihood_rolling", [("the sky is blue",), (LONG,), (LONG + LONG[:100],), ("7",)])


def test_a_shorter_context_is_lm_evals_too(models: dict[str, Path], tmp_path: Path) -> None:
    for name in ("llama", "gpt2"):
        lm = SweepLM(subject(models[name], tmp_path / name), 32)
        other = hflm(models[name], 32)
        same(lm, other, "loglikelihood", [one for one in PAIRS if len(one[1]) < 60])
        same(lm, other, "loglikelihood_rolling", [(LONG[:200],), ("why",)])


def test_answers_are_lm_evals(pair: tuple[SweepLM, Any]) -> None:
    lm, other = pair
    contexts = ["why", "the grass is", "list 7", LONG]
    (text, *_) = same(lm, other, "generate_until", [(one, {"until": [], "max_gen_toks": 12}) for one in contexts])
    stop = text[2:4]
    found = same(
        lm,
        other,
        "generate_until",
        [
            (one, {"until": [stop, "zzz"], "max_gen_toks": 12, "do_sample": False, "temperature": 0.0})
            for one in contexts
        ],
    )
    assert found[0] == text[: text.index(stop)]
    same(lm, other, "generate_until", [("<s>the sky", {"until": ["zzz"], "max_gen_toks": 12})])


def test_the_chat_template_is_lm_evals(models: dict[str, Path], tmp_path: Path) -> None:
    lm, other = SweepLM(subject(models["llama"], tmp_path, templates={"*": "chat"})), hflm(models["llama"])
    turns = [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "the"}]
    shown = lm.apply_chat_template(turns[:1])
    assert shown == other.apply_chat_template(turns[:1])
    assert lm.apply_chat_template(turns, False) == other.apply_chat_template(turns, False)
    same(lm, other, "loglikelihood", [(shown, "the sky")])
    same(lm, other, "generate_until", [(shown, {"until": ["7"], "max_gen_toks": 8})])


def test_nothing_is_computed_twice(models: dict[str, Path], tmp_path: Path) -> None:
    first = SweepLM(subject(models["llama"], tmp_path))
    told = first.loglikelihood(ask("loglikelihood", PAIRS))
    said = first.generate_until(ask("generate_until", [("why", {"until": ["zzz"]})]))
    counted = first.subject.progress
    assert counted.rows == len(set(PAIRS)) + 1  # type: ignore[attr-defined]
    again = SweepLM(subject(models["llama"], tmp_path))
    assert again.loglikelihood(ask("loglikelihood", PAIRS)) == told
    assert again.generate_until(ask("generate_until", [("why", {"until": ["zzz"]})])) == said
    assert again.subject.progress.rows == 0  # type: ignore[attr-defined]


def test_draws_differ_and_are_kept(models: dict[str, Path], tmp_path: Path) -> None:
    how = {"until": ["zzz"], "do_sample": True, "temperature": 1.0, "max_gen_toks": 8, "top_k": 5}
    log: list[str] = []
    asked = [("why", how)] * 3 + [("the", how)]
    found = SweepLM(subject(models["llama"], tmp_path, log)).generate_until(ask("generate_until", asked))
    assert len(set(found)) == 4 and log == [": answers are written without lm-eval's top_k"]
    assert SweepLM(subject(models["llama"], tmp_path)).generate_until(ask("generate_until", asked)) == found


def test_nothing_is_asked_and_nothing_is_told(models: dict[str, Path], tmp_path: Path) -> None:
    lm = SweepLM(subject(models["llama"], tmp_path))
    assert lm.loglikelihood([]) == lm.loglikelihood_rolling([]) == lm.generate_until([]) == []
    assert lm.loglikelihood(ask("loglikelihood", [("", "")])) == [(0.0, True)]
    assert lm.loglikelihood_rolling(ask("loglikelihood_rolling", [("",)]))[0] <= 0.0


# ── any task of lm-eval ───────────────────────────────────────────────────────────────────────────────────────────────


def one_task(name: str, file: Path, **values: Any) -> HarnessSuite:
    return openllm_suite(build(EvalConfig, {"task": name, "task_data": {name: str(file)}, **values}, "test"))


def lines(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    import json

    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_any_task_runs_on_its_file(models: dict[str, Path], tmp_path: Path) -> None:
    goals = [{"goal": f"explain {n}", "sol1": "the sky", "sol2": "why", "label": n % 2} for n in range(3)]
    asked = subject(models["llama"], tmp_path)
    (piqa,) = one_task("piqa", lines(tmp_path / "piqa.jsonl", goals)).run(asked)
    assert (piqa.metric, piqa.details["shots"], len(piqa.ids)) == ("acc", 0, 3)
    assert set(piqa.details["means"]) == {"acc", "acc_norm"} and piqa.higher_is_better
    texts = [{"text": f"the sky is blue and {word}"} for word in ("green", "not")]
    (lambada,) = one_task("lambada_openai", lines(tmp_path / "l.jsonl", texts)).run(asked)
    logs = SweepLM(asked).loglikelihood(
        ask("loglikelihood", [("the sky is blue and", f" {w}") for w in ("green", "not")])
    )
    assert lambada.metric == "nll" and not lambada.higher_is_better
    np.testing.assert_allclose(lambada.score, [-total for total, _ in logs])
    assert lambada.details["means"]["acc"] == np.mean([greedy for _, greedy in logs])
    pages = [{"page": "the sky is blue"}, {"page": "why the grass"}]
    (wikitext,) = one_task("wikitext", lines(tmp_path / "w.jsonl", pages)).run(asked)
    total = SweepLM(asked).loglikelihood_rolling(ask("loglikelihood_rolling", [(row["page"],) for row in pages]))
    assert wikitext.metric == "nll_per_word" and wikitext.weight is not None
    assert wikitext.value == pytest.approx(-sum(total) / wikitext.weight.sum())
    assert np.exp(wikitext.value) == pytest.approx(wikitext.details["means"]["word_perplexity"])


def test_a_group_is_its_tasks() -> None:
    found = _find("blimp")
    assert found is not None and found.group and len(found.entries()) == 67
    tag = _find("ai2_arc")
    assert tag is not None and tag.entries() == ["arc_challenge", "arc_easy"]
    changing = _find("flan_held_in")
    with pytest.raises(ConfigError, match="changes tasks that are in it"):
        assert changing is not None and changing.entries()


def test_what_cannot_be_run_is_said(models: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no task 'piqua'"):
        one_task("piqua", tmp_path / "none.jsonl")
    rows = [{"task_id": "a", "prompt": "def f():\n", "test": "", "entry_point": "f", "canonical_solution": ""}]
    code = one_task("humaneval", lines(tmp_path / "code.jsonl", rows))
    with pytest.raises(ConfigError, match=r"runs what the model has written.*--unsafe"):
        code.run(subject(models["llama"], tmp_path))


def test_a_score_of_all_items_together_is_no_items() -> None:
    sample = {"bleu": ("a", "b"), "resps": [["a"]], "target": "a"}
    assert _item("bleu", sample)[2] == "of_all_items"
    assert (
        _item("acc", {"acc": 1.0, "resps": [[(float("nan"), False)], [(-1.0, False)]], "target": 0})[2] == "non_finite"
    )


# ── twenty tasks, with a published model ──────────────────────────────────────────────────────────────────────────────

SUBJECTS = (
    *("abstract_algebra", "anatomy", "astronomy", "business_ethics", "clinical_knowledge", "college_biology"),
    *("computer_security", "econometrics", "formal_logic", "high_school_statistics", "philosophy", "virology"),
)
PUZZLES = ("boolean_expressions", "date_understanding", "navigate", "object_counting", "word_sorting")
TWENTY: tuple[tuple[HarnessTask, str], ...] = (
    (replace(OPENLLM["mmlu"], only=SUBJECTS), "mmlu/mmlu.zip"),
    (replace(OPENLLM["bbh"], only=PUZZLES), "bbh"),
    (MORE["openbookqa"], "openbookqa/openbookqa.jsonl"),
    (OPENLLM["truthfulqa"], "truthfulqa/TruthfulQA.csv"),
    (MED["medqa"], "med/medqa_test.jsonl"),
)


def replies(suite: HarnessSuite, asked: Subject, other: Any = None) -> dict[str, Any]:
    """What the model answers to each item of each task, and the metrics of it; ``other`` in place of ours."""
    from lm_eval.evaluator import evaluate

    own, out = suite.model(asked), {}
    for task, where in suite.tasks:
        entries, samples = suite._prepare(task, where, asked.log)
        for entry in entries.values():
            if entry.OUTPUT_TYPE == "generate_until":
                entry.set_config("generation_kwargs", {"max_gen_toks": suite.max_new_tokens}, update=True)
        with quietly():
            found = evaluate(
                other or own, {"tasks": entries, "groups": {}}, samples=samples, bootstrap_iters=0, log_samples=True
            )
        for name, logged in found["samples"].items():
            out[name] = [([reply[0] for reply in one["resps"]], {m: one[m] for m in one["metrics"]}) for one in logged]
    return out


def agree(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Whether answers, likelihoods and metrics are the same."""
    assert list(found) == list(expected)
    for name, items in found.items():
        assert len(items) == len(expected[name]) > 0
        for (mine, metrics), (theirs, wanted) in zip(items, expected[name], strict=True):
            if isinstance(mine[0], str):
                assert mine == theirs, name
            else:
                np.testing.assert_allclose([a for a, _ in mine], [a for a, _ in theirs], atol=1e-4, rtol=0)
                assert [bool(b) for _, b in mine] == [bool(b) for _, b in theirs], name
            assert metrics == pytest.approx(wanted, abs=1e-4), name


def twenty(shared: Path, limit: int, **values: Any) -> list[HarnessSuite]:
    """A suite for each benchmark, so that each of its tasks has the limit."""
    return [
        HarnessSuite(((task, str(shared / "data" / file)),), limit=limit * max(1, len(task.only)), **values)
        for task, file in TWENTY
    ]


@pytest.mark.shared_data
def test_twenty_tasks_with_a_tiny_model(shared: Path, tmp_path: Path) -> None:
    model = shared / "models" / "base-5m"
    other, names = hflm(model), list[str]()
    for suite in twenty(shared, 1, shots=1, max_new_tokens=4):
        asked = subject(model, tmp_path)
        found = replies(suite, asked)
        names += found
        agree(found, replies(suite, asked, other))
        asked = subject(model, tmp_path)
        assert replies(suite, asked) == found and asked.progress.rows == 0  # type: ignore[attr-defined]
    assert len(names) == len(set(names)) == 20


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.skipif(not REAL.is_dir(), reason="the published model is not on this machine")
def test_twenty_tasks_with_smollm2(shared: Path, tmp_path: Path) -> None:
    """Ours is in fp32; lm-eval's is in fp64, as its own fp32 is off by as much as is allowed here."""
    other = hflm(REAL, dtype="float64")
    for suite in twenty(shared, 4, shots=1, max_new_tokens=12):
        asked = subject(REAL, tmp_path)
        agree(replies(suite, asked), replies(suite, asked, other))
