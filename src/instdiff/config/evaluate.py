"""Configuration of ``instdiff eval``: which suites on which model, and how answers are drawn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from instdiff.config.commands import DataConfig, ExecutorConfig, RunConfig
from instdiff.config.pipeline import names

LISTS = ("suite", "task")


class EvalConfig(DataConfig, RunConfig, ExecutorConfig):
    """``instdiff eval``.

    Args:
        model: under test; with ``generator: openai:...`` only its name.
        suite: names of suites.
        task: tasks of these suites; none takes all that a suite has.
        data: the rows of ``heldout``.
        data_dir: a folder with the tasks' files.
        task_data: the file of a task by its name; ``data.gsm8k=PATH`` is the same.
        output: the results' file, or a folder where there are several suites.
        answers: folder for what was written and judged; by default beside the store.
        n: answers to each problem.
        temperature: 0 takes the likeliest token.
        top_p: share of the probability that is drawn from.
        max_new_tokens: tokens after which an answer is cut.
        shots: worked examples before each problem; None takes the suite's own number.
        generator: ``hf``, ``vllm``, or ``openai:MODEL@http://host:port/v1``.
        concurrency: calls at once to a server.
        judge_concurrency: calls at once to the judge's; by default ``concurrency``.
        judge: a model that compares answers, as ``openai:MODEL@URL`` or a folder.
        reference: another model's answers to compare with.
        unsafe: run written code without full isolation.
    """

    model: str | None = None
    suite: list[str] = Field(default_factory=list)
    task: list[str] = Field(default_factory=list)
    data_dir: str | None = None
    task_data: dict[str, str] = Field(default_factory=dict)
    output: str | None = None
    answers: str | None = None
    n: PositiveInt = 1
    temperature: float = Field(0.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_new_tokens: PositiveInt = 512
    shots: NonNegativeInt | None = None
    generator: str = "hf"
    concurrency: PositiveInt = 8
    judge: str | None = None
    reference: str | None = None
    unsafe: bool = False

    ALIASES: ClassVar[dict[str, str]] = {
        "data_path": "data",
        "output_path": "output",
        "model_path": "model",
        "base_model": "model",
        "suites": "suite",
        "tasks": "task",
        "max_samples": "limit",
        "prompt_template": "template",
    }

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
