"""Methods that ask, demonstrate and anchor, through real passes, against a plain reference row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import Counting, Lab, by_hand, reference, some_rows
from instdiff.core import Noisy, Prompted, ResponseOnly
from instdiff.core.arrays.ragged import Ragged
from instdiff.data import load
from instdiff.engine.noise import Addressed
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.errors import DataError
from instdiff.methods import MIWV, Nuggets, SelectIT, TShirt
from instdiff.methods.algorithms.digit_ratings import sentence_level, token_level
from instdiff.methods.algorithms.kmeans import anchors as nearest_to_centres
from instdiff.methods.algorithms.neighbours import bm25
from instdiff.methods.ifd import IFD
from instdiff.rendering.renderer import Renderer
from instdiff.rendering.templates import template

ROWS = some_rows(10, seed=2)


def pieces(lab: Lab, name: str) -> tuple[list[tuple[list[int], list[bool]]], list[int], list[int]]:
    """Each row's ids and targets, the start token if rows have one, and what follows a demonstration: end and gap."""
    hf = lab.tokenizer(name)
    given = [by_hand(hf, row, 200)["given"] for row in ROWS]
    assert all(row is not None for row in given)
    lead = [] if hf.bos_token_id is None else [hf.bos_token_id]
    join = [hf.eos_token_id, *hf("\n\n", add_special_tokens=False).input_ids]
    return [row for row in given if row is not None], lead, join


def behind(shown: list[int], row: tuple[list[int], list[bool]], lead: list[int], join: list[int], most: int) -> Any:
    """A row after another one: ids and targets."""
    ids, target = row
    context = [*shown[len(lead) :], *join][-(most - len(ids)) :]
    return [*lead, *context, *ids[len(lead) :]], [*[False] * (len(lead) + len(context)), *target[len(lead) :]]


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_selectit(lab: Lab, tmp_path: Path, name: str) -> None:
    path = tmp_path / "ask.yaml"
    path.write_text(
        'prompts: ["1 to 5? {{ instruction }} {{ response }}\\n", "{{ response }}, how good?\\n"]', encoding="utf-8"
    )
    method = SelectIT(questions=2, prompts=str(path))
    out = lab.score(ROWS, [method], base=name, max_length=190)["selectit"]
    hf, model = lab.tokenizer(name), lab.reference(name)
    digits = hf.convert_tokens_to_ids(list("12345"))
    lead = [] if hf.bos_token_id is None else [hf.bos_token_id]
    p = np.zeros((len(ROWS), 2, 5))
    for at, row in enumerate(ROWS):
        asked = (f"1 to 5? {row['instruction']} {row['output']}\n", f"{row['output']}, how good?\n")
        for number, text in enumerate(asked):
            ids = lead + hf(text, add_special_tokens=False).input_ids
            with torch.no_grad():
                p[at, number] = model(torch.tensor([ids])).logits[0, -1].softmax(-1)[digits].numpy()
    each = token_level(p)
    np.testing.assert_allclose(out.details["token_level"], each[:, 0], rtol=1e-4)
    np.testing.assert_allclose(out.value, sentence_level(each), rtol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_miwv(lab: Lab, name: str) -> None:
    counting = Counting()
    out = lab.score(ROWS, [MIWV(retrieval="bm25")], base=name, max_length=180, progress=counting)["miwv"]
    near = bm25([r["instruction"] + ("\n" + r["input"] if r["input"] else "") for r in ROWS])[:, 0]
    rows, lead, join = pieces(lab, name)
    for at, row in enumerate(rows):
        zero = reference(lab.reference(name), *row)[0].mean()
        shown = behind(rows[near[at]][0], row, lead, join, 180)
        assert len(shown[0]) <= 180
        one = reference(lab.reference(name), *shown)[0].mean()
        np.testing.assert_allclose(out.details["nll_zero_shot"][at], zero, rtol=1e-4)
        np.testing.assert_allclose(out.details["nll_one_shot"][at], one, rtol=1e-4)
        np.testing.assert_allclose(out.value[at], one - zero, rtol=1e-3, atol=1e-5)
    assert out.details["neighbour"].tolist() == near.tolist()
    assert counting.rows == 2 * len(ROWS)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_nuggets(lab: Lab, name: str) -> None:
    rows, lead, join = pieces(lab, name)
    model = lab.reference(name)
    vectors = []
    for ids, _ in rows:
        with torch.no_grad():
            vectors.append(model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0].mean(0).numpy())
    anchors = nearest_to_centres(np.array(vectors), 3, seed=0)
    few = [rows[row] for row in anchors]
    alone = np.array([reference(model, *row)[0].mean() for row in few])
    out = lab.score(ROWS, [Nuggets(anchors=3, limit=190)], base=name, max_length=185)["nuggets"]
    for at, (ids, _) in enumerate(rows):
        given = np.array([reference(model, *behind(ids, row, lead, join, 185))[0].mean() for row in few])
        others = np.array(anchors) != at
        np.testing.assert_allclose(out.details["saved"][at], (alone - given)[others].mean(), rtol=1e-3, atol=1e-4)
        assert out.value[at] == (given < alone)[others].mean()


def test_nuggets_with_an_anchor_whose_prompt_fills_the_limit(lab: Lab) -> None:
    """As published: an anchor counts for itself, and the one whose response is cut away is a loss for every row."""
    rows, lead, join = pieces(lab, "llama")
    rows, model = rows[:5], lab.reference("llama")
    prompts = [target.index(True) for _, target in rows]
    limit, longest = max(prompts), int(np.argmax(prompts))
    few = [(ids[:limit], target[:limit]) for at, (ids, target) in enumerate(rows) if at != longest]
    alone = np.array([reference(model, *row)[0].mean() for row in few])
    method = Nuggets(anchors=5, limit=limit, compat="official")  # five clusters of five rows
    out = lab.score(ROWS[:5], [method], max_length=185)["nuggets"]
    for at, (ids, _) in enumerate(rows):
        given = np.array([reference(model, *behind(ids, row, lead, join, 185))[0].mean() for row in few])
        assert out.value[at] == pytest.approx((given < alone).sum() / 5)
    with pytest.raises(DataError, match="5 anchors are asked for, 4 rows have"):
        lab.score(ROWS[:5], [Nuggets(anchors=5, limit=limit)], max_length=185)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_tshirt(lab: Lab, name: str) -> None:
    """Clean IFD is that of ``ifd``; a draw is what the model says to embeddings with the noise added in plain sight."""
    methods = [TShirt(draws=3, k=100, keep_misled=True), IFD()]
    table = lab.score(ROWS, methods, base=name, templates={"*": "alpaca", "proxy": "alpaca"})
    out = table["tshirt"]
    np.testing.assert_allclose(out.details["ifd"], table["ifd"].details["ifd"], rtol=1e-6)
    model, maker = lab.reference(name), Renderer(load(ROWS), HFTokenizer(lab.tokenizer(name), 192))
    each = np.zeros((len(ROWS), 3))
    for draw in range(3):
        for sign, view in ((1, Prompted()), (-1, ResponseOnly())):
            rows = maker.rows(Noisy(view, draw), template("alpaca"), 200)
            assert rows.noise is not None
            for at in range(len(ROWS)):
                target = Ragged(rows.target, rows.ids.offsets)[at]
                noise = Addressed.of(rows.noise, np.array([at]), [target], 32).values(32, torch.device("cpu"))
                ids = torch.tensor(rows.ids[at].astype(int))[None]
                with torch.no_grad():
                    logits = model(inputs_embeds=model.get_input_embeddings()(ids) + noise).logits[0].log_softmax(-1)
                hit = np.flatnonzero(target)
                each[at, draw] -= sign * float(logits[hit - 1, ids[0, hit]].mean())
    np.testing.assert_allclose(out.details["avg_noisy_ifd"], np.exp(each).mean(1), rtol=1e-3)
    np.testing.assert_allclose(out.details["std_noisy_ifd"], np.exp(each).std(1), rtol=1e-2, atol=1e-4)
    np.testing.assert_allclose(out.value, out.details["avg_noisy_ifd"], rtol=1e-4)


def test_noise_costs_nothing_twice(lab: Lab) -> None:
    store, first, again, more = lab.store(), Counting(), Counting(), Counting()
    lab.score(ROWS, [TShirt(draws=2)], store=store, progress=first)
    lab.score(ROWS, [TShirt(draws=2, k=75.0, gamma=3.0)], store=store, progress=again)
    lab.score(ROWS, [TShirt(draws=3)], store=store, progress=more)
    assert (first.rows, again.rows, more.rows) == (6 * len(ROWS), 0, 2 * len(ROWS))


def test_the_start_token_of_a_response_alone_is_told_and_recorded(lab: Lab) -> None:
    said: list[str] = []
    table = lab.score(some_rows(4), [IFD(), TShirt(draws=1)], base="gpt2", log=said.append)
    assert [line for line in said if "start token" in line] == [
        f"the tokenizer of {lab.models['gpt2']} adds no start token; the response alone stands after '</s>'"
    ]
    assert table.meta["models"]["base"]["start_token"] == "</s>"
    said.clear()
    table = lab.score(some_rows(4), [IFD()], log=said.append)
    assert not [line for line in said if "start token" in line]
    assert table.meta["models"]["base"]["start_token"] == "<s>"
