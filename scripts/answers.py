"""A pool with four answers to each problem, and problems to test on, from GSM8K's example solutions.

    python scripts/answers.py --shared DIR --output runs/answers

It makes what `configs/compare/answers.yaml` compares on. One half of the problems goes to ``pool.jsonl``: a row for
the answer of each of the four models, with the ``problem``, the model as ``source`` and ``is_correct``, which the
oracle and tables may read and no other line does. The other half goes to ``test.jsonl`` with the true solutions. Which
half a problem is in is drawn by a seed. Without ``--shared`` the data are in ``data`` of the folder that
INSTDIFF_SHARED names.
"""

from __future__ import annotations

import argparse
import os
import random
from pathlib import Path

from spoil import Row, read, write

FILE = "gsm8k/example_model_solutions.jsonl"
MARK = "\nA: "
"""Stands before the number that a solution comes to."""


def answers(problem: int, row: Row) -> list[Row]:
    """The row of each model that answered."""
    said = {name: one for name, one in row.items() if isinstance(one, dict)}
    return [
        {"instruction": row["question"], "input": "", "output": one["solution"], "problem": problem, "source": name,
         "is_correct": one["is_correct"]}
        for name, one in said.items()
    ]  # fmt: skip


def test(row: Row) -> Row:
    """The true solution, and the answer as the suite ``math`` reads it."""
    question, solution = row["question"], row["ground_truth"]
    number = solution.rpartition(MARK)[2].strip()
    return {"instruction": question, "input": "", "output": solution, "question": question, "answer": f"#### {number}"}


def halves(rows: list[Row], seed: int) -> tuple[list[Row], list[Row]]:
    """Rows to choose from and rows to test on, each in the order of the file; no problem is in both."""
    unique = list({" ".join(row["question"].lower().split()): row for row in rows}.values())
    drawn = set(random.Random(seed).sample(range(len(unique)), len(unique) // 2))
    chosen = [one for at, row in enumerate(unique) if at not in drawn for one in answers(at, row)]
    return chosen, [test(row) for at, row in enumerate(unique) if at in drawn]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path(os.environ.get("INSTDIFF_SHARED", "shared")) / "data")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=42)
    asked = parser.parse_args()
    asked.output.mkdir(parents=True, exist_ok=True)
    for name, rows in zip(("pool", "test"), halves(read(asked.shared / FILE), asked.seed), strict=True):
        write(asked.output / f"{name}.jsonl", rows)
        print(f"{asked.output / name}.jsonl: {len(rows):,} rows")


if __name__ == "__main__":
    main()
