"""What axolotl learns of a row under its ``chat_template`` strategy, to hold it against what was scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from instdiff.engine.tokenizer import HFTokenizer
from instdiff.selection.export.models import RENDER_ERRORS
from instdiff.selection.export.tokens import IGNORED, Learnt

DUMMY = "[[dummy_message]]"
PADDING = 3
"""Tokens of the template that may stand between a turn and its end token."""
Turn = Mapping[str, Any]


@dataclass(frozen=True)
class Strategy:
    """It finds a turn by putting another text in its place: what differs is learnt, and the end token after it.

    ``ends`` are the tokens that end turns.
    """

    tokenizer: HFTokenizer
    jinja: str | None
    ends: frozenset[int]

    def learn(self, turns: Sequence[Turn], tools: Any) -> Learnt:
        """The ids and labels of a conversation; none where the template raises."""
        try:
            return self._learn(turns, tools)
        except RENDER_ERRORS:
            return [], []

    def _learn(self, turns: Sequence[Turn], tools: Any) -> Learnt:
        ids = self._render(turns, tools)
        labels = [IGNORED] * len(ids)
        for at, turn in enumerate(turns):
            if turn["role"] != "assistant" or turn.get("train") is False:
                continue
            start, stop = self._find(turns, at, tools)
            labels[start:stop] = ids[start:stop]
            after = next((place for place in range(stop, len(ids)) if ids[place] in self.ends), None)
            if after is not None and after - stop <= PADDING:
                labels[after] = ids[after]
        return ids, labels

    def _find(self, turns: Sequence[Turn], at: int, tools: Any) -> tuple[int, int]:
        other = self._render([*turns[:at], {"role": turns[at]["role"], "content": DUMMY}], tools)
        own = self._render(turns[: at + 1], tools)
        short = min(len(other), len(own))
        start = next((i for i in range(short) if other[i] != own[i]), 0)
        stop = next((len(own) - i for i in range(short) if other[-1 - i] != own[-1 - i]), 0)
        return start, max(start, stop)

    def _render(self, turns: Sequence[Turn], tools: Any) -> list[int]:
        seen = [{key: value for key, value in turn.items() if key != "train"} for turn in turns]
        self.tokenizer.render(seen, tools, jinja=self.jinja)  # says so where the template comes to no end
        ids: list[int] = self.tokenizer.hf.apply_chat_template(
            seen, chat_template=self.jinja, tools=tools or None, tokenize=True, return_dict=False
        )
        return ids
