"""Why a row has its score, or none, in sentences: on which side of which cut it lies."""

from __future__ import annotations

from typing import Any

import numpy as np

from instdiff.core import Floats, Method, Scored
from instdiff.methods import IFD, AlpaGasus, InstructDiff, Nuggets, TShirt

WORDS = {
    "empty_response": "there is no response to score",
    "empty_instruction": "there is no instruction to score",
    "too_short": "too little of the response can be scored",
    "too_long": "the prompt fills the length limit, so that nothing of the response is left",
    "non_finite": "a number that it needs is missing or not finite",
    "warmup": "it is one of the warm-up rows, which are left out",
    "not_reached": "the method takes one row after the other and stopped before it; a larger budget goes on from there",
    "no_answer": "the judge was not reached, or gave no answer",
    "unparsable": "the judge wrote no number",
    "no_context": "the prompt is empty and the tokenizer has no start token, so nothing predicts the first token",
    "unrenderable": "the chat template cannot render it",
    "no_neighbour": "no other row was found to stand before it as a demonstration",
    "misaligned": "the end of its prompt merges with the response into one token",
    "multi_turn": "it has several responses, and the published way knows rows with one",
    "no_signal": "what the method looks at is missing for it",
    "no_score": "the judge's score is missing for it",
    "no_vector": "its embedding is missing",
}
"""What the reasons in a score file mean."""


def reasons(scored: Scored, at: int) -> list[str]:
    """Sentences about one row by one method."""
    word = scored.reason[at]
    out = []
    if word is not None:
        said = WORDS.get(str(word))
        if word == "filtered":
            said = "the method's own filter leaves it out"
        out.append(f"no score ({word}): {said or 'the method says so'}")
    rules = [rule for kind, rule in _RULES if isinstance(scored.method, kind)]
    if scored.eligible[at] or word == "filtered":
        out += [sentence for rule in rules for sentence in rule(scored, at)]
    if word == "filtered" and len(out) == 1:
        out.append(f"`instdiff methods {scored.method.name or scored.name}` says what the filter is")
    return out


def rank_of(values: Floats, at: int) -> dict[str, Any]:
    """A row's place among all that have a number, the highest first; ``above`` is the share that lies below it."""
    finite = values[np.isfinite(values)]
    value = float(values[at]) + 0.0  # so that no -0 is shown
    if not np.isfinite(value):
        return {"value": None, "rank": None, "of": len(finite), "above": None}
    below = int((finite < value).sum())
    rank = 1 + int((finite > value).sum())
    return {"value": value, "rank": rank, "of": len(finite), "above": below / len(finite)}


def number(value: float) -> str:
    """A score for a sentence."""
    return f"{value + 0.0:.4g}"


def _instructdiff(scored: Scored, at: int) -> list[str]:
    method, diff, entropy = scored.method, scored.details["diff_nll"], scored.details["diff_entropy"]
    assert isinstance(method, InstructDiff)
    rising = np.sort(diff[np.isfinite(diff) & (scored.reason != "too_short")])
    trim = int(len(rising) * method.nll_reject_ratio + 1e-9)
    place = 1 + int((rising < diff[at]).sum())
    out = [
        f"delta NLL (base minus calibrated) is {number(diff[at])} nats per token, "
        f"{place:,} of {len(rising):,} from the lowest"
    ]
    if trim == 0 or 2 * trim >= len(rising):
        out.append("nothing is cut from the ends of delta NLL")
    elif scored.reason[at] == "filtered":
        low = place <= len(rising) / 2
        end, edge = ("lowest", rising[trim - 1]) if low else ("highest", rising[-trim])
        side = f"{'up to' if low else 'from'} {number(edge)}"
        out.append(
            f"it is among the {trim:,} {end} ({side}), which are cut (nll_reject_ratio {method.nll_reject_ratio})"
        )
    else:
        low_kept, high_kept = rising[trim], rising[-trim - 1]
        band = f"{number(low_kept)} to {number(high_kept)}"
        out.append(f"it lies in the kept band from {band}; {trim:,} rows are cut on each side")
        taken = {"min": "lowest first", "mid": "the middle first", "max": "highest first"}[method.band]
        which = "|delta entropy|" if method.abs else "delta entropy"
        out.append(f"delta entropy is {number(entropy[at])} nats per token; rows are ranked by {which}, {taken}")
    return out


def _ifd(scored: Scored, at: int) -> list[str]:
    value = scored.details["ifd"][at]
    if scored.reason[at] == "filtered":
        return [f"IFD is {number(value)}, at or above 1: the prompt makes the response harder to predict, not easier"]
    return [f"IFD is {number(value)}, below the cut at 1: the prompt helps; the highest below 1 come first"]


def _tshirt(scored: Scored, at: int) -> list[str]:
    mean = scored.details["avg_noisy_ifd"][at]
    if not np.isfinite(mean):
        return []
    if scored.reason[at] != "filtered":
        return [f"the mean IFD of its noisy copies is {number(mean)}; the cut is at 1"]
    if mean >= 1:
        return [f"the mean IFD of its noisy copies is {number(mean)}, at or above 1: the prompt misleads the model"]
    return ["none of its tokens is ever informative enough to be selected"]


def _alpagasus(scored: Scored, at: int) -> list[str]:
    assert isinstance(scored.method, AlpaGasus)
    side = "below" if scored.reason[at] == "filtered" else "not below"
    return [f"the judge gave {number(scored.details['score'][at])}, {side} the threshold {scored.method.threshold:g}"]


def _nuggets(scored: Scored, at: int) -> list[str]:
    assert isinstance(scored.method, Nuggets)
    share = 100 * scored.details["share"][at]
    cut = "" if scored.method.above is None else f"; rows at {100 * scored.method.above:g} % or below are left out"
    return [f"as a demonstration it helps with {share:.3g} % of the anchors{cut}"]


_RULES: tuple[tuple[type[Method], Any], ...] = (
    (InstructDiff, _instructdiff),
    (IFD, _ifd),
    (TShirt, _tshirt),
    (AlpaGasus, _alpagasus),
    (Nuggets, _nuggets),
)


def budget_reached(scored: Scored, at: int) -> str | None:
    """Which budget takes a row, where the method goes by the score alone."""
    if not scored.eligible[at] or type(scored.method).pick is not Method.pick:
        return None
    best = scored.best()
    rank = int(np.flatnonzero(best == at)[0]) + 1
    text = f"a budget of {rank:,} rows or more takes it"
    if np.all(scored.n_tokens >= 0):
        text += f", or of {int(scored.n_tokens[best[: rank - 1]].sum()) + 1:,} tokens or more"
    return text


def place_in_selection(scored: Scored, record: dict[str, Any], at: int, row: int) -> dict[str, Any]:
    """Whether a selection has the row, at which place, and why."""
    rows, budget = list(record["rows"]), record.get("budget")
    taken = row in rows
    facts: dict[str, Any] = {
        "method": scored.name,
        "budget": budget,
        "rows": len(rows),
        "chosen": taken,
        "place": rows.index(row) + 1 if taken else None,
    }
    groups = record.get("groups")
    return {**facts, "reason": _reason(scored, set(rows), at, facts, groups)}


def _reason(scored: Scored, rows: set[int], at: int, facts: dict[str, Any], groups: dict[str, Any] | None) -> str:
    by_score = type(scored.method).pick is Method.pick and groups is None
    if not by_score:
        by = f"shares of '{groups['by']}'" if groups else "more than the score of each row by itself"
        went = f"{scored.name} goes by {by}"
        if facts["chosen"]:
            return f"chosen at place {facts['place']:,} of {facts['rows']:,}: {went}"
        return (
            f"not chosen: {scored.reason[at]}" if scored.reason[at] else f"not chosen within {facts['budget']}: {went}"
        )
    if not scored.eligible[at]:
        return f"not chosen: it has no score ({scored.reason[at]})"
    best = scored.best()
    rank = int(np.flatnonzero(best == at)[0]) + 1
    last = scored.value[best[: facts["rows"]]][-1]
    said = f"rank {rank:,} of {len(best):,} with {number(scored.value[at])}"
    cut = f"budget {facts['budget']} took the best {facts['rows']:,}, down to {number(last)}"
    if facts["chosen"] != (rank <= facts["rows"]):
        return f"{'chosen' if facts['chosen'] else 'not chosen'}: {said}; these scores are not those it was selected by"
    return f"{'chosen' if facts['chosen'] else 'not chosen'}: {said}; {cut}"
