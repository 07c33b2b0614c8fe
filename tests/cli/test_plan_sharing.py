"""What `plan` says of shared tokens is what the sweep leaves out."""

from __future__ import annotations

import json

import pytest

from instdiff.engine.forward import Forward

from .shell import ok


def test_the_saved_tokens_are_saved(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["--data", "my.jsonl", "--model", model, "--method", "ifd,entropy"]
    bill = json.loads(ok("plan", *words, "--json").out)
    computed: list[int] = []
    call = Forward.__call__

    def counting(self: Forward, batch: object, measures: object) -> object:
        before = self.tokens
        out = call(self, batch, measures)  # type: ignore[arg-type]
        computed.append(self.tokens - before)
        return out

    monkeypatch.setattr(Forward, "__call__", counting)
    ok("score", *words, "--output", "scores.parquet")
    assert bill["total"]["shared_tokens"] > 0
    assert sum(computed) == bill["total"]["todo_tokens"] - bill["total"]["shared_tokens"]
