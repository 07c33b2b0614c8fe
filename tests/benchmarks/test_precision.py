"""Weights in half precision rank real rows as those in full precision do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import instdiff
from instdiff import IFD, InstructDiff, ModelRef, Perplexity, ResponseEntropy, Settings, Store, Superfiltering
from instdiff.config.train import TrainSettings
from instdiff.core.arrays.correlation import spearman
from instdiff.scoring.table import ScoreTable
from instdiff.training.sft import train

pytestmark = [pytest.mark.slow, pytest.mark.shared_data]

METHODS = {
    "ifd": IFD(),
    "perplexity": Perplexity(),
    "entropy": ResponseEntropy(),
    "superfiltering": Superfiltering(),
    "instructdiff": InstructDiff(),
}
ROWS, TRAINED = 400, 400


@pytest.fixture(scope="module")
def tables(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ScoreTable]:
    """Scores in each precision; the calibrated model is trained shortly on rows of its own."""
    home = tmp_path_factory.mktemp("precision")
    pool = instdiff.load(str(shared / "data" / "alpaca" / "alpaca_union.json"))
    order = np.random.default_rng(0).permutation(len(pool))
    base = ModelRef(str(shared / "models" / "base-5m"))
    calibrated = train(
        pool.take(order[ROWS : ROWS + TRAINED]),
        base,
        TrainSettings(learning_rate=5e-4, num_train_epochs=1, global_batch_size=16, model_max_length=512),
        Settings(device="cpu"),
        home / "calibrated",
        store=Store(home / "store"),
        seed=0,
        log=print,
    )
    return {
        dtype: instdiff.score(
            pool.take(np.sort(order[:ROWS])),
            METHODS,
            {"base": base, "proxy": base, "calibrated": calibrated},
            settings=Settings(max_length=512, dtype=dtype, device="cpu"),
            store=Store(home / "store"),
        )
        for dtype in ("float32", "bfloat16")
    }


@pytest.mark.parametrize("name", METHODS)
def test_the_ranking_survives_half_precision(tables: dict[str, ScoreTable], name: str) -> None:
    full, half = tables["float32"][name], tables["bfloat16"][name]
    found = spearman(full.value, half.value)
    print(f"{name}: rank correlation {found:.5f} over {int((full.eligible & half.eligible).sum())} rows")
    for detail in full.details:
        print(f"  {detail}: {spearman(full.details[detail], half.details[detail]):.5f}")
    assert found >= 0.995
