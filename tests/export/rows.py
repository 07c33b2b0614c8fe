"""Rows of every shape, with text that is easy to spoil."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
