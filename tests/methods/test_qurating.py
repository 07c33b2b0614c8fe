"""QuRating: a classification head read in chunks, its numbers against the library's own, and the draw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import instdiff
from helpers import PLAIN, Counting, Lab, make_tokenizer, some_rows
from instdiff.core import Settings
from instdiff.data import Pool, load
from instdiff.errors import ConfigError, EngineError, PlanError
from instdiff.methods import QuRating
from instdiff.methods.qurating import gumbel
from instdiff.rendering.texts import words
from instdiff.scoring.cost import plan
from instdiff.scoring.scorer import score

from .columns import NAN, ones, run, signals

LONG = {"instruction": "Explain why the sky is blue.", "output": "the grass is green, then the sky is blue " * 60}
ROWS = [*some_rows(11, seed=3), LONG]


def make_classifier(folder: Path, labels: int = 4, *, seed: int = 0, bert: bool = False, **changes: Any) -> Path:
    """A random Llama, or an encoder, with a classification head."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

    tokenizer = make_tokenizer(bos=True)
    size: dict[str, Any] = {"vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48}
    size |= {"num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 600, "num_labels": labels}
    size |= {"initializer_range": 0.2, "pad_token_id": tokenizer.pad_token_id} | changes
    torch.manual_seed(seed)
    model = BertForSequenceClassification(BertConfig(**size)) if bert else None
    (model or LlamaForSequenceClassification(LlamaConfig(**size))).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def by_the_library(folder: Path, pool: Pool, chunk: int = 512) -> Any:
    """One chunk after the other through transformers' own class: [rows, labels]."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer, out = AutoTokenizer.from_pretrained(folder), []
    for sample in pool.samples():
        ids = tokenizer(words(sample, "row"), add_special_tokens=False).input_ids
        parts = [ids[at : at + chunk] for at in range(0, len(ids), chunk)]
        with torch.no_grad():
            logits = [model(input_ids=torch.tensor([part])).logits[0].double().numpy() for part in parts]
        out.append(np.average(logits, axis=0, weights=[len(part) for part in parts]))
    return np.array(out)


def scored(lab: Lab, pool: Pool, where: Path, method: QuRating, **more: Any) -> Any:
    store = more.pop("store", None) or lab.store()
    return score(pool, [method], {"rater": str(where)}, settings=Settings(**PLAIN), store=store, **more)["qurating"]


@pytest.mark.parametrize("bert", [False, True])
def test_ratings_are_those_of_the_library(lab: Lab, tmp_path: Path, bert: bool) -> None:
    pool, where = load(ROWS), make_classifier(tmp_path / "rater", bert=bert)
    wanted, store = by_the_library(where, pool), lab.store()
    for at, label in enumerate(("writing_style", "required_expertise", 2, "educational_value")):
        found = scored(lab, pool, where, QuRating(label=label), store=store)
        np.testing.assert_allclose(found.details["rating"], wanted[:, at], rtol=1e-4, atol=1e-5)
    again = Counting()
    scored(lab, pool, where, QuRating(label=2, temperature=1.0, seed=1), store=store, progress=again)
    assert again.rows == 0


def test_long_texts_are_cut_where_the_model_ends(lab: Lab, tmp_path: Path) -> None:
    where = make_classifier(tmp_path / "rater", 1, max_position_embeddings=128, pad_token_id=None)
    pool = load(ROWS)
    found = scored(lab, pool, where, QuRating())  # of one label the name does not matter
    np.testing.assert_allclose(found.details["rating"], by_the_library(where, pool, 128)[:, 0], rtol=1e-4, atol=1e-5)


def test_the_order_of_rows_changes_no_rating(lab: Lab, tmp_path: Path) -> None:
    where, order = make_classifier(tmp_path / "rater"), np.random.default_rng(0).permutation(len(ROWS))
    one = scored(lab, load(ROWS), where, QuRating())
    other = scored(lab, load([ROWS[at] for at in order]), where, QuRating())
    np.testing.assert_allclose(one.value[order], other.value, rtol=1e-4)
    assert [order[at] for at in other.best()] == one.best().tolist()


def test_what_is_no_classifier_is_said(lab: Lab, tmp_path: Path) -> None:
    pool = load(ROWS[:2])
    with pytest.raises(EngineError, match=r"has no classification head \(it lacks score.weight\)"):
        scored(lab, pool, lab.models["llama"], QuRating())
    where = make_classifier(tmp_path / "rater", 2, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1})
    with pytest.raises(ConfigError, match=r"has no label 'educational_value'; it has bad, good"):
        scored(lab, pool, where, QuRating())
    assert scored(lab, pool, where, QuRating(label="good")).eligible.all()
    with pytest.raises(PlanError, match=r"needs a model for role 'rater'; give --model rater=WHERE"):
        score(pool, [QuRating()], {"base": str(where)}, settings=Settings(**PLAIN), store=lab.store())
    (where / "model.safetensors").rename(where / "pytorch_model.bin")
    with pytest.raises(EngineError, match="only pickled weights"):
        scored(lab, pool, where, QuRating(label="good"))


def test_code_that_comes_with_a_model_is_never_run(lab: Lab, tmp_path: Path) -> None:
    where = make_classifier(tmp_path / "rater")
    config = json.loads((where / "config.json").read_text())
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.C", "AutoModelForSequenceClassification": "mine.M"}}
    (where / "config.json").write_text(json.dumps(config | own))
    (where / "mine.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(EngineError, match="such code is never run"):
        scored(lab, load(ROWS[:2]), where, QuRating())


def test_a_plan_has_one_pass_for_all_labels(lab: Lab, tmp_path: Path) -> None:
    where, methods = make_classifier(tmp_path / "rater"), {"a": QuRating(label=0), "b": QuRating(label=3)}
    shared: dict[str, Any] = {"settings": Settings(**PLAIN), "store": lab.store()}
    (one,) = plan(load(ROWS), methods, {"rater": str(where)}, **shared).passes
    assert (one.role, one.rows, one.measures) == ("rater", len(ROWS), ["classified", "classified"])
    assert one.flops > 0


# ── the draw ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_example() -> None:
    s = signals(4, rating=ones(1, 3, 2, 6))
    found = run(QuRating(noise=False), s)
    np.testing.assert_allclose(found.value, [-0.534522, 0, -0.267261, 0.801784], atol=1e-6)
    np.testing.assert_allclose(found.details["standard"], 2 * found.value)
    assert found.details["rating"].tolist() == [1, 3, 2, 6]
    noisy = run(QuRating(seed=7), s)
    np.testing.assert_allclose(noisy.value - found.value, gumbel(7, s))


def test_rows_without_a_rating_and_equal_ratings() -> None:
    found = run(QuRating(noise=False), signals(3, rating=ones(1, NAN, 3)))
    assert found.value[[0, 2]].tolist() == [-0.5, 0.5] and found.reason.tolist() == [None, "empty_response", None]
    assert run(QuRating(noise=False), signals(2, rating=ones(2, 2))).value.tolist() == [0, 0]
    with pytest.raises(ConfigError, match=r"'qurating.temperature' is 0"):
        QuRating(temperature=0)


@given(st.permutations(range(8)))
def test_the_draw_goes_by_content(order: list[int]) -> None:
    s = signals(8, rating=ones(*range(8)))
    one, other = run(QuRating(), s), run(QuRating(), s.take(np.array(order)))
    np.testing.assert_allclose(one.value[order], other.value)


def test_a_higher_temperature_is_nearer_to_random() -> None:
    s = signals(400, rating=ones(*np.linspace(0, 1, 400)))

    def mean(temperature: float) -> float:
        return float(np.mean([run(QuRating(temperature=temperature, seed=n), s).best()[:40].mean() for n in range(5)]))

    assert mean(0.1) > mean(1.0) > mean(2.0) > 200  # 199.5 is the mean of all
    counts = np.array(
        [run(QuRating(temperature=1.0, seed=n), signals(2, rating=ones(0, 2))).best()[0] for n in range(300)]
    )
    assert abs(counts.mean() - np.exp(1) / (np.exp(1) + np.exp(-1))) < 0.08


def test_domains_get_shares_in_proportion(lab: Lab, tmp_path: Path) -> None:
    where = make_classifier(tmp_path / "rater")
    rows = [row | {"domain": "ab"[at % 3 == 0]} for at, row in enumerate(ROWS)]
    pool = load(rows)
    found = scored(lab, pool, where, QuRating())
    chosen = instdiff.select(pool, found, "50%", group_by="domain")
    assert [row["domain"] for row in chosen.to_pandas().to_dict("records")].count("a") in (3, 4)
