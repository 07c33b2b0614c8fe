"""A score file may come from anywhere: what its metadata names is not run unless the user names it too."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers import Lab, some_rows
from instdiff.config.methods import make_method
from instdiff.core import Budget
from instdiff.errors import ConfigError
from instdiff.scoring.table import read_scores

MINE = """
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar
import numpy as np
from instdiff.core import Method, Scores

Path("ran").write_text("yes")

@dataclass(frozen=True)
class Mine(Method):
    name: ClassVar[str] = "mine"
    bonus: float = 1.0

    def score(self, s):
        return Scores(np.arange(len(s)) + self.bonus)
"""


def test_a_file_named_in_scores_is_not_run(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)
    table = lab.score(some_rows(6), [make_method("./mine.py:Mine", {"bonus": 2.0})])
    table.meta["methods"]["mine"]["spec"] = "./mine.py:Mine"
    table.write("scores.parquet")
    Path("ran").unlink()

    unknown = read_scores("scores.parquet")["mine"]
    assert not Path("ran").exists()
    assert unknown.value.tolist() == table["mine"].value.tolist() and unknown.method.params() == {"bonus": 2.0}
    with pytest.raises(ConfigError, match=r"not run unless you name it; give --method \./mine\.py:Mine"):
        unknown.method.pick(unknown, Budget(2, "rows"))

    asked = read_scores("scores.parquet", run=["./mine.py:Mine"])["mine"]
    assert Path("ran").exists()
    assert asked.method.pick(asked, Budget(2, "rows")).tolist() == [5, 4]
