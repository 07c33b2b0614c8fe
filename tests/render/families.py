"""Tokenizers and rows of the matrix: every chat template that TRL ships, three kinds of tokenizers, nine rows."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

KINDS = ("byte_bpe", "sentencepiece", "unigram")
VISION = ("vl", "idefics", "llava", "smolvlm")

_SPEC = find_spec("trl")
FOLDER = Path(str(_SPEC.submodule_search_locations[0])) / "chat_templates" if _SPEC else None  # type: ignore[index]
NAMES = sorted(p.stem for p in FOLDER.glob("*.jinja") if not any(v in p.stem for v in VISION)) if FOLDER else []

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather in a city.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Its name."}}},
        },
    }
]
SYSTEM = {"role": "system", "content": "Be brief and kind."}


def ask(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def say(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


_CALL = {
    "id": "abc123def",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Lima", "days": 2}},
}
ROWS: dict[str, dict[str, Any]] = {
    "single": {"messages": [ask("What is the capital of Peru?"), say("It is Lima.")]},
    "two turns, system": {
        "messages": [SYSTEM, ask("One plus one?"), say("That is two."), ask("And one more?"), say("Then it is three.")]
    },
    "think block": {
        "messages": [ask("Three and four?"), say("<think>\nThree plus four is seven.\n</think>\n\nIt is 7.")]
    },
    "tight think": {"messages": [ask("Three and four?"), say("<think>Three plus four is seven.</think>It is 7.")]},
    "reasoning_content": {
        "messages": [ask("Three and four?"), say("It is 7.", reasoning_content="Three plus four is seven.")]
    },
    "two turns, thinking": {
        "messages": [
            ask("One plus one?"),
            say("<think>\nAdd one to one.\n</think>\n\nThat is two."),
            ask("And one more?"),
            say("<think>\nAdd one to two.\n</think>\n\nThen it is three."),
        ]
    },
    "tool call, result": {
        "messages": [
            ask("Rain in Lima?"),
            say("Let me look.", tool_calls=[_CALL]),
            {"role": "tool", "content": "dry", "tool_call_id": "abc123def", "name": "weather"},
            say("It stays dry."),
        ],
        "tools": TOOLS,
    },
    "one letter": {"messages": [ask("First letter of the alphabet?"), say("a")]},
    "repeated": {"messages": [ask("Say yes twice: yes yes"), say("yes yes")]},
}

_MARK = re.compile(
    r"<\|[^|<>{}\n]{1,40}\|>|<｜[^｜\n]{1,40}｜>|<[a-z_/][a-z_]*\|?>|<\|[a-z_]+>|\[/?[A-Z_]+\]|<[A-Z_]+>"
)
_ENDS = re.compile(
    r"<\|im_end\|>|<end_of_turn>|<turn\|>|<\|eot_id\|>|<\|end\|>|<\|return\|>|<\|END_OF_TURN_TOKEN\|>|<｜end▁of▁sentence｜>|<\|eom\|>|<\|eot\|>"
)
_TEXT_MARKS = {"<think>", "</think>", "<tools>", "</tools>", "<function>", "</function>", "<parameter>", "</parameter>"}


def template_text(name: str) -> str:
    assert FOLDER is not None
    return (FOLDER / f"{name}.jinja").read_text("utf-8")


def marks(name: str) -> list[str]:
    """Texts in a template that look like special tokens."""
    found = dict.fromkeys(mark for mark in _MARK.findall(template_text(name)) if mark not in _TEXT_MARKS)
    return [
        mark
        for mark in found
        if mark.startswith(("<|", "<｜", "[")) or mark.endswith("|>") or "turn" in mark or mark in ("<bos>", "<eos>")
    ]


def end_of(name: str) -> str | None:
    found = _ENDS.findall(template_text(name))
    return found[-1] if found else None


_CORPUS = [
    "The capital of Peru is Lima. Be brief and kind. One plus one? That is two. And one more? Then it is three.",
    "system user assistant model tool developer function name arguments weather city days description object string",
    "Three and four? Three plus four is seven. It is 7. Rain in Lima? Let me look. It stays dry. First letter, a yes",
]


@cache
def tokenizer(name: str, kind: str, named: bool) -> Any:
    """A tokenizer whose special tokens are the template's marks; ``named`` names its end token."""
    end = end_of(name) if named else None
    hf = tokenizer_with(kind, ("<s>", *marks(name)), bos_token="<s>", **({"eos_token": end} if end else {}))
    hf.chat_template = template_text(name)
    return hf


def tokenizer_with(kind: str, special: Sequence[str], **names: str) -> Any:
    """A small tokenizer of one of ``KINDS`` with special tokens, of which ``names`` names some."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    size = {"vocab_size": 600, "show_progress": False}
    if kind == "byte_bpe":
        raw = Tokenizer(models.BPE())
        raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        raw.decoder = decoders.ByteLevel()
        trainer: Any = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **size)
    elif kind == "sentencepiece":
        raw = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        raw.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        trainer = trainers.BpeTrainer(special_tokens=["<unk>", *(f"<0x{n:02X}>" for n in range(256))], **size)
    else:
        raw = Tokenizer(models.Unigram())
        raw.normalizer = normalizers.Replace(" ", "▁")
        raw.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_previous")
        raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
        trainer = trainers.UnigramTrainer(
            special_tokens=["<unk>"], unk_token="<unk>", initial_alphabet=sorted(_alphabet()), **size
        )
    raw.train_from_iterator([*_CORPUS, *map(chr, range(33, 127)), "\n\n\n"], trainer)
    raw.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in special])
    return PreTrainedTokenizerFast(tokenizer_object=raw, **names)


def _alphabet() -> set[str]:
    return {chr(n) for n in range(32, 127)} | {"▁", "\n", "\t"}
