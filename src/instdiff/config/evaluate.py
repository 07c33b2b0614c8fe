"""Configuration of ``instdiff eval``: which suites on which model, and how answers are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import NonNegativeInt, PositiveInt, field_validator

from instdiff.config.base import Data, key
from instdiff.config.commands import DataConfig, ExecutorConfig, RunConfig
from instdiff.config.pipeline import names

LISTS = ("suite", "task")


class EvalConfig(DataConfig, RunConfig, ExecutorConfig):
    """``instdiff eval``."""

    data: Data = key(None, "Rows of the suite heldout.", also="data_path")
    model: str | None = key(
        None,
        "Under test: a folder, hub id, builtin:tiny; with generator openai:... only its name.",
        also="model_path base_model",
    )
    suite: list[str] = key(list, "Comma-separated: heldout, math, med, openllm, code, general, skills.", also="suites")
    task: list[str] = key(list, "Tasks of the suites, comma-separated (default: the usual ones).", also="tasks")
    data_dir: str | None = key(None, "Folder with the tasks' files, instead of the hub.", metavar="DIR")
    task_data: dict[str, str] = key(dict, "The file of a task by its name; `data.gsm8k=PATH` is the same.")
    output: str | None = key(
        None, "The results' file, or a folder where there are several suites.", metavar="PATH", also="output_path"
    )
    answers: str | None = key(None, "Keeps answers and judgements (default: beside the store).", metavar="DIR")
    n: PositiveInt = key(1, "Answers to each problem.")
    temperature: float = key(0.0, "0 takes the likeliest token.", ge=0)
    top_p: float = key(1.0, "Share of the probability that is drawn from.", gt=0, le=1)
    max_new_tokens: PositiveInt = key(512, "Tokens after which an answer is cut.")
    shots: NonNegativeInt | None = key(None, "Worked examples before each problem (default: the suite's own number).")
    generator: str = key("hf", "hf, vllm, or openai:MODEL@http://host:port/v1.")
    concurrency: PositiveInt = key(8, "Calls at once to a server.")
    judge_concurrency: PositiveInt | None = key(None, "Calls at once to the judge (default: --concurrency).")
    judge: str | None = key(None, "Compares answers: openai:MODEL@http://host:port/v1, or a folder.")
    reference: str | None = key(None, "Another model's answers to compare with.")
    unsafe: bool = key(False, "Run written code without full isolation.")

    @classmethod
    def shape(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Comma-separated names as lists; files by task under ``data`` as ``task_data``."""
        values = {key: names(value) if key in LISTS else value for key, value in values.items()}
        if isinstance(values.get("data"), Mapping):
            files = {str(task): str(path) for task, path in values.pop("data").items()}
            values["task_data"] = {**values.get("task_data", {}), **files}
        return values

    @classmethod
    def resolve_key(cls, path: list[str], values: Mapping[str, Any]) -> list[str]:
        """``data.gsm8k=PATH`` names the file of a task."""
        return ["task_data", *path[1:]] if len(path) > 1 and path[0] == "data" else path

    @field_validator("task_data", mode="before")
    @classmethod
    def _paths(cls, value: Any) -> Any:
        return {str(task): str(path) for task, path in value.items()} if isinstance(value, Mapping) else value
