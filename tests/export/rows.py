"""Rows of every shape, with text that is easy to spoil."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from helpers import make_llama
from instdiff.data import load

HARD = "  two  spaces\r\n\ttab {{name}} \\n “ß” 𝔘 \u202e\u0007 end \n"
TOOLS = [{"name": "find", "description": "Finds.", "parameters": {"type": "object", "properties": {"q": {}}}}]
PLAIN = [
    {"instruction": "Add.", "input": "", "output": "It is 12.", "source": "a"},
    {"instruction": HARD, "input": "", "output": HARD, "source": "b"},
    {"instruction": "Name a colour.", "input": "", "output": "Red.", "source": "a"},
]
INPUTS = [*PLAIN, {"instruction": "Add.", "input": "5 and 7\n", "output": "12", "source": "c"}]
HISTORY = [
    *INPUTS,
    {
        "instruction": "And then?",
        "input": "",
        "output": "Then.",
        "system": "Be brief.",
        "history": [["First?", "First."], ["Second?", HARD]],
    },
]
CHAT: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": HARD}]},
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "One?"},
            {"role": "assistant", "content": "One."},
            {"role": "user", "content": "Two?"},
            {"role": "assistant", "content": "Two."},
        ]
    },
]
CALLS: list[dict[str, Any]] = [
    *CHAT,
    {
        "messages": [
            {"role": "user", "content": "Find it."},
            {
                "role": "assistant",
                "content": "I look.",
                "tool_calls": [{"function": {"name": "find", "arguments": '{"q": "ä", "n": 2}'}}],
            },
            {"role": "tool", "content": '{"found": 1}'},
            {"role": "assistant", "content": "There."},
        ],
        "tools": TOOLS,
    },
]
ODD_CALL = {
    "conversations": [
        {"from": "human", "value": "Go."},
        {"from": "function_call", "value": "go(now)"},
        {"from": "observation", "value": "gone"},
        {"from": "gpt", "value": "Done."},
    ]
}


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8", newline="")
    return str(path)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def ids(path: str | Path) -> list[str]:
    return load(str(path)).ids


TOOL = {
    "type": "function",
    "function": {
        "name": "rain",
        "description": "rain of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
SINGLE: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "Capital of Peru?"}, {"role": "assistant", "content": "It is Lima."}]},
    {"messages": [{"role": "user", "content": "First letter of the alphabet?"}, {"role": "assistant", "content": "a"}]},
]
SEVERAL: list[dict[str, Any]] = [
    *SINGLE,
    {
        "messages": [
            {"role": "user", "content": "One?"},
            {"role": "assistant", "content": "It is 1."},
            {"role": "user", "content": "Two?"},
            {"role": "assistant", "content": "It is 2."},
        ]
    },
]
THOUGHT: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": "3+4?"},
            {"role": "assistant", "content": "It is 7.", "reasoning_content": "3 and 4 make 7."},
        ]
    }
]
TOOLS_USED: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": "Rain in Lima?"},
            {
                "role": "assistant",
                "content": "I look.",
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "rain", "arguments": {"city": "Lima"}}}
                ],
            },
            {"role": "tool", "tool_call_id": "c1", "name": "rain", "content": '{"mm": 0}'},
            {"role": "assistant", "content": "None."},
        ],
        "tools": [TOOL],
    }
]
FLAGGED: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": "Capital of Peru?"},
            {"role": "assistant", "content": "It is Cusco.", "train": False},
            {"role": "user", "content": "Sure?"},
            {"role": "assistant", "content": "No: Lima.", "train": True},
        ]
    }
]


def record(
    path: str,
    *,
    template: str,
    model: str,
    max_length: int = 200,
    template_fingerprint: str | None = None,
    **settings: Any,
) -> None:
    """The record of a selection beside its rows."""
    base = {"where": model, "template": template, "template_fingerprint": template_fingerprint}
    facts = {
        "method": "ifd",
        "rows": list(range(len(ids(path)))),
        "ids": list(ids(path)),
        "settings": {"max_length": max_length, "targets": "all", **settings},
        "models": {"base": base},
    }
    place = Path(path)
    place.with_name(f"{place.stem}.selection.json").write_text(json.dumps(facts))


def of_trl(name: str, folder: Path) -> Path:
    """A tiny model with one of the chat templates that TRL ships, its marks as special tokens."""
    import trl as package
    from transformers import AutoTokenizer

    text = (Path(package.__file__).parent / "chat_templates" / f"{name}.jinja").read_text(encoding="utf-8")
    place = make_llama(folder / name, chat=text, vocab_size=400, max_position_embeddings=2048)
    tokenizer = AutoTokenizer.from_pretrained(place)
    marks = set(re.findall(r"<\|[^|<>\s]+\|>|<(?:start|end)_of_turn>|</?think>|</?tool_call>", text))
    tokenizer.add_tokens(sorted(marks), special_tokens=True)
    tokenizer.save_pretrained(place)
    return place
