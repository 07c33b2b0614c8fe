"""Base and adapter share one resident model, and neither changes the other's numbers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import Counting, Lab, by_hand, causal, reference, some_rows
from instdiff.core import ModelRef
from instdiff.engine.models import Resident
from instdiff.engine.sources import resolve
from instdiff.errors import EngineError
from instdiff.methods import InstructDiff, Perplexity

ROWS = some_rows(7)


@contextmanager
def by_peft() -> Iterator[None]:
    """For our own calls of peft; the package has to keep such warnings from its users by itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def make_adapter(base: Path, folder: Path, seed: int) -> Path:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with by_peft():
        get_peft_model(causal(base), config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    home = tmp_path_factory.mktemp("adapters")
    return [make_adapter(models["llama"], home / str(seed), seed) for seed in (1, 2)]


def resident() -> Resident:
    return Resident(torch.device("cpu"), torch.float32)


def expected(lab: Lab, adapter: Path | None) -> np.ndarray:
    from peft import PeftModel

    model: Any = causal(lab.models["llama"])
    if adapter is not None:
        with by_peft():
            model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    hf, out = lab.tokenizer("llama"), []
    for row in ROWS:
        given = by_hand(hf, row, 200)["given"]
        assert given is not None
        out.append(reference(model, *given)[0].mean())
    return np.array(out)


def test_one_load_for_base_and_adapter(lab: Lab, adapters: list[Path]) -> None:
    shared = resident()
    base = str(lab.models["llama"])
    table = lab.score(ROWS, [InstructDiff()], calibrated=ModelRef(base, adapter=str(adapters[0])), resident=shared)
    assert shared.loads == 1
    details = table["instructdiff"].details
    np.testing.assert_allclose(details["base_nll"], expected(lab, None), rtol=1e-5)
    np.testing.assert_allclose(details["calibrated_nll"], expected(lab, adapters[0]), rtol=1e-5)
    assert np.abs(details["diff_nll"]).min() > 1e-3


def test_the_base_is_itself_after_adapters_were_used(lab: Lab, adapters: list[Path]) -> None:
    shared = resident()

    def nll(adapter: Path | None) -> np.ndarray:
        where = ModelRef(str(lab.models["llama"]), adapter=str(adapter) if adapter else None)
        counting = Counting()
        table = lab.score(ROWS, [Perplexity(model="calibrated")], calibrated=where, resident=shared, progress=counting)
        assert counting.rows == len(ROWS)
        return table["perplexity"].details["nll"]

    before = nll(None)
    one, two, again = nll(adapters[0]), nll(adapters[1]), nll(adapters[0])
    np.testing.assert_array_equal(nll(None), before)
    np.testing.assert_array_equal(again, one)
    np.testing.assert_allclose(two, expected(lab, adapters[1]), rtol=1e-5)
    assert np.abs(one - two).min() > 1e-4
    assert shared.loads == 1


def test_an_adapter_folder_alone_knows_its_base(lab: Lab, adapters: list[Path], tmp_path: Path) -> None:
    alone = resolve(ModelRef(str(adapters[0])))
    named = resolve(ModelRef(str(lab.models["llama"]), adapter=str(adapters[0])))
    assert (alone.fingerprint, alone.base_key) == (named.fingerprint, named.base_key)
    assert len({named.fingerprint, resolve(ModelRef(str(lab.models["llama"]))).fingerprint}) == 2
    config = json.loads((adapters[0] / "adapter_config.json").read_text())
    orphan = tmp_path / "orphan"
    orphan.mkdir()
    (orphan / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": None}))
    with pytest.raises(EngineError, match=r"is an adapter that does not name its base; write BASE\+"):
        resolve(ModelRef(str(orphan)))


def test_an_adapter_that_does_not_fit(lab: Lab, adapters: list[Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "adapter_config.json").write_bytes((adapters[0] / "adapter_config.json").read_bytes())
    (broken / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(EngineError, match=f"cannot load adapter '{broken}': "):
        lab.score(ROWS, [Perplexity()], base=f"{lab.models['llama']}+{broken}")
