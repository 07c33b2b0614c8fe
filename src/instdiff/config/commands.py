"""One configuration tree per command. The published InstructDiff keys are names of keys here."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, NonNegativeInt, PositiveInt, field_validator, model_validator

from instdiff.config.base import Bound, Config, Data, key
from instdiff.config.methods import short_name
from instdiff.config.pipeline import (
    LEAKS,
    NEAR_DUPLICATES,
    PER,
    EvalPart,
    ScorePart,
    SelectPart,
    SelectTrainPart,
    WarmupPart,
)
from instdiff.config.train import TrainSettings
from instdiff.core import TEMPLATE_DATE
from instdiff.errors import ConfigError, did_you_mean, kind_of

MAP_KEYS = {"instruction_key": "instruction", "input_key": "input", "response_key": "response"}


def parse_pairs(text: str, key: str) -> dict[str, str]:
    """``a=b,c=d`` as a mapping."""
    out = {}
    for pair in text.split(","):
        name, sign, value = pair.partition("=")
        if not (name.strip() and sign and value.strip()):
            raise ConfigError(
                f"'{key}': '{pair}' is not name=column; write {key} as instruction=question,response=answer"
            )
        out[name.strip()] = value.strip()
    return out


def parse_price(given: Any) -> tuple[float, float] | None:
    """``0.15,0.6``, or two numbers, as what a million tokens cost that a model reads and writes."""
    if given is None:
        return None
    try:
        read, written = (float(part) for part in (given.split(",") if isinstance(given, str) else given))
    except (TypeError, ValueError):
        read = written = math.nan
    if not (0 <= read < math.inf and 0 <= written < math.inf):
        raise ValueError("write what a million tokens in and out cost, as 0.15,0.6")
    return read, written


DATA = "jsonl, json, parquet, csv, a folder[:split], hub:owner/name[:split], builtin:demo, or -; may repeat."
STORE = "Folder of the store (default: the user's cache)."
SEED = "Seed of everything random."
OUTPUT = "Where the result goes."
METHODS = "Names, comma-separated or repeated; ./mine.py:Margin is your own."
MODELS = "ROLE=WHERE, or WHERE for the base; may repeat. A folder, hub id, builtin:tiny, WHERE+ADAPTER."
MOST = 2**53
"""Rows beyond this are no number of rows."""
MODEL = "Base model: a folder, hub id, builtin:tiny."
REASONING = "Thoughts are learnt, shown only, or dropped."
SYSTEM = "Where the template refuses system turns; fold puts them into the first user turn."
TARGET = "Rows that targeted methods such as rds match; tap is trained on them."
HOLDOUT = "Rows that a model of role `holdout` is trained on where none is bound, as rho needs it."

Pairs = Annotated[
    dict[str, str] | None, BeforeValidator(lambda value: parse_pairs(value, "map") if isinstance(value, str) else value)
]
Price = Annotated[tuple[float, float] | None, BeforeValidator(parse_price)]
Auto = Annotated[PositiveInt | None, BeforeValidator(lambda value: None if value == "auto" else value)]


class RowsConfig(Config):
    """Which rows, and which of their columns, whatever turns are learnt."""

    data: Data = key(None, DATA, also="data_path")
    map: Pairs = key(None, "Columns, as instruction=question,response=answer.")
    limit: PositiveInt | None = key(None, "First N rows.", metavar="N", le=MOST, also="max_samples")
    longest_line_mb: PositiveInt = key(256, "Megabytes of a line of data, after which it is left out unread.")
    instruction_key: str | None = key(None, "Column of the instruction; the published way to write `map`.")
    input_key: str | None = key(None, "Column of the input; the published way to write `map`.")
    response_key: str | None = key(None, "Column of the response; the published way to write `map`.")

    def mapping(self) -> dict[str, str] | None:
        """The column mapping, from ``map`` or from the published keys.

        The published keys often repeat the default names; those are left to the format's own reading, which also
        knows that ``output`` and ``response`` mean the same.
        """
        keys = {name: getattr(self, key) for key, name in MAP_KEYS.items() if getattr(self, key)}
        named = {**keys, **(self.map or {})}
        usual = all(name == column or (name, column) == ("response", "output") for name, column in named.items())
        return None if usual else named


class DataConfig(RowsConfig):
    """Which rows, and how to read them."""

    format: str | None = key(None, "Data format, where it is not recognised.")
    targets: Literal["all", "last", "all+calls"] = key("all", "Turns to learn (all+calls: tool calls too).")
    reasoning: Literal["learn", "context", "drop"] = key("learn", REASONING)
    system: Literal["keep", "fold"] = key("keep", SYSTEM)

    def turns(self) -> dict[str, Any]:
        """How conversations are shown and learnt, as ``data.load`` takes it."""
        return {"targets": self.targets, "reasoning": self.reasoning, "system": self.system}


class TemplateConfig(Config):
    """How rows become what a model sees."""

    template: str | None = key(
        None, "alpaca (default; for proxy plain), chat, plain, direct, a file, or inline text.", also="prompt_template"
    )
    template_date: date = key(TEMPLATE_DATE, "What a chat template is told that today is.", metavar="YYYY-MM-DD")
    max_length: PositiveInt = key(2048, "Tokens of prompt and response, after which a row is cut.")


class DeviceConfig(TemplateConfig):
    """Where a model runs, and where what it computes is kept."""

    store: str | None = key(None, STORE, metavar="DIR")
    device: str = key("auto", "cpu, cuda, cuda:1, mps, or auto.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = key("auto", "Precision (auto: bf16 where faster).")
    batch_tokens: Auto = key(None, "Tokens per batch (default: auto, the fastest is found).")
    seed: int = key(42, SEED)


class RunConfig(DeviceConfig):
    """What all commands that run models or ask judges share."""

    workers: Auto = key(None, "Processes that score (default: auto, one for each GPU).")
    judge_concurrency: PositiveInt | None = key(None, "Calls at once to a judge's server (default 8).", metavar="N")
    judge_timeout: float = key(120.0, "Seconds that a judge's server may be silent.", metavar="S", gt=0)
    judge_tries: PositiveInt = key(5, "Calls for one question to a judge.", metavar="N")
    judge_max_tokens: PositiveInt | None = key(
        None, "Tokens of a judge's answer (default: 256; in `eval` what the question needs).", metavar="N"
    )
    judge_batch: bool = key(False, "Ask a judge's server by its batch API: cheaper, answers within a day.")
    judge_price: Price = key(None, "For plan: a judge's price of a million tokens in and out.", metavar="IN,OUT")
    cluster: str | dict[str, Any] | None = key(None, "For plan: the GPUs, as gpus=64,flops=990e12,price=2.5.")


class ExecutorConfig(Config):
    """What commands share whose passes may go to a Ray cluster."""

    executor: Literal["local", "ray"] = key(
        "local", "`local`: this machine; `ray`: shards go to a cluster, see [scale](scale.md#ray)."
    )
    ray_address: str | None = key(None, "Address of a running Ray cluster, with `executor: ray`.")
    gpus_per_worker: PositiveInt | None = key(None, "GPUs that one worker of a cluster has.")

    @model_validator(mode="after")
    def _of_ray(self) -> ExecutorConfig:
        given = [key for key in ("ray_address", "gpus_per_worker", "shared") if getattr(self, key, None) is not None]
        if given and self.executor != "ray":
            raise ConfigError(f"'{given[0]}' is of use with the executor ray only; add --executor ray, or leave it out")
        return self


class SampleConfig(DataConfig):
    """``instdiff sample``: a seeded random subset."""

    limit: PositiveInt | None = key(None, "First N rows.", metavar="N", le=MOST)
    seed: int = key(42, SEED)
    output: str | None = key(None, OUTPUT, metavar="PATH", also="output_path")
    max_samples: PositiveInt | None = key(None, "Rows that are drawn.", le=MOST)


class MethodsConfig(DataConfig, RunConfig):
    """Models by role and methods by name."""

    @classmethod
    def shape(cls, values: dict[str, Any]) -> dict[str, Any]:
        """``model`` as roles, ``method`` as names with parameters."""
        parsers = {"model": parse_models, "method": parse_methods}
        return {name: parsers[name](v) if name in parsers and v is not None else v for name, v in values.items()}

    @classmethod
    def resolve_key(cls, path: list[str], values: Mapping[str, Any]) -> list[str]:
        """``method.ifd.ratio`` with the method's full key, dots and all; a ConfigError where it is not asked for."""
        if len(path) < 3 or path[0] not in ("method", "methods"):
            return path
        short = {short_name(spec): spec for spec in values.get("method", {})}
        if path[1] not in short:
            raise ConfigError(f"'{'.'.join(path)}': '{path[1]}' is not among the methods{did_you_mean(path[1], short)}")
        return [path[0], short[path[1]], *path[2:]]


class ScoreConfig(MethodsConfig, ExecutorConfig):
    """``instdiff score`` and ``instdiff plan``."""

    model: dict[str, str] = key(dict, MODELS, also="model_path models base_model")
    method: dict[str, dict[str, Any]] = key(dict, METHODS, also="methods")
    warmup: str | None = key(None, "jsonl of warm-up rows, for exclude_warmup.", metavar="FILE")
    target: str | None = key(None, TARGET, metavar="FILE")
    holdout: str | None = key(None, HOLDOUT, metavar="FILE")
    trust_held: bool = key(False, "Take models of folds or a holdout that do not say what they were trained on.")
    crossfit: TrainSettings | None = key(
        None, "How models of folds and of a holdout are trained here: see [training settings](#training-settings)."
    )
    output: str | None = key(None, OUTPUT, metavar="PATH", also="output_path")
    strict: bool = key(False, "Exit 3 when a row could not be scored.")
    shards: PositiveInt | Literal["auto"] | None = key(
        None, "Score one of N parts of the rows; auto asks the cluster.", metavar="N"
    )
    shard_index: NonNegativeInt | None = key(None, "Which part, from 0 (default: the cluster says).", metavar="I")
    shared: str | None = key(
        None, "With `executor: ray`, a folder that all machines see: each shard reads its own rows and leaves its file."
    )

    @field_validator("shards", mode="before")
    @classmethod
    def _shards(cls, value: Any) -> Any:
        if isinstance(value, str) and value != "auto" and not value.isdigit():
            raise ValueError("a number or auto")
        return value


class LookConfig(DataConfig, TemplateConfig):
    """What commands share that look at rows, and do not score them."""

    @classmethod
    def shape(cls, values: dict[str, Any]) -> dict[str, Any]:
        """``model`` by its role."""
        return {name: parse_models(v) if name == "model" and v is not None else v for name, v in values.items()}


class RenderConfig(LookConfig):
    """``instdiff render``."""

    limit: PositiveInt = key(5, "First N rows.", metavar="N", le=MOST, also="max_samples")
    model: dict[str, str] = key(dict, "Whose tokenizer: a folder, hub id, builtin:tiny.", also="model_path base_model")
    row: list[str] = key(list, "A row's number, from 0, or its id or the beginning of it; may repeat.")

    @field_validator("row", mode="before")
    @classmethod
    def _rows(cls, value: Any) -> Any:
        return [str(one) for one in (value if isinstance(value, list | tuple) else [value])]


class DoctorConfig(LookConfig, DeviceConfig):
    """``instdiff doctor``."""

    model: dict[str, str] = key(dict, f"{MODELS} Without one, what the rows alone tell.", also="model_path base_model")
    output: str | None = key(None, "Where the diagnosis goes as JSON.", metavar="FILE", also="output_path")


class MergeConfig(ScoreConfig):
    """What ``instdiff merge`` takes: where the data and models of the shards are by now."""

    method: dict[str, dict[str, Any]] = key(dict, "A ./mine.py:Margin that was scored and may be run here.")


_OF_METHODS = re.compile(r"(warmup|held|dpo|proxy|path)(\.\d+)?(/[\w.]+)+")
"""Roles of models that a method has several of, as its signals name them: ``held/0``, ``dpo/0.1/1``, ``path/first``."""
_ROLE = re.compile(rf"[a-z_]+(/\d+)?|{_OF_METHODS.pattern}")


def parse_models(value: Any) -> dict[str, str]:
    """``WHERE`` for the base, ``ROLE=WHERE``, a list of them, or a mapping."""
    if isinstance(value, dict):
        named = {str(role): str(where) for role, where in value.items()}
        check_role_names(named)
        return named
    out: dict[str, str] = {}
    for item in [value] if isinstance(value, str) else value:
        role, sign, where = str(item).partition("=")
        role, where = (role, where) if sign and _ROLE.fullmatch(role) else ("base", str(item))
        if role in out:
            raise ConfigError(f"role '{role}' is given twice: '{out[role]}' and '{where}'")
        if not where:
            raise ConfigError(f"'--model {item}': write ROLE=WHERE, or WHERE alone for the base")
        out[role] = where
    check_role_names(out)
    return out


ROLES = (
    *("base", "calibrated", "proxy", "holdout", "policy"),
    *("embedder", "rater", "complexity_rater", "quality_rater", "judge"),
)


def check_role_names(models: dict[str, str]) -> None:
    """Roles are a closed list: an unknown one is a ConfigError with a suggestion."""
    for role in models:
        if role not in ROLES and not _OF_METHODS.fullmatch(role):
            raise ConfigError(f"unknown model role '{role}'{did_you_mean(role, ROLES)}")


def parse_methods(value: Any) -> dict[str, dict[str, Any]]:
    """``ifd,random``, a list, or a mapping from names to parameters."""
    if isinstance(value, dict):
        for name, params in value.items():
            if not isinstance(params, Mapping | Config | None):
                raise ConfigError(f"method '{name}' is followed by a mapping of its keys; not {kind_of(params)}")
        return {str(name): dict(params or {}) for name, params in value.items()}
    items = value if isinstance(value, list | tuple) else [value]
    if wrong := [one for one in items if not isinstance(one, str)]:
        raise ConfigError(f"methods are names, or a mapping from names to their keys; not {kind_of(wrong[0])}")
    names = [name.strip() for item in items for name in item.split(",") if name.strip()]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise ConfigError(f"method '{twice}' is given twice")
    return {name: {} for name in names}


class SelectConfig(MethodsConfig):
    """``instdiff select``."""

    scores: str | None = key(
        None, "What `score` wrote; without it methods that need no model run here.", also="scores_path"
    )
    method: dict[str, dict[str, Any]] = key(dict, METHODS)
    model: dict[str, str] = key(dict, MODELS)
    budget: str | int | None = key(
        None,
        "500, 10% of the rows, '25% eligible', '200000 tokens', '10% tokens', '10% answer tokens' (default 10%).",
        metavar="BUDGET",
    )
    rows: str | None = key(
        None,
        "The numbers of the rows to take, one a line, instead of a budget; the page writes such files.",
        metavar="FILE",
    )
    select_ratio: float | None = key(
        None, "The budget as a share, 0.1 for 10 %; `budget: tokens`, `rows` or `filtered` says of what."
    )
    per: Bound = key(None, f"{PER} All of these rows are taken where no budget is given.", metavar="COLUMN k", words=2)
    order: Literal["rank", "input"] = key("rank", "Order of the rows.")
    group_by: str | None = key(None, "Column of the input; the same share of each of its values.")
    quota: dict[str, str | int] = key(dict, "Budgets of single groups by name, with `group_by`.")
    near_duplicates: float | None = key(None, NEAR_DUPLICATES, metavar="X", gt=0, le=1)
    with_scores: bool = key(False, "Add the method's columns to the rows.")
    weights: str | None = key(
        None, "Detail of the method, as lark.weight, to write as column `weight` for training.", metavar="DETAIL"
    )
    output: str | None = key(None, OUTPUT, metavar="PATH", also="output_path")
    record: str | None = key(None, "Where the record goes (default: beside the output).", metavar="PATH")
    strict: bool = key(False, "Exit 3 when the budget is not met.")


class TrainPart(TrainSettings):
    """``train:`` of ``instdiff train``: settings, and what to train on what, to where."""

    model_name_or_path: str | None = key(None, "Published name of the command's `model`.")
    data_path: str | None = key(None, "Published name of the command's `data`.")
    output_dir: str | None = key(None, "Published name of the command's `output`.")


class TrainConfig(DataConfig, RunConfig):
    """``instdiff train``.

    With ``print_launch``, a folder, launch files for ``nodes`` machines with ``gpus_per_node`` processes each are
    written there, and nothing is trained.
    """

    model: str | None = key(None, MODEL, also="base_model model_name_or_path")
    output: str | None = key(None, OUTPUT, metavar="PATH", also="output_path output_dir")
    train: TrainPart = key(
        TrainPart,
        "See [training settings](#training-settings). The published `model_name_or_path`, `data_path` and "
        "`output_dir` may stand here too.",
    )
    print_launch: str | None = key(
        None,
        "Write launch files for several GPUs or machines to DIR (default: launch) and train nothing.",
        metavar="[DIR]",
        alone="launch",
    )
    nodes: PositiveInt = key(1, "Machines, for --print-launch.", metavar="N")
    gpus_per_node: PositiveInt = key(1, "Processes on each, for --print-launch.", metavar="M")
    strict: bool = key(False, "Exit 2 where no row has an end to learn.")

    @model_validator(mode="before")
    @classmethod
    def _places(cls, values: dict[str, Any]) -> dict[str, Any]:
        """What stands at the top, an option for one, goes before the published place."""
        published = {"data": "data_path", "model": "model_name_or_path", "output": "output_dir"}
        part = values.get("train") or {}
        found = {key: part[name] for key, name in published.items() if isinstance(part, dict) and part.get(name)}
        return {**found, **{key: value for key, value in values.items() if key not in found or value}}


class PipelineConfig(DataConfig, RunConfig, ExecutorConfig):
    """``instdiff pipeline``."""

    model: str | None = key(None, MODEL, also="base_model")
    models: dict[str, str] = key(dict, "Those of roles beside the base.")
    target: str | None = key(None, TARGET, metavar="FILE")
    holdout: str | None = key(None, HOLDOUT, metavar="FILE")
    output: str | None = key(None, "The run folder.", metavar="DIR", also="output_dir")
    iterations: PositiveInt = key(1, "Rounds of scoring, selecting and training.")
    method: str | None = key(None, "The method that selects (default instructdiff); `select.method` is the same.")
    budget: str | int | None = key(
        None, "500, 10%, '10% tokens' (default 10%); `select.budget` is the same.", metavar="BUDGET"
    )
    near_duplicates: float | None = key(
        None, f"{NEAR_DUPLICATES} `select.near_duplicates` is the same.", metavar="X", gt=0, le=1
    )
    per: Bound = key(
        None,
        "The best k rows of each value of a column, as 'prompt 1'; `select.per` is the same.",
        metavar="COLUMN k",
        words=2,
    )
    weights: str | None = key(
        None,
        "Detail of the method, as lark.weight, that rows weigh by in training, or none; `select.weights` is the same.",
        metavar="DETAIL",
    )
    train: TrainSettings = key(TrainSettings, "How to train, everywhere: see [training settings](#training-settings).")
    warmup: WarmupPart = key(WarmupPart, "See [warmup](#warmup-of-the-pipeline).")
    score: ScorePart = key(ScorePart, "See [score](#score-of-the-pipeline).")
    select: SelectPart = key(SelectPart, "See [select](#select-of-the-pipeline).")
    select_train: SelectTrainPart = key(SelectTrainPart, "See [select_train](#select_train-of-the-pipeline).")
    eval: EvalPart | None = key(None, "See [eval](#eval-of-the-pipeline); without it nothing is evaluated.")
    leaks: bool = key(True, LEAKS)
    keep_models: bool = key(
        True,
        "False removes models that nothing later needs: of calibration, folds and controls, and of all rounds but the "
        "last.",
    )
    cells_at_once: PositiveInt | None = key(
        None, "Controls trained and evaluated side by side; by default one for each core where the model is small."
    )
    strict: bool = key(False, "Exit 2 where no row of a training has an end to learn.")

    @classmethod
    def shape(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Keys of ``select`` where the published keys have them."""
        keys = ("method", "budget", "near_duplicates", "per", "weights")
        given = {key: values.pop(key) for key in keys if values.get(key) is not None}
        return {**values, "select": {**(values.get("select") or {}), **given}} if given else values


class ReadConfig(RowsConfig):
    """Rows that were read before: how turns are shown and learnt stands in the record, where no key says it."""

    format: str | None = key(None, "Data format, where it is not recognised.")
    targets: Literal["all", "last", "all+calls"] | None = key(None, "Turns to learn, by default as recorded.")
    reasoning: Literal["learn", "context", "drop"] | None = key(None, "Thoughts, by default as recorded.")
    system: Literal["keep", "fold"] | None = key(None, "Refused system turns, by default as recorded.")

    def turns(self) -> dict[str, Any]:
        """How conversations are shown and learnt; None stands for what the record says."""
        return {"targets": self.targets, "reasoning": self.reasoning, "system": self.system}

    def reading(self) -> dict[str, Any]:
        """How the rows are read, as ``selection.record.Reading`` takes it."""
        known = {"format": self.format, "map": self.mapping(), "longest_line_mb": self.longest_line_mb}
        return {**known, **self.turns()}


class ReportConfig(ReadConfig):
    """``instdiff report``."""

    data: Data = key(None, "The rows of a score file, where it does not say where they are.", metavar="PATH")
    selection: str | None = key(None, "Which selection is shown, of several; by default the newest.", metavar="PATH")
    method: str | None = key(None, "The method whose selection is shown.", metavar="NAME")
    output: str | None = key(None, "Where the page goes.", metavar="FILE")
    store: str | None = key(None, STORE, metavar="DIR")


class VerdictConfig(ReadConfig):
    """``instdiff verdict``."""

    data: Data = key(None, "The rows that were scored, where the scores do not say where they are.", metavar="PATH")
    output: list[str] = key(list, "Where the card goes: .svg, .md, .txt or .json; may repeat.", metavar="FILE")
    store: str | None = key(None, STORE, metavar="DIR")


class StoreConfig(Config):
    """``instdiff store``."""

    store: str | None = key(None, STORE, metavar="DIR")
    keep: list[str] = key(list, "A model whose columns stay; may repeat.", metavar="WHERE")
    older_than: str | None = key(None, "Only what was not used for so long: 12h, 30d, 8w.")
    dry_run: bool = key(False, "Tell what would go, and leave it.")
    repair: bool = key(False, "Set damaged files aside; what they held is computed again.")
