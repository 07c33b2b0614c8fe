"""Configuration of ``instdiff decontaminate``: which rows, compared with what, and what counts as an overlap."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import PositiveInt

from instdiff.config.base import Data, key
from instdiff.config.commands import STORE, DataConfig, parse_models
from instdiff.config.pipeline import names


class DecontaminateConfig(DataConfig):
    """``instdiff decontaminate``."""

    suite: list[str] = key(list, "Suites whose items are looked for: math, med, openllm, code, general, skills.")
    task: list[str] = key(list, "Tasks of the suites, comma-separated (default: the usual ones).", also="tasks")
    data_dir: str | None = key(None, "Folder with the tasks' files, instead of the hub.", metavar="DIR")
    task_data: dict[str, str] = key(dict, "The file of a task by its name.")
    against: Data = key(None, "Other files, such as held-out rows, whose prompts are looked for; may repeat.")
    n: PositiveInt = key(13, "Words of a run that a row and an item share.")
    threshold: float = key(0.0, "Least share of an item's words in shared runs; 0 is any.", ge=0, le=1)
    fields: Literal["instruction", "row"] = key("instruction", "What is looked at; row has responses too.")
    near_duplicates: float | None = key(0.8, "Least Jaccard similarity of near copies; null: none.", gt=0, le=1)
    near: Literal["items", "pool"] = key("items", "pool also finds near copies within the data.")
    cosine: float | None = key(None, "Warns of rows with a cosine to an item of at least X.", ge=-1, le=1, metavar="X")
    model: dict[str, str] = key(dict, "embedder=WHERE, for cosine (default: the packaged one).")
    store: str | None = key(None, STORE, metavar="DIR")
    output: str | None = key(None, "Where the report goes as JSON.", metavar="FILE", also="output_path")
    clean: str | None = key(None, "Where the rows go that overlap nothing.", metavar="FILE")

    @classmethod
    def shape(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Comma-separated names as lists, ``model`` by its role."""
        values = {name: names(value) if name in ("suite", "task") else value for name, value in values.items()}
        return {name: parse_models(v) if name == "model" and v is not None else v for name, v in values.items()}

    @classmethod
    def resolve_key(cls, path: list[str], values: Mapping[str, Any]) -> list[str]:
        """``data.gsm8k=PATH`` names the file of a task."""
        return ["task_data", *path[1:]] if len(path) > 1 and path[0] == "data" else path
