"""A key that a command takes has an effect, or is refused."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from instdiff.cli.preflight import UNUSED
from instdiff.config.base import Config
from instdiff.config.commands import MAP_KEYS, SelectConfig, TrainConfig
from instdiff.core.settings import Settings

from .shell import cli, ok, score

HANDED_ON = ("settings_of", "<dictcomp>", "pydantic", "preflight.py")
"""Code that passes all keys on, or checks them."""
TINY = ("--data", "my.jsonl", "--model", "builtin:tiny", "--output", "out")
QUICK = ("train.max_steps=1", "train.num_train_epochs=1", "train.model_max_length=200", "train.dtype=float32")


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The keys of commands that the code reads, there or in the settings that are made of them."""
    found = set[str]()

    def noted(self: Any, name: str) -> Any:
        if type(self) in (SelectConfig, TrainConfig, Settings) and not name.startswith("_"):
            caller = sys._getframe(1).f_code
            if not any(part in f"{caller.co_filename} {caller.co_name}" for part in HANDED_ON):
                found.add("template" if name == "templates" else name)
        return object.__getattribute__(self, name)

    for kind in (Config, Settings):
        monkeypatch.setattr(kind, "__getattribute__", noted)
    return found


def unread(kind: type[Config], read: set[str]) -> set[str]:
    return set(kind.model_fields) - read - set(MAP_KEYS)


def test_a_training_reads_what_it_does_not_refuse(read: set[str]) -> None:
    ok("train", *TINY, "--device", "cpu", *QUICK)
    assert unread(TrainConfig, read) == {*UNUSED["train"], "judge_price", "cluster", "nodes", "gpus_per_node"}


def test_select_reads_what_it_does_not_refuse(model: str, read: set[str]) -> None:
    score(model, "ifd", "s.parquet")
    read.clear()
    ok("select", "--data", "my.jsonl", "--scores", "s.parquet", "--budget", "3", "--output", "o.jsonl", "--method",
       "ifd", "--seed", "1")  # fmt: skip
    assert unread(SelectConfig, read) == {*UNUSED["select"], *UNUSED["select --scores"], "strict"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", *TINY, "dtype=float32"], "'dtype' has no effect in train; give train.dtype"),
        (["train", *TINY, "max_length=9"], "'max_length' has no effect in train; give train.model_max_length"),
        (["train", *TINY, "--nodes", "2"],
         "'nodes' has an effect with --print-launch only; add it, or leave 'nodes' out"),
        (["select", "--data", "my.jsonl", "--scores", "s.parquet", "--output", "o.jsonl", "dtype=float32"],
         "'dtype' has no effect on rows that are scored; leave it out, or --scores"),
        (["select", "--data", "my.jsonl", "--method", "random", "--output", "o.jsonl", "cluster=gpus=8"],
         "'cluster' has no effect in select; it is a key of compare, eval, pipeline, plan, score, search, train"),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_refused(words: list[str], said: str) -> None:
    assert cli(*words).error == said
