"""Tables of the controlled pool, made from its generator and its model's files."""

from __future__ import annotations

import json
from collections import Counter

from instdiff.data.builtin import path
from instdiff.data.builtin.skills import AMOUNTS, BEYOND, FILLER, KNOWN, LEARNABLE, rows
from instdiff.data.builtin.skills.tasks import SPECIALS, vocabulary

NOTES = {
    "partner": "a table of words",
    "plus_one": "on each digit",
    "backwards": "`reverse` under another name",
    "loud_back": "reversed and in capitals",
    "rival": "another table of twelve words",
    "sort": "digits",
}


def kinds() -> str:
    """The kinds of rows and how many there are."""
    pool = rows()
    count, noise = Counter(row["kind"] for row in pool), Counter(r["detail"] for r in pool if r["kind"] == "noise")
    amounts = [AMOUNTS[skill.name] for skill in LEARNABLE]
    (each,) = {AMOUNTS[skill.name] for skill in KNOWN}
    lines = {
        "learnable": (
            f"skills that the base lacks: {len(LEARNABLE)}, of {min(amounts)} to {max(amounts)} rows each",
            "`easy`, `medium`, `hard`",
        ),
        "known": (f"skills that the base has: {len(KNOWN)} of {each} rows each; redundant", ""),
        "noise": (
            "known and learnable skills, answered wrongly",
            f"`swapped` ({noise['swapped']}): another row's answer; `random` ({noise['random']}): any words; "
            f"`contradictory` ({noise['contradictory']}): a learnable row of the pool once more, answered as another "
            "skill would",
        ),
        "filler": ("small talk that the base can do", ""),
        "beyond": (
            "what cannot be learned from so few rows, if at all: a cipher, a secret order, a product",
            "",
        ),
        "duplicate": ("known and learnable rows once more", "the kind of the original"),
    }
    assert lines.keys() == count.keys()
    told = [
        f"| `{kind}` | {count[kind]:,} | {what} |{f' {detail} ' if detail else ' '}|"
        for kind, (what, detail) in lines.items()
    ]
    return "\n".join(["| kind | rows | what | detail |", "|---|---|---|---|", *told])


def levels() -> str:
    """The skills by how hard they are."""

    def learnable(name: str) -> str:
        more = [str(AMOUNTS[name]), *([NOTES[name]] if name in NOTES else [])]
        return f"`{name}` ({'; '.join(more)})"

    def plain(name: str) -> str:
        return f"`{name}` ({NOTES[name]})" if name in NOTES else f"`{name}`"

    found = {"known": [plain(skill.name) for skill in KNOWN]}
    for level in ("easy", "medium", "hard"):
        found[level] = [learnable(skill.name) for skill in LEARNABLE if skill.level == level]
    found |= {"beyond": [plain(skill.name) for skill in BEYOND], "filler": [plain(skill.name) for skill in FILLER]}
    assert {"easy", "medium", "hard"} == {skill.level for skill in LEARNABLE}
    return "\n".join(["| level | skills |", "|---|---|", *(f"| {k} | {', '.join(v)} |" for k, v in found.items())])


def model() -> str:
    """What the base model is."""
    folder = path("skills")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = folder / "model.safetensors"
    with weights.open("rb") as file:
        head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    tensors = [tensor for name, tensor in head.items() if name != "__metadata__"]
    count = sum(_product(tensor["shape"]) for tensor in tensors)
    (dtype,) = {tensor["dtype"] for tensor in tensors}
    assert len(vocabulary()) == config["vocab_size"]
    tied = "tied embeddings" if config["tie_word_embeddings"] else "embeddings not tied"
    said = {
        "architecture": f"Llama, {config['num_hidden_layers']} layers, hidden size {config['hidden_size']}, "
        f"intermediate size {config['intermediate_size']}, {config['num_attention_heads']} heads, {tied}: "
        f"{count:,} parameters",
        "context": f"{config['max_position_embeddings']} tokens",
        "vocabulary": f"{config['vocab_size']} tokens: one for each word, digit and line break; anything else is "
        f"`{SPECIALS[0]}`",
        "special tokens": ", ".join(f"`{name}` {at}" for at, name in enumerate(SPECIALS))
        + f"; the tokenizer puts `{SPECIALS[1]}` first",
        "template": "`plain`",
        "weights": f"{ {'BF16': 'bfloat16', 'F32': 'float32'}[dtype] }, {weights.stat().st_size / 1e6:.1f} MB",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {what} |" for name, what in said.items())])


def _product(shape: list[int]) -> int:
    out = 1
    for size in shape:
        out *= size
    return out


TABLES = {"kinds": kinds, "levels": levels, "model": model}
