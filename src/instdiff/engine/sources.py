"""Model references become files: folders, hashes of their weights, tokenizers. Nothing here needs torch."""

from __future__ import annotations

import datetime
import json
import math
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from instdiff.core import TEMPLATE_DATE, Log, ModelRef, Settings
from instdiff.core.files import fingerprint, fingerprint_files, read_json, writing
from instdiff.data.builtin import path as builtin_path
from instdiff.engine.direct_tokenizer import context_of, read_directly
from instdiff.engine.tokenizer import HFTokenizer
from instdiff.errors import EngineError, StoreError, require

WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin")
PACKAGED = "minilm"
"""The embedder that comes with the package."""
TEXT = "text"
"""What stands in a column for the precision of a model that reads texts."""
NOT_THE_MODEL = ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache")


@dataclass(frozen=True)
class Source:
    """A model reference resolved to files on this machine.

    ``commit`` is the hub's revision, where it came from there; ``beside`` are files of its folder that change what it
    gives, other than weights and architecture. ``memo`` remembers hashes by path, size, times and inode.
    """

    ref: ModelRef
    folder: Path
    adapter: Path | None = None
    commit: str | None = None
    beside: tuple[str, ...] | None = None
    memo: Path | None = field(default=None, compare=False, repr=False)

    @cached_property
    def fingerprint(self) -> str:
        """The hash of weights and architecture, so that a copy of a model is the same model.

        The weights are read when it is first asked for: who needs the tokenizer alone does not wait for them.
        """
        digest = _hash(self.folder, "config.json", self.memo)
        if self.adapter is not None:
            digest = fingerprint(digest, _hash(self.adapter, "adapter_config.json", self.memo))
        if self.beside is not None:
            digest = fingerprint(digest, fingerprint_files(self.folder, list(self.beside)))
        return digest

    @property
    def base_key(self) -> str:
        """Equal for references that share a resident base."""
        return str(self.folder.resolve())

    @property
    def config(self) -> dict[str, Any]:
        """The configuration of the language model."""
        config = _config(self.folder, "config.json")
        return dict(config.get("text_config", config))

    @property
    def depth(self) -> int:
        """Layers of the model."""
        return int(self.config.get("num_hidden_layers") or self.config.get("n_layer") or 0)

    @cached_property
    def parameters(self) -> int:
        """Parameters of the base, by the headers of its files; nothing is loaded."""
        from safetensors import safe_open

        total = 0
        for file in self.folder.glob("*.safetensors"):
            with safe_open(file, "np") as tensors:
                total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
        return total


def resolve(ref: ModelRef, memo: Path | None = None, *, adapters: bool = True) -> Source:
    """Find a model's files; ``memo`` is the folder of hashes that are known.

    An EngineError where there is no such folder or hub id, no weights in it, or an adapter without its base.
    """
    folder, adapter, commit = _places(ref, adapters=adapters)
    for place, config in ((folder, "config.json"), *(((adapter, "adapter_config.json"),) if adapter else ())):
        _architecture(place, config)
        _weight_files(place)
    return Source(ref, folder, adapter, commit, memo=memo)


def _places(ref: ModelRef, *, adapters: bool = True, weights: bool = True) -> tuple[Path, Path | None, str | None]:
    """The folders of a model and of its adapter, and the hub's revision of the first."""
    folder, commit = _folder(ref.where, ref.revision, weights)
    adapter = _folder(ref.adapter, None, weights)[0] if ref.adapter else None
    if adapters and adapter is None and (folder / "adapter_config.json").is_file():
        base = _config(folder, "adapter_config.json").get("base_model_name_or_path")
        if not base:
            raise EngineError(f"'{ref.where}' is an adapter that does not name its base; write BASE+{ref.where}")
        adapter, (folder, commit) = folder, _folder(base, None, weights)
    return folder, adapter, commit


def local_folder(where: str) -> Path | None:
    """The folder of a model on this machine; None for a hub id, an EngineError for what can be neither."""
    if where.startswith("builtin:"):
        return builtin_path(where.removeprefix("builtin:"))
    local = Path(where).expanduser()
    if local.is_dir():
        return local
    if local.is_absolute() or where.startswith((".", "~")) or where.count("/") != 1:
        raise EngineError(f"no model folder '{where}'; give a local folder, a hub id as owner/name, or builtin:tiny")
    return None


def _folder(where: str, revision: str | None, weights: bool = True) -> tuple[Path, str | None]:
    if (local := local_folder(where)) is not None:
        return local, None
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        files = [*(WEIGHTS if weights else ()), "*.json", "*.txt", "*.model", "*.jinja"]
        kept = snapshot_download(where, revision=revision, allow_patterns=files)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise EngineError(
            f"model '{where}' is no local folder, and the hub did not give it: {first_line(error)}; "
            "check the name, the network, or HF_TOKEN for a gated model"
        ) from None
    return Path(kept), Path(kept).name


def _hash(folder: Path, config: str, memo: Path | None) -> str:
    return fingerprint(hash_weights(folder, memo), json.dumps(_architecture(folder, config), sort_keys=True))


def _architecture(folder: Path, config: str) -> dict[str, Any]:
    """What a configuration says of the model, without what it says of its files."""
    if not (folder / config).is_file():
        raise EngineError(f"'{folder}' has no {config}, so it is no Hugging Face model folder")
    without = (*NOT_THE_MODEL, "base_model_name_or_path")
    return {key: value for key, value in _config(folder, config).items() if key not in without}


def _weight_files(folder: Path) -> list[str]:
    names = sorted({file.name for pattern in WEIGHTS for file in folder.glob(pattern)})
    if not names:
        raise EngineError(f"'{folder}' has no weights (*.safetensors)")
    return names


def hash_weights(folder: Path, memo: Path | None = None, *, again: bool = False) -> str:
    """The hash of a folder's weights, as ``memo`` remembers it; read ``again``, it is remembered anew.

    An EngineError where there are none.
    """
    names = _weight_files(folder)
    stamps = [((folder / n).resolve(), (folder / n).stat()) for n in names]
    key = fingerprint([[str(p), s.st_size, s.st_mtime_ns, s.st_ino, s.st_ctime_ns] for p, s in stamps])
    known = memo / f"{key}.txt" if memo else None
    weights = None if again else _remembered(known, key)
    if weights is None:
        weights = fingerprint_files(folder, names)
        if known is not None:
            with suppress(StoreError), writing(known) as aside:  # who cannot write it reads the weights again
                aside.write_text(f"{weights} {fingerprint(key, weights)}", encoding="utf-8")
    return weights


def _remembered(known: Path | None, key: str) -> str | None:
    """The hash that was kept under a key; None where there is none, or what is there was not written for it."""
    try:
        weights, _, check = known.read_text(encoding="utf-8").partition(" ") if known else ("", "", "")
    except (OSError, ValueError):
        return None
    return weights if check == fingerprint(key, weights) else None


def _config(folder: Path, name: str) -> dict[str, Any]:
    try:
        settings: dict[str, Any] = json.loads((folder / name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(f"cannot read '{folder / name}': {first_line(error)}") from None
    if not isinstance(settings, dict):
        raise EngineError(f"cannot read '{folder / name}': it holds no mapping of keys")
    return settings


def load_tokenizer(
    source: Source, template_date: datetime.date = TEMPLATE_DATE, *, directly: bool = False
) -> HFTokenizer:
    """The tokenizer beside the model or its adapter, with the model's context length; an EngineError if unreadable.

    Its chat template is told that today is ``template_date``. ``directly`` reads the files without the library's class
    where they say all.
    """
    if directly:
        beside = _beside(source.folder, source.adapter)
        own, context = read_directly(beside), context_of(source.folder)
        if own is not None and context is not None:
            return HFTokenizer(
                own,
                context,
                template_date=template_date,
                stops=_stops(source.folder),
                loaded=lambda: load_tokenizer(source, template_date).hf,
            )
    return _read_tokenizer(source.folder, source.adapter, template_date)


def _beside(folder: Path, adapter: Path | None) -> Path:
    """Where the tokenizer lies: beside the adapter, if it has one there."""
    return adapter if adapter and (adapter / "tokenizer_config.json").is_file() else folder


def find_tokenizer(ref: ModelRef, template_date: datetime.date = TEMPLATE_DATE) -> HFTokenizer:
    """The same by the model's name; weights are neither read nor fetched."""
    folder, adapter, _ = _places(ref, weights=False)
    return _read_tokenizer(folder, adapter, template_date)


def tell_own_template(model: ModelRef, settings: Settings, tokenizer: HFTokenizer, log: Log) -> None:
    """Say of a model that it has a chat template, where no template was named."""
    if tokenizer.chat_template and not (model.template or "*" in settings.templates):
        log(
            f"the tokenizer of {model} has a chat template; rows are rendered with '{settings.template}'. "
            "--template chat uses it"
        )


def _read_tokenizer(folder: Path, adapter: Path | None, template_date: datetime.date) -> HFTokenizer:
    beside = _beside(folder, adapter)
    require("transformers", f"the tokenizer in '{beside}'", EngineError)
    from transformers import AutoConfig, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    try:
        hf = AutoTokenizer.from_pretrained(str(beside), trust_remote_code=False)
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=False)
    except Exception as error:
        raise unloadable(f"the tokenizer in '{beside}'", error, "read") from error
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    return HFTokenizer(hf, context, template_date=template_date, stops=_stops(folder))


def _stops(folder: Path) -> list[int]:
    """The tokens at which the model stops by its generation configuration."""
    path = folder / "generation_config.json"
    said = read_json(path).get("eos_token_id") if path.is_file() else None
    return said if isinstance(said, list) else [] if said is None else [said]


def weights(source: Source) -> tuple[tuple[str, int], ...]:
    """Names and sizes of a model's weights: what tells a stale or half copy without reading it."""
    folders = [folder for folder in (source.folder, source.adapter) if folder is not None]
    found = {(file.name, file.stat().st_size) for f in folders for pattern in WEIGHTS for file in f.glob(pattern)}
    return tuple(sorted(found))


def at_hand(source: Source, expected: tuple[tuple[str, int], ...]) -> Source:
    """Another machine's model, by folder or name on this one; an EngineError where it is not here, or is another."""
    here, where = source, source.ref.where
    if not source.folder.is_dir() or (source.adapter is not None and not source.adapter.is_dir()):
        if Path(where).expanduser().is_absolute() or where.startswith((".", "~")):
            raise EngineError(
                f"there is no model folder '{source.folder}' here; put it where every node sees it under the same "
                "name, or give a hub id"
            )
        here = resolve(source.ref)
        if here.fingerprint != source.fingerprint:
            raise EngineError(f"'{where}' is not the model here that it is at the driver; name a revision")
    if weights(here) != expected:
        raise EngineError(
            f"the weights in '{here.folder}' have other names or sizes here than at the driver; copy them again"
        )
    return here


def unloadable(what: str, error: Exception, verb: str = "load") -> EngineError:
    """The error for a model or a part of one that the library refuses; one that needs code of its own is called so."""
    if "trust_remote_code" in str(error):
        return EngineError(
            f"{what} needs Python code that comes with it, and such code is never run; take a model whose kind "
            "transformers knows, or a newer transformers"
        )
    return EngineError(f"cannot {verb} {what}: {first_line(error)}")


def first_line(error: BaseException) -> str:
    """What another library's error says, without the rest."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
