"""docs/export.md is run as it is printed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import yaml

from instdiff.data import load

from .shell import files, ok

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "export.md").read_text(encoding="utf-8")


def test_every_command_of_the_page() -> None:
    text = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)).replace("\\\n", " ")
    commands = [shlex.split(line) for line in text.splitlines() if line]
    assert [words[1] for words in commands] == ["score", "select", *["export"] * 5]
    said = [ok(*words[1:]).out for words in commands]
    assert files("trl") == {"tenth.jsonl", "tenth.trl.yaml"} and "trl sft --config trl/tenth.trl.yaml" in said[2]
    assert yaml.safe_load(Path("axolotl/tenth.axolotl.yaml").read_text())["datasets"][0]["type"] == "alpaca"
    assert files("card") == {"README.md", "selection.json", "data/train.parquet"}
    chosen = load("ifd/selected.jsonl").ids
    for path in ("trl/tenth.jsonl", "axolotl/tenth.jsonl", "plain/tenth.parquet", "card/data"):
        assert load(path).ids == chosen
    # LLaMA-Factory has no template that writes what was scored: it gets the texts.
    assert "template: empty" in said[3] and len(load("factory/tenth.jsonl").ids) == len(chosen)
