"""What Python may give to the public functions, and what they say to everything else."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import instdiff
from instdiff.config.compare import CompareConfig
from instdiff.errors import ConfigError, DataError, InstDiffError
from instdiff.experiments.inputs import as_lines, configured

ROWS = [{"instruction": f"Add {n} and {n}.", "input": "", "output": f"{n} + {n} = {2 * n}."} for n in range(12)]
TINY: dict[str, Any] = {"model": "builtin:tiny", "template": "plain", "max_length": 128, "dtype": "float32"}


def as_pandas(rows: list[dict[str, Any]]) -> Any:
    return pytest.importorskip("pandas", reason="pandas is missing").DataFrame(rows)


def as_polars(rows: list[dict[str, Any]]) -> Any:
    return pytest.importorskip("polars", reason="polars is missing").DataFrame(rows)


def as_dataset(rows: list[dict[str, Any]]) -> Any:
    return pytest.importorskip("datasets", reason="datasets is missing").Dataset.from_list(rows)


def as_splits(rows: list[dict[str, Any]]) -> Any:
    datasets = pytest.importorskip("datasets", reason="datasets is missing")
    return datasets.DatasetDict(train=as_dataset(rows), test=as_dataset(rows[:2]))


CONTAINERS: list[Callable[[list[dict[str, Any]]], Any]] = [
    *(list, tuple, iter, as_pandas, as_polars, as_dataset, as_splits, pa.Table.from_pylist, instdiff.load),
    lambda rows: pa.Table.from_pylist(rows).to_batches()[0].to_struct_array().to_pylist(),
]


@pytest.mark.parametrize("made", CONTAINERS)
def test_rows_are_the_same_from_everywhere(made: Callable[[list[dict[str, Any]]], Any]) -> None:
    pool = instdiff.load(made(ROWS))
    assert pool.ids == instdiff.load(ROWS).ids and pool.head(2) == ROWS[:2] and pool.rejected == ()


@pytest.mark.parametrize("made", [as_pandas, as_polars])
def test_a_cell_that_lacks_in_a_frame_is_none(made: Callable[[list[dict[str, Any]]], Any]) -> None:
    pool = instdiff.load(made([{**ROWS[0], "tag": "a", "n": 1}, {**ROWS[1], "tag": None, "n": None}]))
    assert pool.column("tag") == ["a", None] and pool.column("n") == [1, None]


def test_chats_in_a_frame() -> None:
    rows = [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": f"Yes {n}"}]} for n in (1, 2)
    ]
    assert instdiff.load(as_pandas(rows)).ids == instdiff.load(rows).ids


def test_splits_without_train_are_named() -> None:
    datasets = pytest.importorskip("datasets", reason="datasets is missing")
    with pytest.raises(DataError, match="none is 'train'; give one of them: a, b"):
        instdiff.load(datasets.DatasetDict(a=as_dataset(ROWS), b=as_dataset(ROWS)))


def test_methods_by_name_and_as_objects(tmp_path: Path) -> None:
    given: list[Any] = [
        "longest,random",
        ["longest", "random"],
        [instdiff.Longest(), instdiff.Random],
        {"longest": {}, "random": None},
    ]
    tables = [instdiff.score(ROWS, one, store=tmp_path / "st", seed=42) for one in given]
    for table in tables:
        assert list(table) == ["longest", "random"]
        assert np.array_equal(table["longest"].value, tables[0]["longest"].value)
    assert np.array_equal(tables[0]["random"].value, tables[1]["random"].value)
    named = instdiff.score(ROWS, {"a": "longest", "b": instdiff.Random(seed=1)}, store=str(tmp_path / "st"))
    assert list(named) == ["a", "b"] and not (tmp_path / "st" / "given").exists()


def test_the_same_name_twice_is_told() -> None:
    with pytest.raises(ConfigError, match="method 'random' is given twice; give a mapping"):
        instdiff.score(ROWS, [instdiff.Random(seed=1), instdiff.Random(seed=2)])


def test_keywords_are_settings(tmp_path: Path) -> None:
    one = instdiff.score(ROWS, "ifd", **TINY, store=tmp_path)
    settings = instdiff.Settings(max_length=128, dtype="float32", templates={"*": "plain"})
    other = instdiff.score(
        ROWS, [instdiff.IFD()], {"base": "builtin:tiny"}, settings=settings, store=instdiff.Store(tmp_path)
    )
    assert np.array_equal(one["ifd"].value, other["ifd"].value, equal_nan=True) and one.meta == other.meta
    over = instdiff.score(ROWS, "ifd", "builtin:tiny", settings=settings, template="alpaca", store=tmp_path)
    assert over.meta["models"]["base"]["template"] == "alpaca" and over.meta["settings"]["max_length"] == 128
    assert instdiff.plan(ROWS, "ifd", **TINY, store=tmp_path).to_dict()["total"]["todo_rows"] == 0  # type: ignore[index]


def test_a_loaded_model_is_the_model_of_its_folder(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from instdiff.data.builtin import path

    model, tokenizer = AutoModelForCausalLM.from_pretrained(path("tiny")), AutoTokenizer.from_pretrained(path("tiny"))
    by_name = instdiff.score(ROWS, "ifd", **TINY, store=tmp_path)
    held = instdiff.score(ROWS, "ifd", **{**TINY, "model": (model, tokenizer)}, store=tmp_path)
    assert np.allclose(held["ifd"].value, by_name["ifd"].value, rtol=1e-6, equal_nan=True)
    (folder,) = (tmp_path / "given").iterdir()
    written = (folder / "model.safetensors").stat().st_mtime_ns
    instdiff.score(ROWS, "ifd", **{**TINY, "model": (model, tokenizer)}, store=tmp_path)
    assert (folder / "model.safetensors").stat().st_mtime_ns == written
    model.get_input_embeddings().weight.data.mul_(1.5)
    changed = instdiff.score(ROWS, "ifd", **{**TINY, "model": (model, tokenizer)}, store=tmp_path)
    assert not np.allclose(changed["ifd"].value, held["ifd"].value, equal_nan=True)
    assert len(list((tmp_path / "given").iterdir())) == 2


WRONG: list[Any] = [None, 5, 2.5, b"x", object(), [object()], {"a": object()}, (1, 2), len]


@pytest.mark.parametrize("wrong", WRONG, ids=[type(one).__name__ for one in WRONG])
def test_no_wrong_type_ends_in_a_python_error(wrong: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INSTDIFF_STORE", str(tmp_path))
    pool = instdiff.load(ROWS)
    scores = instdiff.score(pool, "longest")
    subset = instdiff.select(pool, scores, 3)
    calls: list[Callable[[], Any]] = [
        lambda: instdiff.load(wrong),
        lambda: instdiff.score(wrong, "longest"),
        lambda: instdiff.score(pool, wrong),
        lambda: instdiff.plan(pool, wrong),
        lambda: instdiff.select(pool, wrong),
        lambda: instdiff.select(wrong, scores),
        lambda: instdiff.export(wrong, "trl", tmp_path / "out"),
        lambda: instdiff.export(subset, wrong, tmp_path / "out"),
        lambda: instdiff.export(subset, "trl", wrong),
        lambda: instdiff.report(wrong),
        lambda: instdiff.read_scores(wrong),
        lambda: instdiff.read_results(wrong),
        lambda: instdiff.train(wrong, "builtin:tiny", tmp_path / "m"),
        lambda: instdiff.train(pool, wrong, tmp_path / "m"),
        lambda: instdiff.train(pool, "builtin:tiny", wrong),
        lambda: instdiff.evaluate(wrong, suite="heldout", data=pool),
        lambda: instdiff.compare(wrong, "builtin:tiny", "ifd", tmp_path / "run"),
        lambda: instdiff.compare(pool, wrong, "ifd", tmp_path / "run"),
        lambda: instdiff.pipeline(wrong, "builtin:tiny", tmp_path / "run"),
        lambda: instdiff.search(pool, wrong, tmp_path / "run"),
        lambda: subset.compare(wrong),
    ]
    named = () if wrong is None else ("store", "settings", "dtype", "template", "model")
    calls += [lambda name=name: instdiff.score(pool, "ifd", **{"model": "builtin:tiny", name: wrong}) for name in named]
    found = {}
    for number, call in enumerate(calls):
        try:
            call()
        except InstDiffError as error:
            if not str(error) or "object at 0x" in str(error):
                found[number] = str(error)
        except Exception as error:  # noqa: BLE001 - any of them is the fault that is looked for
            found[number] = f"{type(error).__name__}: {error}"
        else:
            found[number] = "is taken"
    assert not found, found


def test_a_misspelt_keyword_is_named() -> None:
    with pytest.raises(ConfigError, match="no keyword 'tempalte'; did you mean 'template'"):
        instdiff.score(ROWS, "longest", tempalte="chat")
    with pytest.raises(ConfigError, match="two names of one thing"):
        instdiff.score(ROWS, "longest", "builtin:tiny", model="builtin:tiny")
    with pytest.raises(ConfigError, match="unknown key 'budgetts'"):
        instdiff.compare(ROWS, "builtin:tiny", "ifd", "run", budgetts="10%")


def test_a_run_lies_in_the_folder_that_a_path_names(tmp_path: Path) -> None:
    """A path has a ``root``, as a store has; that of the path is the root of the disk."""
    for store in (tmp_path / "store", str(tmp_path / "store"), instdiff.Store(tmp_path / "store")):
        found = configured(CompareConfig, ROWS, model="builtin:tiny", output=tmp_path / "run", store=store)
        assert (found.output, found.store) == (str(tmp_path / "run"), str(tmp_path / "store"))


def test_importing_takes_no_library_of_frames() -> None:
    heavy = ("pandas", "polars", "datasets", "plotly", "torch", "numpy")
    code = f"import sys, instdiff; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def lines(methods: Any) -> dict[str, tuple[str | None, dict[str, Any]]]:
    found = configured(CompareConfig, ROWS, method=as_lines(methods)).method
    return {name: (one.method, one.params) for name, one in found.items()}


def test_lines_of_a_comparison_are_names_classes_and_instances() -> None:
    fixed = {"seed": 3, "balance": None}
    given = {"a": "longest", "b": instdiff.Random, "c": instdiff.Random(seed=3), "ifd": None, "d": {"method": "zip"}}
    assert lines(given) == {
        **{"a": ("longest", {}), "b": ("random", {}), "c": ("random", fixed), "ifd": (None, {}), "d": ("zip", {})},
    }
    both = lines(["random, zip", instdiff.Longest, instdiff.IFD(min_response_tokens=2)])
    assert list(both) == ["random", "zip", "longest", "ifd"] and both["ifd"][1]["min_response_tokens"] == 2
    assert both["random"] == ("random", {}), "a name beside an instance has the seeds of the comparison"
    assert lines(instdiff.Random) == {"random": ("random", {})}
    for wrong, said in ((3, "not int '3'"), (int, "not type"), ("", "not str ''"), ([instdiff.IFD()], "not list")):
        with pytest.raises(ConfigError, match=f"line 'x' is a method's name, such as 'ifd', .*; {said}"):
            instdiff.compare(ROWS, "builtin:tiny", {"x": wrong}, "run")
    with pytest.raises(ConfigError, match="line 'x' is a method's name"):
        instdiff.search(ROWS, "builtin:tiny", "run", recipes={"x": 3})
    with pytest.raises(ConfigError, match="method 'x' is followed by a mapping of its keys; not str 'longest'"):
        configured(CompareConfig, ROWS, method={"x": "longest"})
    with pytest.raises(ConfigError, match="methods are names, or a mapping from names to their keys; not int '3'"):
        configured(CompareConfig, ROWS, method=3)
