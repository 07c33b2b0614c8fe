"""The benchmarks start, and their records are as `benchmarks/README.md` says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HOME = Path(__file__).resolve().parents[2] / "benchmarks"
NAMES = re.findall(r"^## (\w+)$", (HOME / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
RESULTS = sorted((HOME / "results").glob("*.json"))
MACHINE = {"cpu", "cores", "threads", "torch"}
"""What every record says of the machine; newer ones say more."""
MORE = {"family", "model", "instructions", "load", "peak_gflops"}


def documented(name: str, kind: str) -> tuple[set[str], set[str]]:
    """Fields of a benchmark's records of a kind, by the tables of the README: those of all records, and of some."""
    text = (HOME / "README.md").read_text(encoding="utf-8")
    section = text.split(f"\n## {name}\n")[1].split("\n## ")[0]
    needed, allowed = {"machine", "command"}, set()
    for fields, of in re.findall(r"^\| (`.+?) \| (.+?) \| .+ \|$", section, re.MULTILINE):
        names = set(re.findall(r"`(\w+)`", fields))
        if of == "all" or kind in of.split(", "):
            needed |= names
        elif of == "some":
            allowed |= names
    return needed, allowed


def kind_of(record: dict[str, Any]) -> str:
    """Scoring of published models has fields of its own."""
    return str(record.get("kind") or record.get("what") or ("model" if "hflm_1_s" in record else "shape"))


def check(name: str, records: list[dict[str, Any]]) -> None:
    assert records
    for record in records:
        needed, allowed = documented(name, kind_of(record))
        assert record.keys() - allowed == needed
        assert record["machine"].keys() in (MACHINE, MACHINE | MORE)
        assert record["command"].startswith(f"python benchmarks/{name}.py")


def test_what_is_documented_is_there() -> None:
    assert {"scoring", "memory", "sharing", "growth"} <= set(NAMES) <= {path.stem for path in HOME.glob("*.py")}


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_committed_results_have_the_documented_fields(path: Path) -> None:
    check(path.name.split("-")[0], json.loads(path.read_text(encoding="utf-8")))


def run(name: str, *how: str) -> str:
    command = [sys.executable, f"benchmarks/{name}.py", "--quick", *how]
    done = subprocess.run(command, cwd=HOME.parent, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "gpu"])
def test_a_quick_run(name: str, tmp_path: Path) -> None:
    run(name, "--json", str(tmp_path / "out.json"))
    check(name, json.loads((tmp_path / "out.json").read_text(encoding="utf-8")))


def test_the_gpu_benchmark_on_a_cpu(tmp_path: Path) -> None:
    run("gpu", "--cpu", "--json", str(tmp_path / "out.json"))
    records = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    check("gpu", records)
    scored, noisy, trained = records
    assert [record["kind"] for record in records] == ["scoring", "noise", "training"]
    assert scored["packed"] and scored["nll_difference"] < 1e-3 and trained["loss_difference"] < 1e-2
    assert min(scored["ratio_loop"], noisy["ratio_clean"], trained["ratio_trl"]) > 0


@pytest.mark.slow
def test_the_gpu_benchmark_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert run("gpu") == "no CUDA device is here; --cpu runs the same at a toy shape\n"
