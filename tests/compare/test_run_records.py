"""What a run folder says of itself is what was written, or is refused by name."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import instdiff
from cli.shell import write_jsonl
from helpers import make_llama, some_rows
from instdiff.config.commands import ScoreConfig
from instdiff.core.files import lock_folder, read_json, write_record
from instdiff.errors import StoreError
from instdiff.experiments.run_folder import PipelineFolder, RunFolder, alone
from store.test_sums import FLIPS, flips

FACTS = {"suite": "heldout", "accuracy": 0.625, "rows": [3, 1, 2], "seeds": {"7": [0.5, None]}, "name": "Größe"}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = RunFolder(tmp_path / "run")
    run.claim(ScoreConfig(data=["rows.jsonl"], seed=7), {"data": "0123abcd"})
    run.add_event("score", {"rows": 12, "seconds": 3.5})
    run.add_event("select", {"rows": 2})
    write_record(run.path / "results.json", FACTS)
    return run


def test_the_folder_is_read_as_it_was_written(run: RunFolder) -> None:
    assert yaml.safe_load(run.read_config())["seed"] == 7
    assert run.events() == [
        {"event": "score", "rows": 12, "seconds": 3.5},
        {"event": "select", "rows": 2},
    ]
    run.check_config(ScoreConfig(data=["rows.jsonl"], seed=7))
    run.claim(ScoreConfig(data=["rows.jsonl"], seed=7), {"data": "0123abcd"})


@pytest.mark.parametrize("name", ["results.json", "environment.json"])
def test_no_flipped_bit_of_a_record_passes(run: RunFolder, name: str) -> None:
    path = run.path / name
    raw, before, refused = path.read_bytes(), read_json(path), 0
    for damaged in flips(raw, FLIPS):
        path.write_bytes(damaged)
        try:
            found = read_json(path)
        except StoreError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            assert {key: found.get(key) for key in before} == before
    assert refused > FLIPS // 2


def test_no_flipped_bit_of_a_configuration_passes(run: RunFolder) -> None:
    raw, before, refused = run.config.read_bytes(), yaml.safe_load(run.read_config()), 0
    for damaged in flips(raw, FLIPS):
        run.config.write_bytes(damaged)
        try:
            found = yaml.safe_load(run.read_config())
        except StoreError as error:
            assert f"'{run.config}' was changed since the run began (" in str(error)
            refused += 1
        else:
            assert {key: found[key] for key in before} == before
    assert refused > FLIPS // 2


def test_no_flipped_bit_of_a_log_passes(run: RunFolder) -> None:
    raw, before = run.log.read_bytes(), run.events()
    for damaged in flips(raw, FLIPS):
        run.log.write_bytes(damaged)
        # A damaged line is shown as it stands, and no fact is taken from it.
        assert all(
            any({key: event.get(key) for key in whole} == whole for whole in before) or event.keys() == {"event"}
            for event in run.events()
        )


def test_a_configuration_without_a_sum_is_read(run: RunFolder) -> None:
    run.config.write_text("seed: 9\n")
    assert yaml.safe_load(run.read_config()) == {"seed": 9}


HOLDER = """
import sys
from pathlib import Path
from instdiff.config.commands import ScoreConfig
from instdiff.experiments.run_folder import PipelineFolder, alone
with alone():
    PipelineFolder(Path(sys.argv[1])).claim(ScoreConfig(data=["rows.jsonl"], seed=7), {"data": "0123abcd"})
    print("claimed", flush=True)
    sys.stdin.read()
"""


def test_a_process_at_work_keeps_others_out(tmp_path: Path) -> None:
    """A second one deletes nothing of the first, neither half-written files nor what a given-up run leaves."""
    place = tmp_path / "run"
    run, config, half = (
        PipelineFolder(place),
        ScoreConfig(data=["rows.jsonl"], seed=7),
        place / ".rows.jsonl.77.partial",
    )
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, place], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ)
    ) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"claimed\n"
        half.write_text("half")
        run.add_event("score", {"rows": 12})
        with pytest.raises(StoreError, match=f"another process works in '{place}'; wait until it has ended"):
            run.claim(config, {"data": "0123abcd"})
        assert half.exists() and len(run.events()) == 1
        holder.kill()
    run.claim(config, {"data": "0123abcd"})
    assert not half.exists() and run.events() == []


def test_runs_of_one_process_come_in_turn(tmp_path: Path) -> None:
    config, kept = ScoreConfig(data=["rows.jsonl"], seed=7), []
    for _ in range(2):
        with alone():
            kept.append(RunFolder(tmp_path / "run"))  # a notebook keeps what it has made
            kept[-1].claim(config, {"data": "0123abcd"})
            with pytest.raises(StoreError, match="another process"):
                RunFolder(tmp_path / "run").claim(config, {"data": "0123abcd"})
    with pytest.raises(ZeroDivisionError), alone():
        kept[0].claim(config, {"data": "0123abcd"})
        raise ZeroDivisionError
    kept[1].claim(config, {"data": "0123abcd"})


@pytest.mark.parametrize("command", [instdiff.pipeline, instdiff.compare, instdiff.search])
def test_every_run_has_its_folder_alone(
    command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_jsonl(tmp_path / "rows.jsonl", some_rows(40, seed=3))
    make_llama(tmp_path / "base", chat=None, num_hidden_layers=1)
    claim, place = RunFolder.claim, tmp_path / "run"

    def claimed(self: RunFolder, *of: Any) -> None:
        claim(self, *of)
        with pytest.raises(BlockingIOError):
            lock_folder(place, exclusive=True)
        raise ZeroDivisionError

    monkeypatch.setattr(RunFolder, "claim", claimed)
    how = {"method": "longest"} if command is instdiff.pipeline else {}
    for _ in range(2):  # an error leaves it free for the next
        with pytest.raises(ZeroDivisionError):
            command(str(tmp_path / "rows.jsonl"), str(tmp_path / "base"), output=place, **how)
    handle = lock_folder(place, exclusive=True)
    assert handle is not None
    os.close(handle)
