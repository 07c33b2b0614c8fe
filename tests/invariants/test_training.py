"""The rows that are scored are the rows that are trained on."""

from __future__ import annotations

import numpy as np
import pytest

from helpers import Lab, reference, some_rows
from instdiff.core import ModelRef, Prompted, Settings
from instdiff.data import load
from instdiff.engine.sources import load_tokenizer, resolve
from instdiff.methods import InstructDiff
from instdiff.rendering.renderer import training_rows
from instdiff.rendering.templates import template
from instdiff.scoring.models import bind
from instdiff.scoring.scorer import Workbench


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("layout", ["alpaca", "plain", "chat"])
def test_scored_ids_plus_the_end_token(lab: Lab, name: str, layout: str) -> None:
    pool = load(some_rows(12))
    settings = Settings(max_length=120, dtype="float32", device="cpu", templates={"*": layout})
    bench = Workbench(pool, bind(str(lab.models[name])), settings, lab.store())
    scored = bench.render("base", Prompted()).rows
    tokenizer = load_tokenizer(resolve(ModelRef(str(lab.models[name]))))
    trained = training_rows(pool, tokenizer, template(layout), 120)
    end = lab.tokenizer(name).convert_tokens_to_ids("<|im_end|>" if layout == "chat" else "</s>")
    for row in range(len(pool)):
        a, b = scored.ids[row].tolist(), trained.ids[row].tolist()
        assert b == (a if scored.truncated[row] or len(a) == 120 else [*a, end])
    assert not scored.truncated.all()


def test_the_end_token_is_scored_on_request(lab: Lab) -> None:
    """With ``score_eos`` the scored mean is the training loss of the row."""
    rows = some_rows(5)
    table = lab.score(rows, [InstructDiff(score_eos=True)])
    tokenizer = load_tokenizer(resolve(ModelRef(str(lab.models["llama"]))))
    trained = training_rows(load(rows), tokenizer, template("alpaca"), 200)
    losses = []
    for row in range(5):
        a, b = trained.ids.offsets[row : row + 2]
        losses.append(
            reference(lab.reference("llama"), trained.ids[row].tolist(), trained.target[a:b].tolist())[0].mean()
        )
    np.testing.assert_allclose(table["instructdiff"].details["base_nll"], losses, rtol=1e-5)
    assert table.n_tokens.tolist() == trained.n_targets().tolist()
