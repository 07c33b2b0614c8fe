"""The sweep under stress: heads that scale or cap, poisoned weights, too little memory, interruptions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from helpers import Counting, Lab, by_hand, causal, make_llama, make_tokenizer, reference, some_rows
from instdiff.core.arrays.ragged import Ragged
from instdiff.engine.forward import Forward
from instdiff.errors import EngineError
from instdiff.methods import IFD, Perplexity, ResponseEntropy

ROWS = some_rows(9)
BOTH = [Perplexity(), ResponseEntropy()]


def by_reference(folder: Path, rows: list[dict[str, str]]) -> tuple[np.ndarray, np.ndarray]:
    from transformers import AutoTokenizer

    model, hf = causal(folder), AutoTokenizer.from_pretrained(folder)
    pairs = []
    for row in rows:
        given = by_hand(hf, row, 200)["given"]
        assert given is not None
        pairs.append([values.mean() for values in reference(model, *given)])
    nll, entropy = np.array(pairs).T
    return nll, entropy


# ── the head proves itself ────────────────────────────────────────────────────────────────────────────────────────────


def granite(folder: Path) -> Path:
    from transformers import GraniteConfig, GraniteForCausalLM

    tokenizer = make_tokenizer()
    config = GraniteConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.3, logits_scaling=3.0,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    GraniteForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def gemma(folder: Path) -> Path:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    tokenizer = make_tokenizer()
    config = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=256, initializer_range=0.3,
        final_logit_softcapping=2.0, bos_token_id=1, eos_token_id=2, pad_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(0)
    Gemma2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("known", [True, False], ids=["a change that the configuration names", "another"])
@pytest.mark.parametrize("make", [granite, gemma])
def test_a_model_that_changes_its_logits(
    lab: Lab, tmp_path: Path, make: Callable[[Path], Path], known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not known:
        monkeypatch.setattr("instdiff.engine.head.FINISHES", {})
    folder, said = make(tmp_path / "m"), list[str]()
    table = lab.score(ROWS, BOTH, base=folder, log=said.append, batch_tokens=400)
    assert sum("own head" in line and "own logits" in line for line in said) == (0 if known else 1)
    nll, entropy = by_reference(folder, ROWS)
    np.testing.assert_allclose(table["perplexity"].details["nll"], nll, rtol=1e-5)
    np.testing.assert_allclose(table["entropy"].details["entropy"], entropy, rtol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_honest_model_keeps_the_fast_head(lab: Lab, name: str, dtype: str) -> None:
    said: list[str] = []
    lab.score(ROWS, BOTH, base=name, log=said.append, dtype=dtype, max_length=190)
    assert [line for line in said if "this processor has no instructions" not in line] == []


# ── non-finite numbers ────────────────────────────────────────────────────────────────────────────────────────────────


def poisoned(folder: Path, tensor: str, row: int | None = None) -> Path:
    weights = load_file(folder / "model.safetensors")
    weights[tensor][row if row is not None else ...] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


MARKED = [{**row, "output": f"so Z {row['output']}"} if at % 4 == 1 else row for at, row in enumerate(some_rows(12))]
MARKED[5] = {**MARKED[5], "output": MARKED[5]["output"] + " and this is the longest row"}


@pytest.mark.parametrize("batch_tokens", [1, 500, 100_000])
def test_exactly_the_rows_with_a_poisoned_token_are_non_finite(lab: Lab, tmp_path: Path, batch_tokens: int) -> None:
    folder = make_llama(tmp_path / "m", 0)
    (token,) = set(lab.tokenizer("llama").encode("Z", add_special_tokens=False))
    clean = lab.score(MARKED, [IFD()])["ifd"]
    poisoned(folder, "model.embed_tokens.weight", token)
    store, said = lab.store(), list[str]()
    table = lab.score(MARKED, [IFD()], base=folder, store=store, batch_tokens=batch_tokens, log=said.append)["ifd"]
    bad = np.arange(12) % 4 == 1
    assert [word == "non_finite" for word in table.reason] == bad.tolist()
    for name in ("nll_given", "nll_alone", "ifd"):
        assert np.isnan(table.details[name][bad]).all()
        np.testing.assert_allclose(table.details[name][~bad], clean.details[name][~bad], rtol=1e-5)
    np.testing.assert_allclose(table.value[~bad], clean.value[~bad], rtol=1e-5)
    assert [line for line in said if "non-finite" in line] == [
        f"warning: 3 rows of {view} by base came out non-finite" for view in ("prompted", "response only")
    ]
    # Nothing of them was kept, so the next run tries them, and only them, again.
    counting = Counting()
    again = lab.score(MARKED, [IFD()], base=folder, store=store, batch_tokens=batch_tokens, progress=counting)["ifd"]
    assert counting.rows == 2 * 3
    np.testing.assert_array_equal(again.value, table.value)


def test_a_row_that_can_be_scored_after_all(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A passing fault: what came out non-finite once is a number on the next run."""
    store, clean = lab.store(), lab.score(ROWS, [Perplexity()])["perplexity"]
    forward = Forward.__call__

    def faulty(self: Forward, batch: Any, measures: Any) -> Any:
        return {
            m: Ragged(
                np.where(np.arange(len(v.values)) < batch.counts[0], np.nan, v.values).astype(np.float32), v.offsets
            )
            for m, v in forward(self, batch, measures).items()
        }

    with monkeypatch.context() as patch:
        patch.setattr(Forward, "__call__", faulty)
        first = lab.score(ROWS, [Perplexity()], store=store)["perplexity"]
    assert (first.reason == "non_finite").sum() == 1
    counting = Counting()
    second = lab.score(ROWS, [Perplexity()], store=store, progress=counting)["perplexity"]
    assert counting.rows == 1 and second.eligible.all()
    np.testing.assert_allclose(second.value, clean.value, rtol=1e-5)


@pytest.mark.parametrize(
    "tensor", ["model.layers.1.mlp.down_proj.weight", "lm_head.weight", "model.embed_tokens.weight"]
)
def test_a_damaged_checkpoint_is_named(lab: Lab, tmp_path: Path, tensor: str) -> None:
    folder = poisoned(make_llama(tmp_path / "m"), tensor)
    with pytest.raises(EngineError) as error:
        lab.score(ROWS, [Perplexity()], base=folder)
    assert str(error.value) == f"the model's weights are not finite (first in '{tensor}'); the checkpoint is damaged"


def test_a_poisoned_output_row_makes_every_row_non_finite(lab: Lab, tmp_path: Path) -> None:
    folder = poisoned(make_llama(tmp_path / "m"), "lm_head.weight", 7)
    with pytest.raises(EngineError, match=r"first in 'lm_head\.weight'"):
        lab.score(ROWS, [Perplexity()], base=folder)
    tied = poisoned(make_llama(tmp_path / "tied", tie_word_embeddings=True), "model.embed_tokens.weight", 7)
    with pytest.raises(EngineError, match=r"first in 'model\.embed_tokens\.weight'"):
        lab.score(ROWS, [Perplexity()], base=tied)


def test_a_capped_head_is_found_behind_a_poisoned_first_row(lab: Lab, tmp_path: Path) -> None:
    """The first row has no finite logit to compare, so the comparison waits for one that has."""
    folder = granite(tmp_path / "m")
    (token,) = set(lab.tokenizer("llama").encode("Z", add_special_tokens=False))
    nll, _ = by_reference(folder, MARKED)
    weights = load_file(folder / "model.safetensors")
    assert "lm_head.weight" not in weights or not torch.equal(
        weights["lm_head.weight"], weights["model.embed_tokens.weight"]
    )
    weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"].clone())
    weights["model.embed_tokens.weight"][token] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"tie_word_embeddings": true', '"tie_word_embeddings": false'))
    said: list[str] = []
    table = lab.score(MARKED, [Perplexity()], base=folder, batch_tokens=1, log=said.append)["perplexity"]
    good = np.arange(12) % 4 != 1
    assert table.eligible.tolist() == good.tolist()
    np.testing.assert_allclose(table.details["nll"][good], nll[good], rtol=1e-5)
    assert not any("own head" in line for line in said)


# ── memory ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("at", [0, 1, 3])
def test_out_of_memory_halves_the_budget_and_changes_no_number(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    rows, undisturbed = some_rows(90, seed=4), Counting()
    clean = lab.score(rows, [IFD()], progress=undisturbed)["ifd"]
    forward, sizes = Forward.__call__, list[tuple[int, int]]()

    def scarce(self: Forward, batch: Any, measures: Any) -> Any:
        sizes.append(batch.ids.shape)
        if len(sizes) == at + 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(self, batch, measures)

    monkeypatch.setattr(Forward, "__call__", scarce)
    said, counting = list[str](), Counting()
    table = lab.score(rows, [IFD()], batch_tokens=900, log=said.append, progress=counting)["ifd"]
    np.testing.assert_allclose(table.details["nll_given"], clean.details["nll_given"], rtol=1e-5)
    np.testing.assert_allclose(table.details["nll_alone"], clean.details["nll_alone"], rtol=1e-5)
    assert [line.split(":")[0] for line in said] == ["out of memory with batches of 900 tokens"]  # said once
    assert counting.rows == undisturbed.rows > 170  # every row once in each pass, though a batch was cut anew
    first = next(size for size in sizes[at + 1 :])
    assert first[0] * first[1] <= 450 < sizes[at][0] * sizes[at][1]


def test_memory_that_is_short_in_the_first_check_does_not_end_packing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = some_rows(30, seed=4)
    clean = lab.score(rows, [IFD()])["ifd"]
    run, made, sizes = Forward._run, list[Forward](), list[int]()

    def scarce(self: Forward, module: Any, batch: Any) -> Any:
        made.append(self)
        sizes.append(batch.ids.size)
        if len(sizes) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return run(self, module, batch)

    monkeypatch.setattr(Forward, "_run", scarce)
    said = list[str]()
    table = lab.score(rows, [IFD()], store=lab.store(), batch_tokens=900, log=said.append)["ifd"]
    np.testing.assert_allclose(table.value, clean.value, rtol=1e-5)
    assert all(forward.packs for forward in made) and max(sizes[1:3]) <= 450
    assert sum("out of memory" in line for line in said) == 1


def test_a_row_that_never_fits(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: Forward, batch: Any, measures: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Forward, "__call__", never)
    with pytest.raises(EngineError, match=r"one row of \d+ tokens does not fit into memory; lower --max-length"):
        lab.score(ROWS, [Perplexity()])


# ── interruptions ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_was_computed_before_an_interruption_is_kept(lab: Lab) -> None:
    class Stop(Counting):
        def task(self, label: str, **facts: Any) -> Any:
            from contextlib import contextmanager

            @contextmanager
            def inner() -> Any:
                done = [0]

                def advance(rows: int, tokens: int) -> None:
                    done[0] += rows
                    if done[0] == 4:
                        raise KeyboardInterrupt

                yield advance

            return inner()

    store, clean = lab.store(), lab.score(ROWS, [Perplexity()])["perplexity"]
    with pytest.raises(KeyboardInterrupt):
        lab.score(ROWS, [Perplexity()], store=store, batch_tokens=1, progress=Stop())
    counting = Counting()
    again = lab.score(ROWS, [Perplexity()], store=store, progress=counting)["perplexity"]
    assert (counting.rows, counting.cached) == (len(ROWS) - 4, 4)
    np.testing.assert_allclose(again.value, clean.value, rtol=1e-5)
