"""Pools of four domains, and held-out rows for each, from public files in one folder.

    python scripts/domains.py --shared DIR --output runs/domains [--rows 500] [--heldout 120]
    python scripts/domains.py --output runs/pools --rows 1000 --heldout 300 --longest 256 --spoil 0.33

The first line makes what `configs/compare/domains.yaml` compares on, the second what `configs/compare/flawed*.yaml`
do. Writes ``math``, ``code``, ``medical`` and ``general`` as ``NAME.jsonl`` and ``NAME.heldout.jsonl``; with
``--spoil`` also the same rows spoiled, as ``NAME.flawed.jsonl`` (see ``spoil.py``; off-domain rows are of the other
pools). Rows are drawn by a seed; a row's text is never in both files. ``--longest`` leaves out rows of more tokens,
prompt and response in the chat template of ``--model``. Without ``--shared`` the data are in ``data`` of the folder
that INSTDIFF_SHARED names.
"""

from __future__ import annotations

import argparse
import os
import random
from collections.abc import Callable
from pathlib import Path

from spoil import Row, read, spoil, write

LETTERS = "ABCD"
MEDMCQA_ROWS = 3183
"""The first of the file; the others are another split's."""


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


def fitting(rows: list[Row], longest: int, model: str) -> list[Row]:
    """Rows of at most so many tokens, prompt and response, in a model's chat template."""
    from instdiff import load
    from instdiff.engine.sources import find_tokenizer
    from instdiff.rendering.renderer import Renderer
    from instdiff.rendering.templates import template
    from instdiff.scoring.models import parse_model

    pool = load(rows)
    seen = Renderer(pool, find_tokenizer(parse_model(model))).training_rows(template("chat"), longest + 1)
    return [rows[row] for row, count in zip(pool.rows, seen.ids.lengths(), strict=True) if 0 < count <= longest]


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
    shared = Path(os.environ.get("INSTDIFF_SHARED", "../shared")) / "data"
    parser.add_argument("--shared", type=Path, default=shared, help="folder that holds the data folders")
    parser.add_argument("--output", type=Path, default=Path("runs/domains"))
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--heldout", type=int, default=120)
    parser.add_argument("--longest", type=int, help="tokens")
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct", help="whose tokens")
    parser.add_argument("--spoil", type=float, help="share of the rows")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    pools: dict[str, list[Row]] = {}
    for name, made in DOMAINS.items():
        parts = made(asked.shared)
        heldout: list[Row] = []
        for rows in parts:
            left = fitting(rows, asked.longest, asked.model) if asked.longest else rows
            more, held = split(left, asked.rows // len(parts), asked.heldout // len(parts), asked.seed)
            pools[name], heldout = pools.get(name, []) + more, heldout + held
        write(asked.output / f"{name}.jsonl", pools[name])
        write(asked.output / f"{name}.heldout.jsonl", heldout)
        print(f"{name}: {len(pools[name])} rows, {len(heldout)} held out")
    for name, rows in pools.items() if asked.spoil is not None else ():
        others = [row for other, some in pools.items() if other != name for row in some]
        write(asked.output / f"{name}.flawed.jsonl", spoil(rows, asked.spoil, asked.seed, others))


if __name__ == "__main__":
    main()
