"""Published models' tokenizers under their own and other families' templates: the ids that the library itself gives."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from instdiff.data import load
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.rendering.renderer import training_rows
from instdiff.rendering.templates import ChatTemplate
from render.families import NAMES, TOOLS, template_text

MODELS = Path(os.environ.get("INSTDIFF_MODELS", Path.home() / ".cache" / "instdiff-models"))
pytestmark = pytest.mark.skipif(not NAMES, reason="TRL is not installed")


def rows() -> list[dict[str, Any]]:
    """Thirty conversations: with a thought, with a call and its result, of three turns."""
    out: list[dict[str, Any]] = []
    for n in range(10):
        thought = {"role": "assistant", "content": f"It is {2 * n}.", "reasoning_content": f"Twice {n} is {2 * n}."}
        out.append({"messages": [{"role": "user", "content": f"What is {n} + {n}?"}, thought]})
        call = {
            "id": f"abc123de{n}",
            "type": "function",
            "function": {"name": "weather", "arguments": {"city": f"{n}"}},
        }
        turns: list[dict[str, Any]] = [
            {"role": "user", "content": f"Rain in town {n}?"},
            {"role": "assistant", "content": "Let me look.", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": f"abc123de{n}", "name": "weather", "content": f"{n} mm"},
            {"role": "assistant", "content": f"{n} mm of rain."},
        ]
        out.append({"messages": turns, "tools": TOOLS})
        head = "<think>\nA step.\n</think>\n\n" if n % 2 else ""
        talk = [
            ({"role": "user", "content": f"{k}?"}, {"role": "assistant", "content": f"{head}{k}."}) for k in range(3)
        ]
        out.append({"messages": [turn for pair in talk for turn in pair]})
    return out


CASES = {
    "own": {None: 30},
    "qwen3": {None: 30},
    "llama3": {None: 30},
    "llama3_1": {None: 30},
    "gemma": {None: 20, "unrenderable": 10},
    "gemma3": {None: 20, "unrenderable": 10},
}


@pytest.mark.slow
@pytest.mark.parametrize("model", ["smollm2-135m", "gemma3-270m"])
@pytest.mark.parametrize("name", CASES)
def test_ids_are_the_librarys_own(model: str, name: str) -> None:
    if not (MODELS / model).is_dir():
        pytest.skip("the real models are not here")
    hf = AutoTokenizer.from_pretrained(str(MODELS / model))
    if name == "own" and not hf.chat_template:
        pytest.skip("this base model has no template of its own")
    jinja = hf.chat_template if name == "own" else template_text(name)
    made = training_rows(load(rows()), HFTokenizer(hf, None), ChatTemplate("own", jinja), 2048)
    assert Counter(made.reason.tolist()) == CASES[name]
    for at, row in enumerate(rows()):
        if made.reason[at] is None:
            text = hf.apply_chat_template(row["messages"], tools=row.get("tools"), chat_template=jinja, tokenize=False)
            ids = hf(text, add_special_tokens=False).input_ids
            assert made.ids[at].tolist() == ids[: len(made.ids[at])]
