"""instdiff: choose the tenth of your instruction data that teaches your model.

```python
import instdiff

pool = instdiff.load("my.jsonl")
scores = instdiff.score(pool, [instdiff.IFD()], models={"base": "Qwen/Qwen2.5-0.5B"})
subset = instdiff.select(pool, scores["ifd"], budget="10%")
subset.to_jsonl("selected.jsonl")
```

Names are imported when they are first used, so that ``import instdiff`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from instdiff.version import __version__

if TYPE_CHECKING:
    from instdiff.core import (
        Asked,
        Budget,
        Choice,
        Column,
        Demonstrated,
        Embedding,
        Entropy,
        Judged,
        Length,
        Listed,
        MeanNll,
        Method,
        ModelRef,
        Neurons,
        Nll,
        Noisy,
        Pooled,
        Prompted,
        PromptOnly,
        ResponseOnly,
        Scored,
        Scores,
        Settings,
        Signal,
        Signals,
        Text,
        Top1,
        WholeText,
        Words,
        reasons,
        vectors,
    )
    from instdiff.core.arrays.ragged import Ragged
    from instdiff.data import Message, Pool, Sample
    from instdiff.data.load import load
    from instdiff.errors import ConfigError, DataError, EngineError, InstDiffError, PlanError, StoreError
    from instdiff.evaluation.evaluator import evaluate
    from instdiff.evaluation.results import SuiteResult, TaskResult, read_results
    from instdiff.experiments.compare import compare
    from instdiff.experiments.pipeline import pipeline
    from instdiff.methods import (
        DEITA,
        DS2,
        IFD,
        MADS,
        METHODS,
        MIWV,
        RDS,
        AlpaGasus,
        Blend,
        CosineFilter,
        FacilityLocation,
        Full,
        InstructDiff,
        KCenter,
        KMeansQuota,
        Longest,
        Nuggets,
        Perplexity,
        Random,
        ResponseEntropy,
        SelectIT,
        Superfiltering,
        SuperfilteringD,
        Then,
        TShirt,
        Zip,
    )
    from instdiff.reporting import report
    from instdiff.scoring.cost import Bill, CostEstimate, plan
    from instdiff.scoring.scorer import score
    from instdiff.scoring.table import ScoreTable, read_scores
    from instdiff.selection.export.export import export
    from instdiff.selection.selector import Selection, select
    from instdiff.store import Store
    from instdiff.training.sft import train

_HOMES = {
    "scoring.cost": ("Bill", "CostEstimate", "plan"),
    "experiments.compare": ("compare",),
    "core": (
        "Asked",
        "Budget",
        "Choice",
        "Column",
        "Demonstrated",
        "Embedding",
        "Entropy",
        "Judged",
        "Length",
        "Listed",
        "MeanNll",
        "Method",
        "ModelRef",
        "Neurons",
        "Nll",
        "Noisy",
        "Pooled",
        "PromptOnly",
        "Prompted",
        "ResponseOnly",
        "Scored",
        "Scores",
        "Settings",
        "Signal",
        "Signals",
        "Text",
        "Top1",
        "WholeText",
        "Words",
        "reasons",
        "vectors",
    ),
    "data": ("Message", "Pool", "Sample", "load"),
    "errors": ("ConfigError", "DataError", "EngineError", "InstDiffError", "PlanError", "StoreError"),
    "evaluation.evaluator": ("evaluate",),
    "selection.export.export": ("export",),
    "methods": (
        "DEITA",
        "DS2",
        "IFD",
        "MADS",
        "METHODS",
        "MIWV",
        "RDS",
        "AlpaGasus",
        "Blend",
        "CosineFilter",
        "FacilityLocation",
        "Full",
        "InstructDiff",
        "KCenter",
        "KMeansQuota",
        "Longest",
        "Nuggets",
        "Perplexity",
        "Random",
        "ResponseEntropy",
        "SelectIT",
        "Superfiltering",
        "SuperfilteringD",
        "TShirt",
        "Then",
        "Zip",
    ),
    "core.arrays.ragged": ("Ragged",),
    "reporting": ("report",),
    "evaluation.results": ("SuiteResult", "TaskResult", "read_results"),
    "experiments.pipeline": ("pipeline",),
    "scoring.scorer": ("score",),
    "selection.selector": ("Selection", "select"),
    "store": ("Store",),
    "scoring.table": ("ScoreTable", "read_scores"),
    "training.sft": ("train",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'instdiff' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"instdiff.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
