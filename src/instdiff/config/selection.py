"""Configuration of the commands that show a selection and hand it over."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import NonNegativeInt, field_validator

from instdiff.config.base import Data, key
from instdiff.config.commands import STORE, ReadConfig


class ExplainConfig(ReadConfig):
    """``instdiff explain``."""

    scores: str | None = key(None, "What `score` wrote.", metavar="FILE")
    selection: str | None = key(None, "selected.jsonl, its record or a run folder.", metavar="PATH")
    store: str | None = key(None, STORE, metavar="DIR")
    by: str | None = key(None, "What colours the tokens: nll, entropy, top1, 'delta nll' (default: all), with commas.")


class DiffConfig(ReadConfig):
    """``instdiff diff``."""

    data: Data = key(None, "The input of both, where their rows are not beside them.", also="data_path")
    scores: list[str] = key(list, "What `score` wrote; may repeat (default: beside A and B).", metavar="FILE")
    by: str | None = key(None, "Column of the rows (default: source or the like).")
    examples: NonNegativeInt = key(3, "Rows shown of each side.")

    @field_validator("scores", mode="before")
    @classmethod
    def _one(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class ExportConfig(ReadConfig):
    """``instdiff export``; ``format`` is the trainer's, ``data_format`` that of the input."""

    data: str | None = key(None, "selected.jsonl, its record or a run folder.", metavar="PATH", also="data_path")
    format: str | None = key(None, "llamafactory, axolotl, trl, grpo, verl, jsonl, parquet or hub.")
    data_format: str | None = key(None, "Format of the rows, where it is not recognised.")
    source: Data = key(None, "The input, where only its record is given and it has moved.")
    output: str | None = key(None, "Folder for the files.", metavar="DIR", also="output_path")
    name: str | None = key(None, "Of the data set (default: by the input).")
    layout: str = key("auto", "alpaca, sharegpt, messages, prompt_completion, text, tokens, or auto.")
    template: str | None = key(None, "What rows are rendered with (default: as they were scored).")
    responses: Literal["first", "shortest"] | None = key(None, "Right answers of pass_rate instead of responses.")
    store: str | None = key(None, STORE, metavar="DIR")
    model: str | None = key(None, "Model to be trained (default: the base of the selection).")
    license: str | None = key(None, "Of the source, as the hub spells it.")
    half: str | None = key(None, "Pairs to train this model of selective_dpo on, as dpo/0/1.", metavar="ROLE")
    method: dict[str, dict[str, Any]] = key(dict, "Parameters of selective_dpo, for `half`, as they are in `score`.")
    push: str | None = key(None, "hub:owner/name; private unless --public.", metavar="HUB")
    public: bool = key(False, "Make a new repository on the hub public.")

    def reading(self) -> dict[str, Any]:
        """``format`` is the trainer's."""
        return {**super().reading(), "format": self.data_format}
