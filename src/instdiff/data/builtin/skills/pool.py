"""The pool, its tests, and the rows of the known skills: drawn by a seed, every row labelled."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from itertools import accumulate, pairwise
from random import Random

from instdiff.data.builtin.skills.tasks import BEYOND, FILLER, KNOWN, LEARNABLE, SKILLS, WORDS, Skill
from instdiff.errors import DataError, did_you_mean

Record = dict[str, str]

KINDS = ("known", "learnable", "beyond", "noise", "duplicate", "filler")
PARTS = ("train", "test", "known")

AMOUNTS = {
    **dict.fromkeys((skill.name for skill in KNOWN), 120),
    **{"backwards": 60, "second": 150, "rotate": 120, "swap_ends": 120},
    **{"loud_back": 120, "minus_one": 150, "rival": 200, "sort": 240},
    **dict.fromkeys((skill.name for skill in BEYOND), 150),
    **dict.fromkeys((skill.name for skill in FILLER), 125),
}
"""Clean rows of each skill in the pool."""

NOISE = {"swapped": 260, "random": 200, "contradictory": 170}
DUPLICATES = 300
ROWS = sum(AMOUNTS.values()) + sum(NOISE.values()) + DUPLICATES
MOST_NOISE = 0.5
"""Of all rows. Beyond it there are not enough learnable rows to contradict."""
TESTS = 50
KNOWN_ROWS = 250


def rows(part: str = "train", seed: int = 0, noise: float | None = None) -> list[Record]:
    """The rows of a part, in an order drawn by the seed; in the pool, ``noise`` is the share of wrong rows.

    ``train`` is the pool of 4,000, ``test`` 50 rows of each known and learnable skill, and ``known`` 250 rows of each
    skill that the base model was trained on. No draw of ``train`` or ``known`` asks what a draw of ``test`` asks. A row
    has ``instruction``, ``input``, ``output``, ``kind`` (see `KINDS`), ``skill``, and ``detail``: of a learnable row
    how hard it is, of noise what was done, of a duplicate its original's kind. Another share of ``noise`` leaves the
    pool as large, and all other amounts in proportion.
    """
    rng = Random(f"{part}|{seed}")
    asked: set[tuple[str, str]] = set()
    if part == "test":
        made = [row for skill in (*KNOWN, *LEARNABLE) for row in _draw(rng, skill, TESTS, asked, test=True)]
    elif part == "known":
        made = [row for skill in (*KNOWN, *FILLER) for row in _draw(rng, skill, KNOWN_ROWS, asked)]
    else:
        made = _pool(rng, asked, _amounts(noise))
    rng.shuffle(made)
    return made


def rows_named(name: str) -> list[Record]:
    """The rows of ``builtin:skills[/PART][@SEED][?noise=SHARE]``.

    A DataError where the part is unknown, the seed no number, or the share not one that there can be.
    """
    place, _, query = name.removeprefix("builtin:").partition("?")
    place, _, seed = place.partition("@")
    top, _, part = place.partition("/")
    if top != "skills" or (part or "train") not in PARTS:
        there = ["builtin:skills", *(f"builtin:skills/{known}" for known in PARTS)]
        raise DataError(f"no built-in data '{name}'{did_you_mean(f'builtin:{place}', there)}")
    if not (seed or "0").isdecimal():
        raise DataError(f"'{name}': the seed '{seed}' is no whole number; write builtin:{place}@1 for another draw")
    return rows(part or "train", int(seed or 0), _noise_named(name, part, query) if "?" in name else None)


def _noise_named(name: str, part: str, query: str) -> float:
    key, _, share = query.partition("=")
    how = f"write builtin:skills@1?noise=0.4, with a share of 0 to {MOST_NOISE}"
    if key != "noise" or part in ("test", "known"):
        raise DataError(f"'{name}': the pool alone takes a question mark, and noise behind it; {how}")
    if not re.fullmatch(r"\d*\.?\d+", share) or float(share) > MOST_NOISE:
        raise DataError(f"'{name}': there is no pool with a share '{share}' of noise; {how}")
    return float(share)


def _amounts(noise: float | None) -> dict[str, int]:
    """Rows of each skill, of each kind of noise, and of duplicates: as many in all, whatever the share of noise."""
    usual = {**AMOUNTS, "duplicate": DUPLICATES}
    if noise is None:
        return {**usual, **NOISE}
    wrong = round(noise * ROWS)
    return {**_in_proportion(usual, ROWS - wrong), **_in_proportion(NOISE, wrong)}


def _in_proportion(amounts: Mapping[str, int], total: int) -> dict[str, int]:
    """Whole numbers that sum to the total."""
    ends = [round(part * total / sum(amounts.values())) for part in accumulate(amounts.values(), initial=0)]
    return {name: stop - start for name, (start, stop) in zip(amounts, pairwise(ends), strict=True)}


def _pool(rng: Random, asked: set[tuple[str, str]], amounts: Mapping[str, int]) -> list[Record]:
    clean = [row for name in AMOUNTS for row in _draw(rng, SKILLS[name], amounts[name], asked)]
    useful = [row for row in clean if row["kind"] in ("known", "learnable")]
    wrong = [*_noise(rng, useful, asked, amounts), *_contradictions(rng, useful, amounts["contradictory"])]
    copies = [{**row, "kind": "duplicate", "detail": row["kind"]} for row in rng.sample(useful, amounts["duplicate"])]
    return [*clean, *wrong, *copies]


def _draw(
    rng: Random, skill: Skill, count: int, asked: set[tuple[str, str]], *, test: bool = False
) -> Iterator[Record]:
    """Clean rows of a skill that ask what was not asked before."""
    kind = "learnable" if skill in LEARNABLE else skill.level
    detail = skill.level if skill in LEARNABLE else ""
    for _ in range(count):
        while (what := skill.ask(rng, test=test)) in asked:
            pass
        asked.add(what)
        yield _row(skill, what, skill.answer(what[1]), kind, detail)


def _row(skill: Skill, what: tuple[str, str], output: str, kind: str, detail: str) -> Record:
    ask, text = what
    return {"instruction": ask, "input": text, "output": output, "kind": kind, "skill": skill.name, "detail": detail}


def _noise(
    rng: Random, useful: list[Record], asked: set[tuple[str, str]], amounts: Mapping[str, int]
) -> Iterator[Record]:
    """Prompts of known and learnable skills, as frequent as there, under another row's answer or under any words."""
    for what in ("swapped", "random"):
        for _ in range(amounts[what]):
            skill = SKILLS[rng.choice(useful)["skill"]]
            prompt = next(_draw(rng, skill, 1, asked))
            while (output := _unfit(rng, what, useful)) == prompt["output"]:
                pass
            yield {**prompt, "output": output, "kind": "noise", "detail": what}


def _unfit(rng: Random, what: str, useful: list[Record]) -> str:
    if what == "swapped":
        return rng.choice(useful)["output"]
    return " ".join(rng.sample(WORDS, rng.randint(3, 5)))


def _contradictions(rng: Random, useful: list[Record], count: int) -> Iterator[Record]:
    """Learnable rows once more, answered as another skill would."""
    clean = [row for row in useful if row["kind"] == "learnable"]
    for row in rng.sample(clean, count):
        asked, items = SKILLS[row["skill"]], len(row["input"].split())
        others = [skill for skill in (*KNOWN, *LEARNABLE) if skill.digits == asked.digits and items <= skill.high]
        while (output := rng.choice(others).answer(row["input"])) == row["output"]:
            pass
        yield {**row, "output": output, "kind": "noise", "detail": "contradictory"}
