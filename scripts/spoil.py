"""Spoil a share of a pool as pools are spoiled in practice; the column `flaw` says of each row what was done.

    python scripts/spoil.py my.jsonl spoiled.jsonl [--share 0.33] [--seed 0] [--others other.jsonl]

| flaw | what was done |
|---|---|
| `swapped` | the response of another row |
| `truncated` | the response ends after 20 to 60 % of it |
| `garbled` | its words in a wild order, or half of its letters replaced |
| `copy` | an exact copy of an unspoiled row that comes earlier |
| `near_copy` | such a copy with a few words around the instruction and without the response's full stop |
| `off_domain` | a row of `--others`; without it there are none of these |

There are as many of each, but a response that is too short to be cut or garbled is swapped. Unspoiled rows have
`flaw: null`. No model sees the column. The same rows, share and seed give the same bytes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from random import Random
from typing import Any

from make_demo import MIN_WORDS, cut

from instdiff.core.files import writing

Row = dict[str, Any]
FLAWS = ("swapped", "truncated", "garbled", "copy", "near_copy", "off_domain")
ASKED, SAID = ("instruction", "question", "prompt"), ("output", "response", "answer", "completion")
"""Columns of the instruction and of the response."""
LETTERS = "abcdefghijklmnopqrstuvwxyz#@%&"
BEFORE, AFTER = ("Please help: ", "Question: ", "Hello. "), (" Thank you.", " Thanks in advance.", " Answer this.")


def spoil(rows: Sequence[Row], share: float, seed: int, others: Sequence[Row] = ()) -> list[Row]:
    """The rows in their order with the column ``flaw``; ``others`` are rows of other domains."""
    rng, asked, said = Random(f"spoil|{seed}"), column(rows, ASKED), column(rows, SAID)
    kinds = FLAWS if others else FLAWS[:-1]
    out: list[Row] = [{**row, "flaw": None} for row in rows]
    # The first row stays as it is, so that every copy has a row before it.
    places = rng.sample(range(1, len(rows)), round(share * len(rows)))
    clean = sorted(set(range(len(rows))) - set(places))
    strange = cycle(rng.sample(others, len(others)))
    for number, place in enumerate(places):
        row, flaw = dict(rows[place]), kinds[number % len(kinds)]
        if flaw in ("copy", "near_copy"):
            row = dict(rows[rng.choice([one for one in clean if one < place])])
            row = near(rng, row, asked, said) if flaw == "near_copy" else row
        elif flaw == "off_domain":
            row = dict(next(strange))
        else:
            flaw, row[said] = wrong(rng, flaw, row[said], [other[said] for other in rows])
        out[place] = {**row, "flaw": flaw}
    return out


def column(rows: Sequence[Row], names: Sequence[str]) -> str:
    """Which of the columns all rows have."""
    found = next((name for name in names if all(isinstance(row.get(name), str) for row in rows)), None)
    if found is None or len(rows) < 2:
        raise SystemExit(f"two rows or more are needed, and in each of them one of {', '.join(names)}")
    return found


def wrong(rng: Random, flaw: str, text: str, all_texts: Sequence[str]) -> tuple[str, str]:
    """What was done to a response, and what it is now."""
    if flaw != "swapped" and len(set(text.split())) >= MIN_WORDS:
        spoiled = (cut if flaw == "truncated" else garble)(rng, text)
        if spoiled not in ("", text):
            return flaw, spoiled
    return "swapped", rng.choice([one for one in all_texts if one != text])


def garble(rng: Random, text: str) -> str:
    """The words in a wild order, or half of the letters and digits replaced."""
    if rng.random() < 0.5:
        return " ".join(rng.sample(text.split(), len(text.split())))
    return "".join(rng.choice(LETTERS) if one.isalnum() and rng.random() < 0.5 else one for one in text)


def near(rng: Random, row: Row, asked: str, said: str) -> Row:
    """The same row in slightly other words."""
    around = (rng.choice(BEFORE), "") if rng.random() < 0.5 else ("", rng.choice(AFTER))
    return {**row, asked: f"{around[0]}{row[asked]}{around[1]}", said: row[said].removesuffix(".")}


def read(path: Path) -> list[Row]:
    """The rows of a file of JSON lines, or of a JSON list."""
    text = path.read_text(encoding="utf-8")
    rows: list[Row] = json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    return rows


def write(path: Path, rows: Sequence[Row]) -> None:
    """Rows as JSON lines."""
    with writing(path) as aside:
        aside.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", type=Path, help="jsonl, or json with a list")
    parser.add_argument("output", type=Path)
    parser.add_argument("--share", type=float, default=0.33, help="of the rows, from 0 to 0.9")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--others", type=Path, help="rows of another domain")
    asked = parser.parse_args()
    if not 0 <= asked.share <= 0.9:
        parser.error(f"--share is {asked.share}; give a number from 0 to 0.9")
    write(asked.output, spoil(read(asked.rows), asked.share, asked.seed, read(asked.others) if asked.others else ()))


if __name__ == "__main__":
    main()
