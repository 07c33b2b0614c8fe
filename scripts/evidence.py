"""Tables of what scores agree with, from committed benchmark records, for docs/evidence.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
KINDS = ("duplicate", "swapped", "truncated", "garbled", "trivial")
SCORES = {
    "miwv": "MIWV, nearest row", "miwv_random": "MIWV, random row", "one_shot": "one-shot NLL, nearest row",
    "one_shot_random": "one-shot NLL, random row", "perplexity": "NLL (perplexity, highest first)",
    "ifd": "IFD", "ifd_unfiltered": "IFD, nothing filtered",
}  # fmt: skip

Record = dict[str, Any]


def records(name: str, kind: str | None = None) -> list[Record]:
    """What a benchmark wrote on the machine that the documents speak of."""
    found: list[Record] = json.loads((RESULTS / f"{name}-2-cores.json").read_text(encoding="utf-8"))
    return [record for record in found if kind in (None, record.get("kind"))]


def lines(heads: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, ["---"] * len(heads), *rows])


def number(value: float | None, digits: int = 2) -> str:
    """Two decimals; a dash where there is nothing to measure."""
    return "–" if value is None or value != value else f"{value:.{digits}f}"


def percent(share: float) -> str:
    return f"{share:.0%}".replace("%", " %")


def against(low: float, high: float, chance: float, words: tuple[str, str]) -> str:
    """Whether an interval lies on one side of chance."""
    return words[0] if high < chance else words[1] if low > chance else "no difference seen"


def flaws() -> str:
    """One line per method: AUC overall and by kind, and the best tenth."""
    heads = [
        "method",
        "rows ranked",
        "AUC",
        "",
        *KINDS,
        "flawed in the best tenth",
        f"against {percent(records('flaws')[0]['base_rate'])}",
    ]
    return lines(heads, [flaws_line(record) for record in records("flaws")])


def filters() -> str:
    """One line for each choice of a tenth of the response tokens by a published model."""
    heads = ["a tenth of the response tokens by", "rows", "flawed", "95 % interval", *KINDS]
    rows = []
    for record in records("flaws-smollm2"):
        low, high = percent(record["best_low"]), percent(record["best_high"])
        of_kinds = [percent(record[f"best_{kind}"]) for kind in KINDS]
        rows.append(
            [record["method"], str(record["best_rows"]), percent(record["best_flawed"]), f"{low} to {high}", *of_kinds]
        )
    return lines(heads, rows)


def flaws_line(record: Record) -> list[str]:
    low, high = record["auc_low"], record["auc_high"]
    best = [percent(record[key]) for key in ("best_flawed", "best_low", "best_high")]
    return [
        f"`{record['method']}`", f"{record['ranked']:,}",
        f"{number(record['auc'])} [{number(low)}, {number(high)}]",
        against(low, high, 0.5, ("worse than chance", "better")),
        *(number(record[f"auc_{kind}"]) for kind in KINDS),
        f"{best[0]} [{best[1]}, {best[2]}]",
        against(record["best_low"], record["best_high"], record["base_rate"], ("fewer", "more")),
    ]  # fmt: skip


def skills() -> str:
    """One line per score: AUC for rows of skills that the model lacks."""
    heads = ["score, highest first", "AUC", "range over halves", "demonstration of the same skill", "lacking filtered"]
    rows = []
    for record in records("skills", "score"):
        same, gone = record["same_skill"], record["lacking_filtered"]
        low, high = number(record["auc_low"]), number(record["auc_high"])
        rows.append([
            SCORES[record["score"]], number(record["auc"]), f"{low} to {high}",
            "–" if same is None else percent(same), percent(gone),
        ])  # fmt: skip
    return lines(heads, rows)


def skill_means() -> str:
    """One line per skill: mean scores where it is present, and where it is lacking."""
    fields = {"zero_shot": "NLL", "one_shot": "one-shot NLL", "miwv": "MIWV", "miwv_random": "MIWV, random row"}
    fields |= {"ifd_unfiltered": "IFD"}
    rows = [
        [record["skill"], *(f"{number(record[f'present_{f}'])} / {number(record[f'lacking_{f}'])}" for f in fields)]
        for record in records("skills", "skill")
    ]
    return lines(["skill, present / lacking", *fields.values()], rows)


def skill_aucs() -> str:
    """One line per skill: AUC of its rows where it is lacking against those of the skills that are present."""
    rows = [
        [record["skill"], str(record["halves_lacking"]), *(number(record[f"auc_{name}"]) for name in SCORES)]
        for record in records("skills", "skill")
        if record["halves_lacking"]
    ]
    return lines(["lacking skill", "halves", *SCORES.values()], rows)


def halves() -> str:
    """One line per model that was trained."""
    rows = [
        [str(record["seed"]), ", ".join(record["present"]), ", ".join(record["lacking"]), number(record["loss"])]
        for record in records("skills", "half")
    ]
    return lines(["seed", "trained on", "lacking", "last training loss"], rows)


def coverage() -> str:
    """One line per simulated case."""
    heads = ["case", "items", "seeds, line and control", "spread of seeds / items", "intervals that hold"]
    rows = [
        [
            one["name"],
            str(one["items"]),
            f"{one['seeds']} and {one['control_seeds']}",
            f"{one['seed_sd']:g} / {one['item_sd']:g}{' logits' if one['answers'] else ''}",
            f"{100 * one['coverage']:.1f} %",
            f"{100 * one['own_coverage']:.1f} %",
            f"{100 * one['false_families']:.1f} %",
        ]
        for one in records("coverage")
    ]
    return lines([*heads, "of single lines", "false families"], rows)


TABLES = {
    "flaws": flaws, "coverage": coverage, "skills": skills, "skill means": skill_means, "skill aucs": skill_aucs,
    "halves": halves, "filters": filters,
}  # fmt: skip
