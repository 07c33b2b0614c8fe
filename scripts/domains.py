"""Four domains for `configs/compare/domains.yaml`: a pool and held-out rows each, from public files in one folder.

    python scripts/domains.py --shared DIR --output runs/domains [--rows 500] [--heldout 120]

Writes ``math``, ``code``, ``medical`` and ``general`` as ``NAME.jsonl`` and ``NAME.heldout.jsonl``. Rows are drawn by a
seed; a row's text is never in both files.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from instdiff.core.files import writing

Row = dict[str, str]
LETTERS = "ABCD"
MEDMCQA_ROWS = 3183
"""The first of the file; the others are another split's."""


def read(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def alpaca(path: Path, source: str) -> list[Row]:
    return [
        {"instruction": r["instruction"], "input": r.get("input") or "", "output": r.get("output") or r["response"],
         "source": source}
        for r in read(path)
        if (r.get("output") or r.get("response") or "").strip()
    ]  # fmt: skip


def gsm8k(path: Path) -> list[Row]:
    return [{"instruction": r["question"], "input": "", "output": r["answer"], "source": "gsm8k"} for r in read(path)]


def medmcqa(path: Path) -> list[Row]:
    rows = []
    for r in read(path)[:MEDMCQA_ROWS]:
        options = [r[key] for key in ("opa", "opb", "opc", "opd")]
        listed = "\n".join(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=True))
        answer = f"{LETTERS[r['cop']]}. {options[r['cop']]}" + (f"\n{r['exp']}" if r["exp"] else "")
        rows.append({"instruction": r["question"], "input": listed, "output": answer, "source": "medmcqa"})
    return rows


def split(rows: list[Row], pool: int, heldout: int, seed: int) -> tuple[list[Row], list[Row]]:
    """Rows of different texts, drawn by the seed."""
    unique = list({(r["instruction"], r["input"]): r for r in rows}.values())
    drawn = random.Random(seed).sample(unique, min(len(unique), pool + heldout))
    return drawn[heldout:], drawn[:heldout]


DOMAINS: dict[str, Callable[[Path], list[list[Row]]]] = {
    "math": lambda d: [gsm8k(d / "gsm8k/train.jsonl")],
    "code": lambda d: [
        alpaca(d / "code_alpaca/code_alpaca_2k.json", "code_alpaca_2k"),
        alpaca(d / "code_alpaca/new_codealpaca.json", "new_codealpaca"),
    ],
    "medical": lambda d: [
        medmcqa(d / "med/medmcqa_test.jsonl"),
        alpaca(d / "med/bioinstruct__test.json", "bioinstruct"),
    ],
    "general": lambda d: [
        alpaca(d / "alpaca/alpaca_union.json", "alpaca"),
        alpaca(d / "dolly/dolly_3k.json", "dolly"),
    ],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, required=True, help="folder that holds the data folders")
    parser.add_argument("--output", type=Path, default=Path("runs/domains"))
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--heldout", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    for name, made in DOMAINS.items():
        parts = made(asked.shared)
        pool: list[Row] = []
        heldout: list[Row] = []
        for rows in parts:
            more, held = split(rows, asked.rows // len(parts), asked.heldout // len(parts), asked.seed)
            pool, heldout = pool + more, heldout + held
        for rows, ending in ((pool, ".jsonl"), (heldout, ".heldout.jsonl")):
            with writing(asked.output / f"{name}{ending}") as aside:
                aside.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
        print(f"{name}: {len(pool)} rows, {len(heldout)} held out")


if __name__ == "__main__":
    main()
