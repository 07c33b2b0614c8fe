"""LESS by the gradients of all layers, which Bergson takes: a column file that `column` ranks by.

Bergson (https://github.com/EleutherAI/bergson) projects the gradients of each save of a warm-up and gives their
cosines; weights of saves, means over tasks and the maximum are taken here. It normalises by Adam's second moments
alone, so the numbers are near LESS's (arXiv:2402.04333) and not equal to them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.core.files import writing
from instdiff.data import Pool
from instdiff.data.load import as_pool
from instdiff.errors import ConfigError, DataError, require

COLUMN = "less"
"""The key of each row's number in the column file."""
PROJECTED = 8192
"""Numbers to which a gradient is projected, as published."""

Floats = npt.NDArray[np.float64]


def score_by_bergson(
    pool: Any,
    target: Any,
    saves: Mapping[str, float],
    output: str | Path,
    *,
    folder: str | Path,
    task: str | None = None,
    optimizer_states: Mapping[str, str] | None = None,
    **index: Any,
) -> Path:
    """Write a line for each row of the pool with its LESS score; ``column`` reads it with ``by: line``.

    ``pool`` and ``target`` are rows, or what ``load`` reads. ``saves`` are folders of models or adapters with their
    weights, in LESS the mean learning rate of the epoch; ``optimizer_states`` has the state of some of them.
    Bergson's own files go to ``folder``. ``task`` names a column of the target. ``index`` are further fields of
    Bergson's ``IndexConfig``, such as ``precision``. Prompts are rendered by the tokenizer's chat template.

    Raises a PlanError without the extra ``bergson``, a ConfigError for weights that cannot be shares, and a DataError
    where Bergson leaves a row out.
    """
    require("bergson", "LESS by the gradients of all layers")
    pool, target, folder, output = as_pool(pool), as_pool(target), Path(folder), Path(output)
    if not saves or not all(weight > 0 for weight in saves.values()):
        raise ConfigError(f"weights of saves lie above 0, and there is one at least; given are {dict(saves)}")
    for name, rows in (("pool", pool), ("target", target)):
        _write_rows(folder / f"{name}.jsonl", rows)
    total, found = sum(saves.values()), np.zeros((len(pool), len(target)))
    for number, (save, weight) in enumerate(saves.items(), 1):
        state = (optimizer_states or {}).get(save, "")
        cosines = _cosines(save, folder, folder / f"save_{number}", optimizer_state=state, **index)
        if cosines.shape != found.shape:
            raise DataError(
                f"Bergson gave scores {cosines.shape} for {found.shape[0]} rows and {found.shape[1]} targets"
            )
        found += weight / total * cosines
    values = best_task(found, None if task is None else [str(name) for name in target.column(task)])
    with writing(output) as aside:
        aside.write_text("".join(json.dumps({COLUMN: value}) + "\n" for value in values.tolist()), encoding="utf-8")
    return output


def best_task(cosines: Floats, tasks: list[str] | None) -> Floats:
    """Per row of [rows, targets] the largest of the means over the targets of a task; without tasks each is one."""
    names = np.array(list(map(str, range(cosines.shape[1]))) if tasks is None else tasks, object)
    return np.asarray(np.stack([cosines[:, names == name].mean(1) for name in dict.fromkeys(names)]).max(0))


def _write_rows(path: Path, rows: Pool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for sample in rows.samples():
            turns = [(m.role, "\n".join(filter(None, (m.content, m.input)))) for m in sample.messages]
            said = {"messages": [{"role": role, "content": text} for role, text in turns]}
            file.write(json.dumps(said, ensure_ascii=False) + "\n")


def _cosines(model: str, rows: Path, place: Path, **index: Any) -> Floats:
    """The cosine of each row's gradient with each target's: [rows, targets]."""
    from bergson import DataConfig, IndexConfig, PreprocessConfig, ScoreConfig
    from bergson.cli.commands import Build, Score
    from bergson.data import load_scores

    def settings(name: str) -> Any:
        data = DataConfig(dataset=str(rows / f"{name}.jsonl"), conversation_column="messages", truncation=True)
        how = {"projection_dim": PROJECTED, "projection_target": "global", "loss_reduction": "mean", **index}
        return IndexConfig(run_path=str(place / name), model=model, data=data, overwrite=True, **how)

    unit = PreprocessConfig(unit_normalize=True, aggregation="none")
    Build(settings("target"), unit).execute()
    Score(ScoreConfig(query_path=str(place / "target"), score="individual"), settings("pool"), unit).execute()
    return np.asarray(load_scores(place / "pool")[:], np.float64)
