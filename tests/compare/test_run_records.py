"""What a run folder says of itself is what was written, or is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from instdiff.config.commands import ScoreConfig
from instdiff.core.files import read_json, write_record
from instdiff.errors import StoreError
from instdiff.experiments.run_folder import RunFolder
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
