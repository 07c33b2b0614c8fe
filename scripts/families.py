"""Which chat templates render which rows: the table of ``docs/chat-templates.md``, as the tests' matrix has it."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from instdiff.core import Prompted
from instdiff.data import load
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.rendering.renderer import Renderer
from instdiff.rendering.templates import template
from render.families import NAMES, ROWS, tokenizer

MODELS = {
    "cohere": "Command R",
    "cohere2": "Command R7B, Command A",
    "deepseek_r1_distill": "DeepSeek R1 Distill",
    "deepseekv3": "DeepSeek V3",
    "diffusion_gemma": "Diffusion Gemma",
    "gemma": "Gemma 1, 2",
    "gemma3": "Gemma 3",
    "gemma4": "Gemma 4",
    "gemma4_v2": "Gemma 4 (second)",
    "gemma4_v3": "Gemma 4 (third)",
    "gemma4_v4": "Gemma 4 (fourth)",
    "gemma4_v5": "Gemma 4 (fifth)",
    "glm4moe": "GLM-4 MoE",
    "gptoss": "gpt-oss",
    "lfm2": "LFM2",
    "lfm2_2_5": "LFM2.5",
    "lfm2_2_5_v2": "LFM2.5 (second)",
    "lfm2_v2": "LFM2 (second)",
    "llama3": "Llama 3",
    "llama3_1": "Llama 3.1",
    "llama3_2": "Llama 3.2",
    "muse_glimmer": "Muse Glimmer",
    "nemotron_3_5_lightning": "Nemotron 3.5",
    "nemotron_3_nano": "Nemotron 3 Nano",
    "nemotron_3_super": "Nemotron 3 Super",
    "nemotron_3_ultra": "Nemotron 3 Ultra",
    "phi3": "Phi-3",
    "phi3_5": "Phi-3.5",
    "qwen2_5": "Qwen2.5",
    "qwen3": "Qwen3",
    "qwen3_5_nothink": "Qwen3.5 (no thinking)",
    "qwen3_5_think": "Qwen3.5 (thinking)",
    "qwen3_6": "Qwen3.6",
    "qwen3_8": "Qwen3.8",
    "qwen3_instruct_2507": "Qwen3 Instruct 2507",
}


def families_table() -> str:
    """A line for each published template: what it does with turns, thoughts and calls, and what ends a turn."""
    head = (
        "| model family | several turns, system | `<think>` in the answer | `reasoning_content` | thoughts of earlier "
        "turns | calls (`all+calls`) | learnt end |\n| --- | --- | --- | --- | --- | --- | --- |\n"
    )
    own = [name for name in NAMES if not name.endswith("_training")]
    return head + "\n".join(_line(name) for name in own) + f"\n\nTemplates of TRL {version('trl')}."


def _line(name: str) -> str:
    hf = tokenizer(name, "byte_bpe", False)
    renderer, layout = Renderer(load(list(ROWS.values()), targets="all+calls"), HFTokenizer(hf, None)), template("chat")
    scored, learnt = renderer.rows(Prompted(), layout, 4096), renderer.training_rows(layout, 4096)
    places = {row: at for at, row in enumerate(ROWS)}

    def targets(rows: Any, row: str) -> str:
        at = places[row]
        marks = rows.target[rows.ids.offsets[at] : rows.ids.offsets[at + 1]]
        return str(hf.decode(rows.ids[at][marks].tolist()))

    def shows(row: str, words: str) -> str:
        reason = scored.reason[places[row]]
        return f"`{reason}`" if reason else "learnt" if words in targets(scored, row) else "not shown"

    several = scored.reason[places["two turns, system"]]
    single = targets(learnt, "single")
    end = single[len(targets(scored, "single")) + single.index(targets(scored, "single")) :].strip()
    cells = [
        MODELS.get(name, name),
        f"`{several}`; with `--system fold` yes" if several else "yes",
        shows("think block", "Three plus four is seven"),
        shows("reasoning_content", "Three plus four is seven"),
        shows("two turns, thinking", "Add one to one"),
        _calls(name, scored.reason[places["tool call, result"]], targets, scored),
        f"`{end.replace('|', chr(92) + '|')}`" if end else "none in the last turn",
    ]
    return f"| {' | '.join(cells)} |"


def _calls(name: str, reason: str | None, targets: Any, rows: Any) -> str:
    if reason == "rewritten":
        return "`rewritten`: it shows none; with `--targets all` the answers"
    if reason:
        return f"`{reason}`"
    return (
        "learnt"
        if "Let me look." in targets(rows, "tool call, result")
        else "learnt; the text beside a call is not shown"
    )
