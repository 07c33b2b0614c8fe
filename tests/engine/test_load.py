"""Model references: what they resolve to, fingerprints, and what is said when they do not."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import instdiff
from helpers import Lab, make_llama, some_rows
from instdiff.core import ModelRef
from instdiff.engine import sources
from instdiff.engine.models import Resident, is_emulated, pick_device, pick_dtype
from instdiff.engine.sources import load_tokenizer, resolve
from instdiff.errors import ConfigError, EngineError, PlanError
from instdiff.methods import IFD, InstructDiff, Perplexity
from instdiff.scoring.models import parse_model


def copied(source: Path, to: Path) -> Path:
    shutil.copytree(source, to)
    return to


def edited(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


def message(folder: Path | str, *, load: bool = True) -> str:
    """What is said of a model that cannot be used."""
    with pytest.raises(EngineError) as error:
        source = resolve(ModelRef(str(folder)))
        load_tokenizer(source)
        with Resident(torch.device("cpu"), torch.float32).use(source):
            pass
    return str(error.value)


# ── fingerprints ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_fingerprint_is_of_weights_and_architecture(models: dict[str, Path], tmp_path: Path) -> None:
    mark = resolve(ModelRef(str(models["llama"]))).fingerprint
    copy = copied(models["llama"], tmp_path / "copy")
    assert resolve(ModelRef(str(copy))).fingerprint == mark
    assert resolve(ModelRef(str(edited(copy, use_cache=False, transformers_version="9")))).fingerprint == mark
    assert resolve(ModelRef(str(models["other"]))).fingerprint != mark
    assert resolve(ModelRef(str(edited(copy, rms_norm_eps=1e-3)))).fingerprint != mark


def scaled(source: Path, to: Path) -> Path:
    """A model whose second matrix alone differs."""
    folder = copied(source, to)
    weights = load_file(folder / "model.safetensors")
    name = sorted(name for name, value in weights.items() if value.ndim == 2)[1]
    save_file({**weights, name: weights[name] * 1.5}, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("damage", ["empty", "cut", "foreign", "another hash", "no text"])
def test_a_damaged_memo_is_hashed_again(models: dict[str, Path], tmp_path: Path, damage: str) -> None:
    memo, other = tmp_path / "memo", scaled(models["llama"], tmp_path / "other")
    marks = [resolve(ModelRef(str(folder)), memo).fingerprint for folder in (models["llama"], other)]
    assert marks[0] != marks[1]
    texts = {path: path.read_text() for path in memo.glob("*.txt")}
    assert len(texts) == 2
    foreign = dict(zip(texts, reversed(texts.values()), strict=True))
    for path, text in texts.items():
        wrong = {"empty": "", "cut": text[:20], "foreign": foreign[path], "another hash": "0" * 32, "no text": "\udcff"}
        path.write_bytes(wrong[damage].encode(errors="surrogateescape"))
    assert [resolve(ModelRef(str(folder)), memo).fingerprint for folder in (models["llama"], other)] == marks
    assert {path: path.read_text() for path in memo.glob("*.txt")} == texts


def test_two_models_do_not_share_scores_after_their_memos_were_lost(lab: Lab, tmp_path: Path) -> None:
    store, other = lab.store(), scaled(lab.models["llama"], tmp_path / "other")
    lab.score(some_rows(3), [Perplexity()], base=other, store=store)
    lab.score(some_rows(3), [Perplexity()], store=store)
    for path in store.memo.glob("*.txt"):
        path.write_text("")
    rows = some_rows(10, seed=5)
    first, second = (lab.score(rows, [Perplexity()], base=base, store=store) for base in ("llama", other))
    assert not np.isclose(first["perplexity"].value, second["perplexity"].value).any()


def test_a_checkpoint_that_takes_the_place_of_another_is_seen(models: dict[str, Path], tmp_path: Path) -> None:
    """Path, size and time of change are the same, as ``cp -p`` leaves them."""
    memo, home = tmp_path / "memo", copied(models["llama"], tmp_path / "model")
    old, new = home / "model.safetensors", scaled(models["llama"], tmp_path / "other") / "model.safetensors"
    os.utime(new, ns=(old.stat().st_atime_ns, old.stat().st_mtime_ns))
    assert new.stat().st_size == old.stat().st_size
    mark = resolve(ModelRef(str(home)), memo).fingerprint
    shutil.copy2(new, old)
    assert old.stat().st_mtime_ns == new.stat().st_mtime_ns
    assert resolve(ModelRef(str(home)), memo).fingerprint != mark


def test_who_needs_the_tokenizer_alone_reads_no_weights(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2,000 rows in random order wait for no hash of 270 MB; what has no weights is told at once all the same."""

    def read(root: Path, names: list[str]) -> str:
        raise AssertionError(f"{names} were read")

    monkeypatch.setattr(sources, "fingerprint_files", read)
    pool = instdiff.load([{"instruction": f"Question {n}?", "output": f"Answer {n}."} for n in range(6)])
    scores = instdiff.score(pool, ["random"], models={"base": str(models["llama"])}, store=tmp_path / "store")
    assert (scores.n_tokens > 0).all()
    bare = copied(models["llama"], tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    with pytest.raises(EngineError, match="has no weights"):
        instdiff.score(pool, ["random"], models={"base": str(bare)}, store=tmp_path / "store")


def test_changed_weights_in_the_same_place_are_seen(models: dict[str, Path], tmp_path: Path) -> None:
    memo = tmp_path / "memo"
    copy = copied(models["llama"], tmp_path / "copy")
    first = resolve(ModelRef(str(copy)), memo).fingerprint
    assert resolve(ModelRef(str(copy)), memo).fingerprint == first
    assert len(list(memo.iterdir())) == 1  # nothing but the remembered hash
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"] *= 2
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    assert resolve(ModelRef(str(copy)), memo).fingerprint not in (
        first,
        resolve(ModelRef(str(models["other"]))).fingerprint,
    )


# ── what can go wrong ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("where", ["/no/such/folder", "./no", "gpt2", "a/b/c"])
def test_no_such_folder(where: str) -> None:
    assert message(where) == (
        f"no model folder '{where}'; give a local folder, a hub id as owner/name, or builtin:tiny"
    )


@pytest.mark.parametrize("where", ["nobody-at-all/no-such-model", "bad name/with spaces"])
def test_a_hub_id_that_the_hub_does_not_give(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = message(where)
    assert said.startswith(f"model '{where}' is no local folder, and the hub did not give it: ")
    assert said.endswith("; check the name, the network, or HF_TOKEN for a gated model")


def test_an_unknown_builtin() -> None:
    with pytest.raises(ConfigError, match=r"no built-in named 'tinny'; did you mean 'tiny'"):
        resolve(ModelRef("builtin:tinny"))


def test_a_folder_that_is_no_model(models: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert (
        message(tmp_path / "empty")
        == f"'{tmp_path / 'empty'}' has no config.json, so it is no Hugging Face model folder"
    )
    bare = copied(models["llama"], tmp_path / "bare")
    (bare / "model.safetensors").unlink()
    assert message(bare) == f"'{bare}' has no weights (*.safetensors)"


def test_damaged_files(models: dict[str, Path], tmp_path: Path) -> None:
    config = copied(models["llama"], tmp_path / "config")
    (config / "config.json").write_text("{")
    assert message(config).startswith(f"cannot read '{config / 'config.json'}': ")
    short = copied(models["llama"], tmp_path / "short")
    raw = (short / "model.safetensors").read_bytes()
    (short / "model.safetensors").write_bytes(raw[: len(raw) // 2])
    assert message(short).startswith(f"cannot load model '{short}': ")
    words = copied(models["llama"], tmp_path / "words")
    (words / "tokenizer.json").write_text("{}")
    assert message(words).startswith(f"cannot read the tokenizer in '{words}': ")
    kind = edited(copied(models["llama"], tmp_path / "kind"), model_type="no-such-type")
    assert message(kind).startswith(f"cannot read the tokenizer in '{kind}': ")


def test_pickled_weights_are_not_read(models: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(models["llama"], tmp_path / "pickled")
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert f"'{folder}' has only pickled weights (*.bin), which are not read; convert them to safetensors" in message(
        folder
    )


def test_a_role_without_a_model(lab: Lab) -> None:
    from instdiff.data import load
    from instdiff.scoring.scorer import score

    with pytest.raises(PlanError, match=r"ifd needs a model for role 'base'; give --model base=WHERE$"):
        score(load(some_rows(1)), [IFD()])
    with pytest.raises(PlanError, match=r"calibrated=WHERE or let `instdiff pipeline` train it"):
        score(load(some_rows(1)), [InstructDiff()], str(lab.models["llama"]))


def test_a_tokenizer_of_another_model(models: dict[str, Path], tmp_path: Path, lab: Lab) -> None:
    folder = make_llama(tmp_path / "small", vocab_size=250)
    with pytest.raises(
        EngineError, match=r"token id \d+ is outside the model's 250 embeddings; tokenizer and model do not"
    ):
        lab.score(some_rows(3), [Perplexity()], base=folder)


# ── references, devices, dtypes ───────────────────────────────────────────────────────────────────────────────────────


def test_references_as_people_write_them(tmp_path: Path) -> None:
    assert parse_model("Qwen/Qwen2.5-0.5B") == ModelRef("Qwen/Qwen2.5-0.5B")
    assert parse_model("owner/name@v2") == ModelRef("owner/name", "v2")
    assert parse_model("owner/name@v2+runs/lora") == ModelRef("owner/name", "v2", "runs/lora")
    assert parse_model("runs/base+runs/lora") == ModelRef("runs/base", None, "runs/lora")
    odd = tmp_path / "c++@home"
    odd.mkdir()
    assert parse_model(str(odd)) == ModelRef(str(odd))  # a folder that is there is meant as it is
    assert str(ModelRef("a/b", "v2", "c")) == "a/b@v2+c"


def test_devices() -> None:
    assert pick_device("cpu") == torch.device("cpu")
    for name in ("gpu", "cuda:99"):
        with pytest.raises(EngineError, match=f"device '{name}' cannot be used: "):
            pick_device(name)


def test_dtypes() -> None:
    cpu = torch.device("cpu")
    assert pick_dtype("float16", cpu) == torch.float16 and pick_dtype("float32", cpu) == torch.float32
    assert pick_dtype("auto", cpu) in (torch.float32, torch.bfloat16)


@pytest.mark.parametrize("fast", [True, False])
def test_a_precision_without_instructions_is_warned_of(
    fast: bool, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("instdiff.engine.models._cpu_multiplies_bf16", lambda: fast)
    cpu = torch.device("cpu")
    assert pick_dtype("auto", cpu) == (torch.bfloat16 if fast else torch.float32)
    assert is_emulated(torch.float16, cpu) and not is_emulated(torch.float32, cpu)
    assert is_emulated(torch.bfloat16, cpu) is not fast
    for dtype, warned in (("auto", False), ("bfloat16", not fast)):
        said: list[str] = []
        lab.score(some_rows(3), [Perplexity()], dtype=dtype, log=said.append)
        word = "warning: this processor has no instructions for bfloat16; --dtype float32 is many times faster here"
        assert (word in said) is warned


def test_lower_precision_is_another_column_and_near(lab: Lab) -> None:
    rows, store = some_rows(6), lab.store()
    full = lab.score(rows, [Perplexity()], store=store)["perplexity"].details["nll"]
    half = lab.score(rows, [Perplexity()], store=store, dtype="bfloat16")["perplexity"].details["nll"]
    assert 0 < abs(full - half).max() < 0.2
    assert len(list((store.root / "columns").iterdir())) == 2


# ── what a library keeps ──────────────────────────────────────────────────────────────────────────────────────────────

KEPT = """
import ctypes, os, sys, torch
from instdiff.engine.models import Resident

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "abcdefghij"]

mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Info
used = lambda: mallinfo().h + mallinfo().e
Resident(torch.device("cpu"), torch.bfloat16)
states, weight = torch.zeros(1600, 256, dtype=torch.bfloat16), torch.zeros(640, 256, dtype=torch.bfloat16)
torch.nn.functional.linear(states, weight)
before = used()
for size in range(600, 1600):
    torch.nn.functional.linear(states[:size], weight)
print(os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"], os.environ["LRU_CACHE_CAPACITY"], (used() - before) >> 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc what is in use")
@pytest.mark.parametrize("asked", [None, "100"])
def test_compiled_products_of_a_thousand_sizes_are_not_all_kept(asked: str | None) -> None:
    """Unbounded they take 500 MB."""
    names = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
    env = {name: value for name, value in os.environ.items() if name not in names}
    env |= {names[0]: asked} if asked else {}
    out = subprocess.run([sys.executable, "-c", KEPT], env=env, capture_output=True, text=True, check=True)
    capacity, each_thread, added = out.stdout.split()
    assert (capacity, each_thread) == (asked or "256", "1")
    assert int(added) < 0.4 * int(capacity)
