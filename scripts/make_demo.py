"""Write `builtin:demo`: instruction rows of four domains in which a third carries one planted, recorded flaw.

    python scripts/make_demo.py --out FOLDER --seed 0

Without `--out` the packaged copy is written anew. The same seed gives the same bytes.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from demo_parts import arithmetic, everyday, snippets, transform
from demo_parts.rows import ANIMALS, COLOURS, FRUITS, NAMES, TOOLS, Row

DOMAINS: dict[str, Callable[[Random], Row]] = {
    "arithmetic": arithmetic.make,
    "transform": transform.make,
    "python": snippets.make,
    "everyday": everyday.make,
}
FLAWS = ("duplicate", "swapped", "truncated", "garbled", "trivial")
CLEAN_PER_DOMAIN = 330
FLAWED_PER_DOMAIN = 34
HELD_OUT_PER_DOMAIN = 100
MIN_WORDS = 8


@dataclass
class Item:
    """A training row with what is wrong with it; `source` is the row that a duplicate or a swap took from."""

    row: Row
    flaw: str = ""
    source: Item | None = None
    full: str = ""


class Fresh:
    """Clean rows of which no two ask the same."""

    def __init__(self, rng: Random) -> None:
        self.rng = rng
        self.seen: set[tuple[str, str]] = set()

    def take(self, domain: str, min_words: int = 0) -> Row:
        """Return a row of `domain` whose response has at least `min_words` words."""
        for _ in range(100_000):
            row = DOMAINS[domain](self.rng)
            key = (row.instruction, row.input)
            if key not in self.seen and len(row.output.split()) >= min_words:
                self.seen.add(key)
                return row
        raise RuntimeError(f"the generator of {domain} has no new rows left")


def cut(rng: Random, text: str) -> str:
    """A beginning of 20 to 60 % of the text that ends between two words of a sentence."""
    ends = [i for i in range(len(text)) if text[i].isspace() and 0.2 * len(text) <= i <= 0.6 * len(text)]
    inside = [i for i in ends if text[i - 1] not in ".!?:`\n "]
    return text[: rng.choice(inside)] if inside else ""


def garble(rng: Random, text: str) -> str:
    """The words in a wild order, or half of the letters replaced; most words are no longer in their place."""
    words, letters = text.split(), "abcdefghijklmnopqrstuvwxyz#@%&"
    shuffled = rng.random() < 0.5
    while True:
        if shuffled:
            result = " ".join(rng.sample(words, len(words)))
        else:
            result = "".join(rng.choice(letters) if c.isalnum() and rng.random() < 0.5 else c for c in text)
        if sum(a == b for a, b in zip(result.split(), words, strict=True)) <= 0.3 * len(words):
            return result


def trivial_pool(domain: str) -> list[tuple[str, str]]:
    """Requests that teach nothing, with their right responses."""
    things = [*FRUITS, *ANIMALS, *TOOLS]
    if domain == "transform":
        pool = [(f"Repeat the word: {word}", word) for word in things]
        return pool + [(f"Copy this: {word}", word) for word in COLOURS]
    if domain == "arithmetic":
        pool = [(f"Write the number {n}.", str(n)) for n in range(1, 40)]
        return pool + [(f"What is {n} + 0?", str(n)) for n in range(1, 20)]
    if domain == "python":
        lines = ["pass", "x = 1", "import os", "import sys", "return", "break", "continue", "True", "False", "None"]
        pool = [(f"Type this Python line: {line}", line) for line in lines]
        return pool + [(f"Write the variable name {word}.", word) for word in things]
    words = ["OK", "yes", "no", "hello", "thanks", "goodbye", "please", "sure", "welcome", "fine"]
    pool = [(f"Say {word}.", word) for word in words]
    return pool + [(f"Greet {name}.", f"Hello, {name}.") for name in NAMES]


def with_own_row(rng: Random, fresh: Fresh, domain: str, flaw: str) -> Item:
    """A truncated or garbled row, from a clean row of its own whose right response is recorded."""
    spoil = cut if flaw == "truncated" else garble
    while True:
        row = fresh.take(domain, MIN_WORDS)
        output = spoil(rng, row.output)
        if output and output != row.output:
            return Item(replace(row, output=output), flaw, full=row.output)


def swap(rng: Random, fresh: Fresh, domain: str, clean: list[Item]) -> Item:
    """A row with the response of a clean row that was made by another template."""
    row = fresh.take(domain)
    while True:
        source = rng.choice(clean)
        if (source.row.domain, source.row.kind) != (row.domain, row.kind) and source.row.output != row.output:
            return Item(replace(row, output=source.row.output), "swapped", source)


def training_items(rng: Random, fresh: Fresh) -> list[Item]:
    """Clean and flawed rows in random order; a duplicate comes after its source."""
    clean = [Item(fresh.take(domain)) for domain in DOMAINS for _ in range(CLEAN_PER_DOMAIN)]
    items = list(clean)
    for domain in DOMAINS:
        own = [item for item in clean if item.row.domain == domain]
        items += [Item(item.row, "duplicate", item) for item in rng.sample(own, FLAWED_PER_DOMAIN)]
        items += [swap(rng, fresh, domain, clean) for _ in range(FLAWED_PER_DOMAIN)]
        for flaw in ("truncated", "garbled"):
            items += [with_own_row(rng, fresh, domain, flaw) for _ in range(FLAWED_PER_DOMAIN)]
        for ask, answer in rng.sample(trivial_pool(domain), FLAWED_PER_DOMAIN):
            items.append(Item(Row(ask, "", answer, domain, "trivial"), "trivial"))
    rng.shuffle(items)
    place = {id(item): i for i, item in enumerate(items)}
    for item in list(items):
        if item.flaw == "duplicate" and item.source is not None:
            here, there = place[id(item)], place[id(item.source)]
            if here < there:
                items[here], items[there] = item.source, item
                place[id(item)], place[id(item.source)] = there, here
    return items


def flaw_records(items: list[Item]) -> Iterator[dict[str, object]]:
    place = {id(item): i for i, item in enumerate(items)}
    for i, item in enumerate(items):
        if not item.flaw:
            continue
        record: dict[str, object] = {"row": i, "flaw": item.flaw, "domain": item.row.domain}
        if item.source is not None:
            record["of" if item.flaw == "duplicate" else "from"] = place[id(item.source)]
        if item.full:
            record["full"] = item.full
        yield record


def as_json(row: Row) -> dict[str, object]:
    return {"instruction": row.instruction, "input": row.input, "output": row.output, "domain": row.domain}


def write_lines(path: Path, records: list[dict[str, object]]) -> None:
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    path.write_text(text, encoding="utf-8", newline="\n")


def card(items: list[Item], held_out: list[Row], seed: int) -> str:
    """The README.md of the folder, with counts."""
    counts = Counter((item.row.domain, item.flaw or "clean") for item in items)
    columns = ("clean", *FLAWS)
    lines = ["| domain | " + " | ".join(columns) + " | all | held out |", "|---" * (len(columns) + 3) + "|"]
    for domain in DOMAINS:
        cells = [counts[domain, column] for column in columns]
        held = sum(row.domain == domain for row in held_out)
        lines.append(f"| {domain} | " + " | ".join(map(str, [*cells, sum(cells), held])) + " |")
    totals = [sum(counts[domain, column] for domain in DOMAINS) for column in columns]
    lines.append("| all | " + " | ".join(map(str, [*totals, len(items), len(held_out)])) + " |")
    return CARD.replace("TABLE", "\n".join(lines)).replace("SEED", str(seed))


CARD = """---
license: mit
language:
  - en
task_categories:
  - text-generation
---

# demo

Instruction data with known flaws. It ships inside `instdiff` as `builtin:demo`: a selection method can be tried on it
without a download, and what it keeps can be compared with what was planted.

- `train.jsonl`: rows `{"instruction", "input", "output", "domain"}`. About a third of them carry exactly one flaw.
- `heldout.jsonl`: rows of the same form without flaws; none of them asks what a training row asks.
- `flaws.jsonl`: one line per flawed training row: `row` (its position in `train.jsonl`, from 0), `flaw`, `domain`.

TABLE

| flaw | what was done | further keys |
|---|---|---|
| duplicate | an exact copy of a clean row that comes earlier | `of`: that row |
| swapped | the response of a clean row that another template made | `from`: that row |
| truncated | the first 20 to 60 % of the response, cut inside a sentence | `full`: the whole response |
| garbled | words in a wild order, or letters and digits replaced at random | `full`: the whole response |
| trivial | a request that teaches nothing | |

Domains: `arithmetic` (word problems and expressions with written steps), `transform` (of words, lists and sentences),
`python` (tiny functions to write, run and explain), `everyday` (questions of household, nature and travel).

Made by `scripts/make_demo.py --seed SEED` from templates and hand-written tables: no text of other data sets, no model.
The arithmetic and the values of the Python examples were computed, not written down. The rows are made to be simple and
true; they are no measure of what a method does on real data. MIT licence, like the package.
"""


def main(argv: list[str] | None = None) -> None:
    default = Path(__file__).resolve().parents[1] / "src" / "instdiff" / "data" / "builtin" / "demo"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=default, help="folder to write into")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    rng = Random(args.seed)
    fresh = Fresh(rng)
    items = training_items(rng, fresh)
    held_out = [fresh.take(domain) for domain in DOMAINS for _ in range(HELD_OUT_PER_DOMAIN)]
    rng.shuffle(held_out)
    args.out.mkdir(parents=True, exist_ok=True)
    write_lines(args.out / "train.jsonl", [as_json(item.row) for item in items])
    write_lines(args.out / "heldout.jsonl", [as_json(row) for row in held_out])
    write_lines(args.out / "flaws.jsonl", list(flaw_records(items)))
    (args.out / "README.md").write_text(card(items, held_out, args.seed), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
