"""Killed in the middle, run again: the same scores, and nothing is computed twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from helpers import Counting, Lab, some_rows
from instdiff.methods import IFD, InstructDiff
from instdiff.store import Store

SLOW = """
import sys, time
from contextlib import contextmanager

from helpers import Lab, some_rows
from instdiff.scoring import run_pass
from instdiff.methods import IFD, InstructDiff
from instdiff.store import Store
from pathlib import Path


class Slow:
    @contextmanager
    def task(self, label, *, rows, tokens, cached=0):
        yield lambda rows, tokens: time.sleep(0.05)

models = {"llama": Path(sys.argv[1]), "other": Path(sys.argv[2])}
lab = Lab(models, Path(sys.argv[3]))
lab.score(some_rows(60), [InstructDiff(), IFD()], store=Store(sys.argv[3]), batch_tokens=1, progress=Slow())
"""


def test_a_killed_run_goes_on_where_it_was(lab: Lab, tmp_path: Path) -> None:
    clean = Counting()
    whole = lab.score(some_rows(60), [InstructDiff(), IFD()], progress=clean)
    home = tmp_path / "store"
    run = [sys.executable, "-c", SLOW, str(lab.models["llama"]), str(lab.models["other"]), str(home)]
    path = os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(run, env={**os.environ, "PYTHONPATH": path})
    try:
        until = time.monotonic() + 120
        while len(list(home.glob("columns/*/*.parquet"))) < 12 and time.monotonic() < until:
            assert process.poll() is None, "the slow run ended before it could be killed"
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL

    kept = len(list(home.glob("columns/*/*.parquet")))
    counting = Counting()
    resumed = lab.score(some_rows(60), [InstructDiff(), IFD()], store=Store(home), progress=counting)
    # A row has a column or two, so at least half as many rows as parts are done; one may lack its second column.
    assert kept >= 12 and 0 < counting.rows <= clean.rows - (kept - 1) // 2
    for name in ("instructdiff", "ifd"):
        for detail, values in whole[name].details.items():
            np.testing.assert_allclose(resumed[name].details[detail], values, rtol=1e-5, atol=1e-5, err_msg=detail)
        assert resumed[name].reason.tolist() == whole[name].reason.tolist()
        assert resumed[name].best().tolist() == whole[name].best().tolist()
