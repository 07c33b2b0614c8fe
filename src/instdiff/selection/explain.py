"""One row: its scores and ranks, its tokens, and why it has its score, or none, in sentences."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping
from typing import Any

import numpy as np

from instdiff.core import NEAR_DUPLICATE, TEMPLATE_DATE, Floats, Log, Method, Scored
from instdiff.core.caps import PROMPT, Caps, Indices, Per
from instdiff.data import Message, Pool, Sample, Turns
from instdiff.errors import DataError
from instdiff.methods import IFD, METHODS, AlpaGasus, InstructDiff, Nuggets, TShirt
from instdiff.rendering.templates import calls_text
from instdiff.scoring.table import ScoreTable
from instdiff.selection.chosen import check_same_rows
from instdiff.selection.copies import without_copies
from instdiff.selection.per import better_of_its_value, caps_of, recorded_per
from instdiff.selection.record import Found, origins
from instdiff.selection.tokens import NOTHING, Spoken, least_of, stored_tokens

LISTED = 5


def explain(
    pool: Pool,
    table: ScoreTable,
    row: str | int,
    *,
    selection: Found | None = None,
    store: str | None = None,
    log: Log | None = None,
) -> dict[str, Any]:
    """All there is to say about one row, as plain values; tokens as ``Spoken`` under ``tokens``.

    ``row`` is its position in the input, or its id or the beginning of it. With a ``selection`` the facts say whether
    the row was chosen. Token values are read from ``store``, by default where the score file says. Raises a DataError
    where there is no such row, several begin with this id, or the scores are of other rows.
    """
    check_same_rows(pool, table.ids)
    at = place_of(table, str(row))
    number, name = int(table.rows[at]), table.ids[at]
    shown, lacking = stored_tokens(pool.take([at]), table.scored.values(), table.meta, store, log)
    facts: dict[str, Any] = {
        "row": number,
        "id": name,
        "n_tokens": int(table.n_tokens[at]) if table.n_tokens[at] >= 0 else None,
        "truncated": bool(table.truncated[at]),
        "copies": [int(table.rows[k]) for k, other in enumerate(table.ids) if other == name and k != at],
        "turns": turns(pool.sample(at)),
        "methods": {method: _by_method(Ranking(scored), at) for method, scored in table.scored.items()},
        "tokens": shown,
        "lacking": lacking,
    }
    if lacking and not shown and lacking != [NOTHING]:
        facts["to_see_tokens"] = score_command(table.meta, store)
    if selection is not None:
        facts["selection"] = _selection(pool, table, selection, at, number)
    return facts


def place_of(table: ScoreTable | Pool, row: str) -> int:
    """The position of the one row that its number or the beginning of its id names; a DataError else."""
    last = int(table.rows.max(initial=-1))
    if row.isdecimal() and int(row) <= last:
        found = np.flatnonzero(table.rows == int(row))
        if len(found):
            return int(found[0])
        raise DataError(f"row {row} is not there: its record was rejected when the data was read")
    matching = [at for at, name in enumerate(table.ids) if name.startswith(row.lower())] if row else []
    ids = sorted({table.ids[at] for at in matching})
    if len(ids) == 1:
        return matching[0]
    if ids:
        some = ", ".join(name[: len(row) + 6] for name in ids[:LISTED])
        raise DataError(f"{len(ids)} rows have an id that begins with '{row}' ({some}); give more of it")
    raise DataError(f"no row '{row}': rows are 0 to {last:,}, or give an id or its beginning")


def turns(sample: Sample) -> list[dict[str, str]]:
    """The turns of a sample, each with who speaks; of a pair then those of the rejected side that are its own."""
    tools = [{"role": "tools", "content": sample.tools}] if sample.tools else []
    own = sample.rejected[sample.shared_turns :]
    other = [{**_turn(message), "role": f"rejected {message.role}"} for message in own]
    return [*tools, *map(_turn, sample.messages), *other]


def _turn(message: Message) -> dict[str, str]:
    calls = calls_text(message.calls) if message.calls else ""
    more = {"input": message.input, "reasoning": message.reasoning, "calls": calls, "name": message.name}
    return {"role": message.role, "content": message.content} | {key: text for key, text in more.items() if text}


def turn_text(turn: Mapping[str, str]) -> str:
    """What one of the ``turns`` says: the thought, the content with its input, the calls."""
    thought = f"<think>\n{turn['reasoning']}\n</think>" if turn.get("reasoning") else ""
    parts = (thought, turn["content"], turn.get("input"), turn.get("calls"))
    return "\n".join(part for part in parts if part)


def _by_method(ranking: Ranking, at: int) -> dict[str, Any]:
    scored = ranking.scored
    facts = rank_of(scored.value, at)
    if rank := int(ranking.rank[at]):
        facts["rank"] = rank
    budget = ranking.budget_reached(at)
    return {
        **facts,
        "why": scored.reason[at],
        "reasons": [*reasons(scored, at), *([budget] if budget else [])],
        "details": {name: rank_of(values, at) for name, values in scored.details.items()},
    }


def _selection(pool: Pool, table: ScoreTable, selection: Found, at: int, row: int) -> dict[str, Any]:
    record = selection.record
    if record is None:
        taken = table.ids[at] in selection.ids
        place = selection.ids.index(table.ids[at]) + 1 if taken else None
        said = f"{'chosen' if taken else 'not chosen'}; without selection.json there is no word why"
        return {"rows": len(selection.ids), "chosen": taken, "place": place, "reason": said}
    known = record.get("data", {}).get("fingerprint")
    mine = table.meta.get("data", {}).get("fingerprint")
    if known and mine and known != mine:
        raise DataError(f"'{selection.name}' is a selection of other data ({record['data'].get('origin')})")
    if record["method"] not in table.scored:
        taken = row in record["rows"]
        said = f"{'chosen' if taken else 'not chosen'} by {record['method']}, whose scores are not in this file"
        return {"method": record["method"], "chosen": taken, "reason": said}
    return place_in_selection(pool, table.scored[record["method"]], record, at, row)


def score_command(meta: Mapping[str, Any], store: str | None = None, output: str = "scores.parquet") -> str:
    """The command that made a score file, as far as its metadata says."""
    words = ["instdiff", "score"]
    words += [word for origin in origins(meta) or ["DATA"] for word in ("--data", origin)]
    for role, facts in meta.get("models", {}).items():
        words += ["--model", f"{role}={facts['where']}"]
    if (template := meta.get("models", {}).get("base", {}).get("template")) not in (None, "alpaca"):
        words += ["--template", str(template)]
    for name, entry in meta.get("methods", {}).items():
        words += method_words(name, entry)
    settings = meta.get("settings", {})
    for key, usual in USUAL.items():
        if settings.get(key, usual) != usual:
            words += [f"--{key.replace('_', '-')}", str(settings[key])]
    target = meta.get("target", {}).get("origin")
    words += ["--target", str(target)] if target else []
    words += ["--store", store] if store else []
    return shlex.join([*words, "--output", output])


USUAL = {
    **{"max_length": 2048, "dtype": "", "template_date": TEMPLATE_DATE.isoformat()},
    **dataclasses.asdict(Turns()),
}
"""Settings that the command need not say."""


def method_words(name: str, entry: Mapping[str, Any]) -> list[str]:
    """``--method`` with the parameters that are not the defaults."""
    spec, params = str(entry.get("spec", name)), entry.get("params", {})
    usual = METHODS[spec]().params() if spec in METHODS else {}
    words = ["--method", spec]
    for key, value in params.items():
        if spec in METHODS and usual.get(key) != value:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            words += ["--set", f"{name}.{key}={text}"]
    return words


def as_json(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The same facts with tokens as JSON can hold them."""
    tokens: list[Spoken] = facts["tokens"]
    return {**facts, "tokens": [_plain(one) for one in tokens]}


def _plain(one: Spoken) -> dict[str, Any]:
    finite = {name: [v if np.isfinite(v) else None for v in values] for name, values in one.columns.items()}
    return {"view": one.view, "pieces": one.pieces, "target": one.target, "columns": finite}


# ── why: on which side of which cut a row lies ────────────────────────────────────────────────────────────────────────

WORDS = {
    "empty_response": "a response is there and says nothing",
    "no_target": "nothing of it is to be learnt: all its answers are calls, or are marked as not learnt",
    "empty_instruction": "there is no instruction to score",
    "too_short": "too little of the response can be scored",
    "too_long": "the prompt fills the length limit, so that nothing of the response is left",
    "non_finite": "a number that it needs is missing or not finite",
    "warmup": "it is one of the warm-up rows, which are left out",
    "not_reached": "the method takes one row after the other and stopped before it; a larger budget goes on from there",
    "no_answer": "the judge was not reached, or gave no answer",
    "unparsable": "the judge wrote no number",
    "no_context": "the prompt is empty and the tokenizer has no start token, so nothing predicts the first token",
    "unrenderable": "the chat template raised an error; its own message stands in the log",
    "rewritten": "of a response nothing is shown in the rendering, or its place there cannot be told",
    "bad_tools": "its tools are no list of objects",
    "no_neighbour": "no other row was found to stand before it as a demonstration",
    "misaligned": "the end of its prompt merges with the response into one token",
    "multi_turn": "it has several responses, and the published way knows rows with one",
    "no_signal": "what the method looks at is missing for it",
    "no_tags": "it has no tag in the column that the method goes by",
    "no_label": "it has no label in the column that the method goes by",
    "no_score": "the judge's score is missing for it",
    "no_vector": "its embedding is missing",
    "no_pair": "it is no preference pair, and the method compares the two sides of one",
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
    trim = method.cut_at_each_end(len(rising))
    place = 1 + int((rising < diff[at]).sum())
    out = [
        f"delta NLL (base minus calibrated) is {number(diff[at])} nats per token, "
        f"{place:,} of {len(rising):,} from the lowest"
    ]
    if trim == 0:
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
    share, least = scored.details.get("informative"), least_of(scored)
    if share is None or least is None or not np.isfinite(share[at]):
        return _by_noisy_ifd(scored, at)
    of = f"{100 * share[at]:.3g} % of its tokens are informative"
    return [*_by_noisy_ifd(scored, at), f"{of}: the prompt changes the NLL of each by {number(least)} or more"]


def _by_noisy_ifd(scored: Scored, at: int) -> list[str]:
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


class Ranking:
    """The order of a method's eligible rows, as selecting breaks ties; ``rank`` is 0 where a row has none.

    With ``caps``, as ``per`` names them, they are the best of each value; ``taken`` are the rows that were selected.
    """

    def __init__(
        self, scored: Scored, per: Per | None = None, caps: Caps | None = None, taken: Indices | None = None
    ) -> None:
        self.scored, self.best = scored, scored.best()
        self.per, self.caps, self.taken = per, caps, taken
        if caps is not None and not scored.method.holds_caps:
            self.best = caps.limit(self.best)
        self.rank = np.zeros(len(scored), np.int64)
        self.rank[self.best] = np.arange(1, len(self.best) + 1)
        self.by_score = scored.method.by_score
        self._tokens = np.cumsum(scored.n_tokens[self.best]) if np.all(scored.n_tokens >= 0) else None

    def budget_reached(self, at: int) -> str | None:
        """Which budget takes a row, where the method goes by the score alone."""
        rank = int(self.rank[at])
        if not rank or not self.by_score:
            return None
        if rank == 1:
            return "any budget takes it"
        text = f"a budget of {rank:,} rows or more takes it"
        if self._tokens is not None:
            text += f", or of {int(self._tokens[rank - 1] - self.scored.n_tokens[at]) + 1:,} tokens or more"
        return text

    def _full(self, at: int, numbers: Indices | None) -> str:
        """Why a row cannot be taken for others of its value; nothing where it can."""
        if self.caps is None or self.per is None or not self.scored.takeable[at]:
            return ""
        others = better_of_its_value(self.scored, self.caps, at, self.taken)
        if not len(others):
            return ""
        named = (others if numbers is None else numbers[others]).tolist()
        rows = f"row{'s' * (len(named) > 1)} {', '.join(map(str, named[:LISTED]))}{' …' * (len(named) > LISTED)}"
        of = "its prompt" if self.per.by == PROMPT else f"its '{self.per.by}'"
        first = self.scored.method.holds_caps
        verb = ("was" if first else "is") if len(named) == 1 else ("were" if first else "are")
        why = f"{rows} of {of} {verb} {'taken first' if first else 'better'}"
        return f"not chosen: {why}, and {self.per.text} {'is' if self.per.most == 1 else 'are'} taken"

    def reason(
        self,
        at: int,
        place: int | None,
        rows: int,
        budget: str | None,
        by: str | None = None,
        numbers: Indices | None = None,
    ) -> str:
        """Why a selection of so many ``rows`` within a ``budget`` has a row at a ``place``, or has it not.

        ``by`` names the column whose values were given shares; ``numbers`` are those of the rows in the input.
        """
        scored, why = self.scored, self.scored.reason[at]
        if not place and (full := self._full(at, numbers)):
            return full
        if why == NEAR_DUPLICATE:
            return "excluded: it is a near copy of a better row"
        unknown = self.per is not None and self.caps is None
        if not self.by_score or by is not None or unknown:
            goes = f"shares of '{by}'" if by is not None else "more than the score of each row by itself"
            goes = f"{self.per.text}, and the rows are not here" if unknown and self.per else goes
            went = f"{scored.name} goes by {goes}"
            if place:
                return f"chosen at place {place:,} of {rows:,}: {went}"
            return f"excluded: {why}" if why else f"not chosen within {budget}: {went}"
        if not scored.eligible[at]:
            return f"excluded: it has no score ({why})"
        rank, of = int(self.rank[at]), len(self.best)
        said = f"rank {rank:,} of {of:,} (best {100 * rank / of:.2g} %) with {number(scored.value[at])}"
        word = "chosen" if place else "not chosen"
        if (rank <= rows) != bool(place):
            return f"{word}: {said}; these scores are not those it was selected by"
        last = number(scored.value[self.best[:rows]][-1]) if rows else "none"
        return f"{word}: {said}; budget {budget} took the best {rows:,}, down to {last}"


def place_in_selection(pool: Pool, scored: Scored, record: dict[str, Any], at: int, row: int) -> dict[str, Any]:
    """Whether a selection has the row, at which place, and why."""
    rows, budget = list(record["rows"]), record.get("budget")
    place = rows.index(row) + 1 if row in rows else None
    facts = {"method": scored.name, "budget": budget, "rows": len(rows), "chosen": place is not None, "place": place}
    by = (record.get("groups") or {}).get("by")
    per = recorded_per(record, scored)
    caps, alike = None if per is None else caps_of(pool, per), record.get("near_duplicates")
    scored = scored if alike is None else without_copies(pool, scored, alike, caps)
    ranking = Ranking(scored)
    if per is not None:
        taken = np.flatnonzero(np.isin(pool.rows, rows))
        ranking = Ranking(scored, per, caps, taken)
        facts["per"] = record["per"]
    return {**facts, "reason": ranking.reason(at, place, len(rows), budget, by, pool.rows)}
