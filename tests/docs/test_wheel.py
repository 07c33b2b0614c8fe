"""What is built for an index: the wheel works without the extras, and the source archive has the tests."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from helpers import ABSENT, WITHOUT

from .pages import ROOT

BUILD = "from setuptools import build_meta; print(build_meta.build_{}('{}'))"
RUN = f"""{WITHOUT}
import instdiff
assert instdiff.__file__.startswith(sys.argv.pop(1)), instdiff.__file__
from instdiff.cli.entry import main
main()
"""
WORK = (
    "score --data builtin:demo --limit 40 --method longest,zip --output s.parquet",
    "select --data builtin:demo --limit 40 --scores s.parquet --method longest --budget 10% --output a.jsonl",
    "select --data builtin:demo --limit 40 --scores s.parquet --method zip --budget 10% --output b.jsonl",
    "diff a.jsonl b.jsonl",
    "export --data a.jsonl --format trl --output trl --name tenth",
    "report s.parquet --data builtin:demo --output page.html",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    pytest.importorskip("setuptools", reason="setuptools is missing")
    place = tmp_path_factory.mktemp("built")
    aside = ("build", "dist", "__pycache__", ".*", "*.egg-info", "runs")
    tree = shutil.copytree(ROOT, place / "tree", ignore=shutil.ignore_patterns(*aside))
    for kind in ("wheel", "sdist"):
        asked = [sys.executable, "-c", BUILD.format(kind, place)]
        done = subprocess.run(asked, cwd=tree, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    return {"wheel": next(place.glob("*.whl")), "sdist": next(place.glob("*.tar.gz"))}


@pytest.mark.slow
def test_the_wheel_works_without_the_extras(built: dict[str, Path], tmp_path: Path) -> None:
    site, home = tmp_path / "site", tmp_path / "home"
    home.mkdir()
    with zipfile.ZipFile(built["wheel"]) as wheel:
        wheel.extractall(site)
    for words in WORK:
        done = subprocess.run(
            [sys.executable, "-c", RUN, ABSENT, str(site), *words.split()],
            cwd=home, env={"PYTHONPATH": str(site), "HOME": str(home), "PATH": ""}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert done.returncode == 0, (words, done.stderr)
    assert len((home / "trl" / "tenth.jsonl").read_text().splitlines()) == 4 and (home / "page.html").is_file()


@pytest.mark.slow
def test_what_an_index_shows(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built["wheel"]) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith("METADATA")]
        head, _, text = wheel.read(name).decode().partition("\n\n")
    assert {"models", "train", "eval", "report", "judge", "ray", "all"} <= set(
        re.findall(r"Provides-Extra: (.*)", head)
    )
    assert "Project-URL: Paper, https://" in head and "Programming Language :: Python :: 3.13" in head
    assert not [one for one in re.findall(r"Requires-Dist: (.*)", head) if "torch" in one and "extra ==" not in one]
    assert "# instdiff" in text and not re.findall(r"\]\((?!https://)[^)]*\)", text)


@pytest.mark.slow
def test_the_source_archive_has_the_tests(built: dict[str, Path]) -> None:
    with tarfile.open(built["sdist"]) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    wanted = ["tests/docs/test_wheel.py", "tests/docs/jargon.txt", "docs/index.md", "configs/demo.yaml", "setup.py"]
    assert set(wanted) <= inside and "src/instdiff/data/builtin/tiny/model.safetensors" in inside
