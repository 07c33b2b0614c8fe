"""The pre-training script, end to end on a few synthetic documents."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("INSTDIFF_SHARED", ROOT.parent / "shared"))
PEOPLE = ["Anna", "Ben", "Carla", "Dora", "Emil"]
THINGS = ["apples", "stones", "letters", "books", "coins"]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("pretrain_tiny", ROOT / "scripts" / "pretrain_tiny.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["pretrain_tiny"] = module
    spec.loader.exec_module(module)
    return module


def write_data(folder: Path) -> None:
    rng = random.Random(0)
    (folder / "t0_50k").mkdir(parents=True)
    (folder / "flan_cot").mkdir()
    rows = []
    for _ in range(140):
        who, what, count = rng.choice(PEOPLE), rng.choice(THINGS), rng.randint(2, 99)
        prompt = f"{who} found {count} {what} on the way to school.\nHow many {what} did {who} find?\n"
        rows.append(json.dumps({"prompt": prompt, "completion": f"{count} {what}<|endoftext|>", "template": "toy"}))
    (folder / "t0_50k" / "t0_50k_merged.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    for name, answer in [("creak_train.tsv", "yes"), ("gsm8k_train.tsv", "FORBIDDEN")]:
        lines = [
            f"Does {rng.choice(PEOPLE)} like {rng.choice(THINGS)}?\\nOptions:\\n- yes\\n- no\t{answer}\tBecause of {i}."
            for i in range(60)
        ]
        (folder / "flan_cot" / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def trained(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, object]:
    folder = tmp_path_factory.mktemp("pretrain")
    write_data(folder / "data")
    sizes = ["--steps", "30", "--batch", "4", "--length", "48", "--vocab", "400", "--device", "cpu"]
    result = script.main(["--data", str(folder / "data"), "--out", str(folder / "out"), *sizes])
    return folder / "out", result


def test_documents_are_question_reasoning_answer(script: ModuleType, tmp_path: Path) -> None:
    write_data(tmp_path)
    documents = script.read_documents(tmp_path, None)
    assert len(documents) == 200
    assert not any("FORBIDDEN" in text or "endoftext" in text or "\\n" in text for text in documents)
    assert documents[-1].endswith("\nOptions:\n- yes\n- no\nBecause of 59.\nyes")
    assert len(script.read_documents(tmp_path, 7)) == 7


def test_loss_falls_and_is_measured(trained: tuple[Path, object]) -> None:
    out, result = trained
    losses = result.losses  # type: ignore[attr-defined]
    assert len(losses) == 30
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert 0 < result.held_out_loss < losses[0]  # type: ignore[attr-defined]
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"Held-out loss {result.held_out_loss:.3f}" in card  # type: ignore[attr-defined]
    assert not out.with_name("out.partial").exists()


def test_folder_loads(trained: tuple[Path, object]) -> None:
    out, _ = trained
    model = AutoModelForCausalLM.from_pretrained(out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert model.dtype == torch.bfloat16
    assert (model.config.hidden_size, model.config.num_hidden_layers, model.config.tie_word_embeddings) == (
        256,
        6,
        True,
    )
    assert tokenizer.convert_tokens_to_ids(["<unk>", "<s>", "</s>", "<pad>"]) == [0, 1, 2, 3]
    ids = tokenizer("Anna found 1234 coins").input_ids
    assert ids[0] == tokenizer.bos_token_id == 1
    assert [token.lstrip("Ġ") for token in tokenizer.convert_ids_to_tokens(ids) if token.lstrip("Ġ").isdigit()] == list(
        "1234"
    )
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Anna found 1234 coins"


def test_runs_are_repeatable_up_to_the_budget(script: ModuleType, tmp_path: Path) -> None:
    write_data(tmp_path / "data")
    common = ["--data", str(tmp_path / "data"), "--batch", "2", "--length", "16", "--vocab", "300", "--device", "cpu"]
    first = script.main([*common, "--steps", "3", "--out", str(tmp_path / "a")])
    second = script.main([*common, "--steps", "3", "--out", str(tmp_path / "b")])
    assert first.losses == second.losses
    short = script.main([*common, "--steps", "100000", "--minutes", "0.01", "--out", str(tmp_path / "c")])
    assert 0 < short.steps < 100_000


def test_rate_warms_up_and_falls_to_a_tenth(script: ModuleType) -> None:
    assert script.rate_at(0, 0.0) == pytest.approx(2e-5)
    assert script.rate_at(99, 0.0) == pytest.approx(2e-3)
    assert script.rate_at(2544, 1.0) == pytest.approx(2e-4)


@pytest.mark.parametrize(
    ("extra", "message"),
    [(["--vocab", "100"], "--vocab 100"), (["--length", "2000"], "--length 2000"), (["--steps", "0"], "positive")],
)
def test_wrong_options_are_refused(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], message: str
) -> None:
    with pytest.raises(SystemExit):
        script.main(["--data", str(tmp_path), "--out", str(tmp_path / "out"), *extra])
    assert message in capsys.readouterr().err


def test_missing_text_is_named(script: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"t0_50k_merged\.jsonl"):
        script.main(["--data", str(tmp_path), "--out", str(tmp_path / "out")])


@pytest.mark.shared_data
@pytest.mark.skipif(not (SHARED / "data" / "t0_50k").is_dir(), reason="no shared folder with the T0 and FLAN text")
def test_three_steps_on_the_real_text(script: ModuleType, tmp_path: Path) -> None:
    sizes = ["--documents", "500", "--steps", "3", "--batch", "2", "--length", "64", "--device", "cpu"]
    result = script.main(["--data", str(SHARED / "data"), "--out", str(tmp_path / "out"), *sizes])
    assert result.steps == 3
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "out").config
    assert config.vocab_size == 4096
