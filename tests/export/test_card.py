"""The folder for the hub: what `datasets` reads of it, what its card says, and pushing without a network."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import DatasetCard

from instdiff import Longest, select
from instdiff.data import load
from instdiff.errors import ConfigError, StoreError
from instdiff.scoring.scorer import score
from instdiff.selection.export.card import base, card, code, size_category
from instdiff.selection.export.export import export
from instdiff.store import Store

from .rows import CALLS, INPUTS, ids, write


@pytest.fixture
def chosen(tmp_path: Path) -> Path:
    """A folder with a selection of three of four rows by `longest`."""
    pool = load(write(tmp_path / "in" / "my.jsonl", INPUTS))
    table = score(pool, [Longest()], store=Store(tmp_path / "store"))
    found = select(pool, table["longest"], 3, meta=table.meta)
    found.to_jsonl(tmp_path / "run" / "selected.jsonl")
    found.write_record(tmp_path / "run" / "selection.json")
    return tmp_path / "run"


def head(folder: Path) -> dict[str, Any]:
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert text.startswith("---\n")
    return dict(yaml.safe_load(text.split("---\n")[1]))


@pytest.mark.parametrize("named", ["selected.jsonl", "selection.json", ""])
def test_card(chosen: Path, tmp_path: Path, named: str) -> None:
    out = tmp_path / "card"
    done = export(str(chosen / named), "hub", out, license="cc-by-4.0", name="tenth")
    assert [path.relative_to(out).as_posix() for path in done.files] == [
        "data/train.parquet",
        "selection.json",
        "README.md",
    ]
    found = head(out)
    assert found["configs"][0].pop("description") == f"3 rows, fingerprint {load(str(out / 'data')).fingerprint}"
    assert found == {
        "pretty_name": "tenth",
        "license": "cc-by-4.0",
        "task_categories": ["text-generation"],
        "size_categories": ["n<1K"],
        "tags": ["instruction-tuning", "data-selection", "instdiff", "longest"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train.parquet"}]}],
    }
    assert DatasetCard.load(out / "README.md").data.size_categories == ["n<1K"]  # as the hub reads it
    text = (out / "README.md").read_text(encoding="utf-8")
    assert "3 rows of 4" in text and "chosen from `my.jsonl` by `longest`" in text and "within a budget of `3`" in text
    assert "| eligible rows | 4 |" in text and "under `cc-by-4.0`" in text
    assert "instdiff select --data my.jsonl --scores scores.parquet --method longest --budget 3" in text
    assert str(tmp_path) not in text + (out / "selection.json").read_text()
    record = json.loads((chosen / "selection.json").read_text())
    assert json.loads((out / "selection.json").read_text())["ids"] == record["ids"] == ids(out / "data")
    export(str(chosen), "hub", out)  # again, over its own
    assert head(out)["license"] == "unknown" and "was not stated" in (out / "README.md").read_text()


def test_the_folder_loads_as_a_data_set(chosen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    export(str(chosen), "hub", tmp_path / "card")
    rows = load(f"hub:{tmp_path / 'card'}")
    assert rows.ids == json.loads((chosen / "selection.json").read_text())["ids"]
    assert rows.source_rows([0])[0].keys() == INPUTS[0].keys()
    # Another folder of the same name, of which `datasets` would remember the first.
    source = write(tmp_path / "mine.jsonl", CALLS)
    done = export(source, "hub", tmp_path / "other" / "card")
    assert len(done.files) == 2 and done.layout == "own"
    assert "There is no record of how they were chosen" in (tmp_path / "other" / "card" / "README.md").read_text()
    assert load(f"hub:{tmp_path / 'other' / 'card'}").ids == ids(source)


def test_a_card_that_somebody_wrote_stays(chosen: Path, tmp_path: Path) -> None:
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "README.md").write_text("# Mine\n")
    with pytest.raises(ConfigError, match="was not written by instdiff and stays"):
        export(str(chosen), "hub", tmp_path / "card")
    assert [p.name for p in (tmp_path / "card").iterdir()] == ["README.md"]
    with pytest.raises(ConfigError, match=r"selection\.json' is what is exported"):
        export(str(chosen), "hub", chosen)


def test_small_things() -> None:
    assert [size_category(n) for n in (999, 1000, 99_999, 10_000_000)] == ["n<1K", "1K<n<10K", "10K<n<100K", "n>10M"]
    assert base("/home/me/models/base+/x/adapter") == "base+adapter"
    assert base("Qwen/Qwen2.5-0.5B@main") == "Qwen/Qwen2.5-0.5B@main" and base("builtin:tiny") == "builtin:tiny"


# ── pushing ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class Api:
    """What is asked of the hub."""

    asked: list[tuple[str, dict[str, Any]]] = []  # noqa: RUF012 - one for each test, see the fixture
    error: Exception | None = None

    def create_repo(self, name: str, **options: Any) -> None:
        if self.error:
            raise self.error
        self.asked.append((name, options))

    def upload_folder(self, **options: Any) -> None:
        self.asked.append(("upload", options))


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> type[Api]:
    import huggingface_hub

    monkeypatch.setattr(Api, "asked", [])
    monkeypatch.setattr(Api, "error", None)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "t")
    monkeypatch.setattr(huggingface_hub.constants, "is_offline_mode", lambda: False)
    return Api


def test_push_is_private_and_of_these_files_alone(chosen: Path, tmp_path: Path, api: type[Api]) -> None:
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "secret.txt").write_text("mine")
    done = export(str(chosen), "hub", tmp_path / "card", push_to="hub:me/tenth")
    (name, made), (_, sent) = api.asked
    assert (name, made["repo_type"], made["private"]) == ("me/tenth", "dataset", True)
    assert sent["repo_id"] == "me/tenth" and sent["folder_path"] == tmp_path / "card"
    assert sent["allow_patterns"] == ["data/train.parquet", "selection.json", "README.md"]
    assert done.extra["url"] == "https://huggingface.co/datasets/me/tenth" and done.extra["url"] in done.say
    export(str(chosen), "hub", tmp_path / "card", push_to="hub:me/tenth", public=True)
    assert api.asked[2][1]["private"] is False


def test_push_that_cannot_work_says_so_first(chosen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def said(where: str) -> str:
        with pytest.raises(ConfigError) as error:
            export(str(chosen), "hub", tmp_path / "card", push_to=where)
        assert not (tmp_path / "card").exists()
        return str(error.value)

    monkeypatch.setattr(huggingface_hub.constants, "is_offline_mode", lambda: True)
    assert "HF_HUB_OFFLINE is set" in said("hub:me/tenth")
    monkeypatch.setattr(huggingface_hub.constants, "is_offline_mode", lambda: False)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    assert "there is no token; run `hf auth login` or set HF_TOKEN" in said("hub:me/tenth")
    assert "names no place on the hub; write hub:owner/name" in said("me/tenth")
    assert "names no place on the hub" in said("hub:tenth")


def test_push_that_fails_leaves_a_whole_folder(chosen: Path, tmp_path: Path, api: type[Api]) -> None:
    api.error = ConnectionError("no route to host")
    with pytest.raises(StoreError, match=r"cannot push to me/tenth: no route to host\. The folder .* is whole"):
        export(str(chosen), "hub", tmp_path / "card", push_to="hub:me/tenth")
    assert ids(tmp_path / "card" / "data") == json.loads((chosen / "selection.json").read_text())["ids"]


HOSTILE = [
    "a`b",
    "``",
    "<script>alert(1)</script>",
    "x|y",
    "a\\|b",
    "\x1b]52;c;QUJD\x07",
    "new\n\n# line",
    "[a](http://x)",
    "",
]


def test_no_name_of_strangers_is_markup() -> None:
    """Each is code between back quotes that it cannot close, on its line and in its cell."""
    for name in HOSTILE:
        said = code(name)
        inner = re.fullmatch(r"(`+)(.*?)\1", said)
        assert inner and inner[1] not in inner[2] and "\n" not in said, said
    pool = load([{"question": "q", "answer": "a"}])
    for name in HOSTILE:
        record = {
            "method": name,
            "budget": name,
            "instdiff": name,
            "params": {name or "p": name},
            "models": {"base": {"where": name, "template": name, "fingerprint": name}},
            "settings": {name or "s": name},
            "counts": {name or "c": 1},
            "excluded": {name: 1},
            "data": {"origin": name, "fingerprint": name},
            "packages": {name or "p": name},
        }
        for facts in (record, None):
            text = card(facts, pool, columns=[name, "b"], license=name or None, title=name)
            assert dict(yaml.safe_load(text.split("---\n")[1]))["pretty_name"] == name
            body = text.split("---\n", 2)[2]
            assert "\x1b" not in body
            body = re.sub(r"(`{3,})sh\n.*?\n\1\n", "", body, flags=re.DOTALL)
            assert "\n# line" not in body
            outside = re.sub(r"(`+).+?\1", "", body)
            assert "<script" not in outside and not re.search(r"(?<!\\)\]\(http", outside)
            tables = [line for line in body.splitlines() if line.startswith("| ")]
            for line in tables:
                assert len(re.findall(r"(?<!\\)\|", line)) in (3, 5), line


def test_a_command_in_a_card_cannot_close_its_block() -> None:
    record = {"method": "random", "budget": "```\n# x", "data": {"origin": "```"}}
    text = card(record, load([{"question": "q", "answer": "a"}]), columns=["a"], license=None, title="t")
    block = re.search(r"^````sh\n(.*?)\n````$", text, re.DOTALL | re.MULTILINE)
    assert block and block[1].endswith("--budget '```\n# x' --output selected.jsonl")
