"""Rows become a trained model: TRL's trainer, fed with exactly the tokens that were scored.

No token is added to the tokenizer and no embedding is resized: rows are padded with the tokenizer's padding token, or
its end token where it has none, and padding is masked, so the trained model has the vocabulary of its base.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers.utils import logging

from instdiff.config.train import TrainSettings
from instdiff.core import Log, ModelRef, Settings
from instdiff.core.files import building, fingerprint, read_json, write_json, write_record
from instdiff.data import Pool
from instdiff.engine.sources import load_tokenizer, resolve, tell_own_template
from instdiff.errors import ConfigError, DataError, StoreError
from instdiff.rendering.chat_tokens import turn_end
from instdiff.rendering.prompts import prompt_groups
from instdiff.rendering.renderer import Renderer, Rows
from instdiff.rendering.templates import template
from instdiff.store import Store
from instdiff.training.digests import RECORD, changed, digests
from instdiff.training.trained_rows import TRAINED_ROWS, text_of
from instdiff.training.trainer import CHECKPOINTS, SAVES, Job, Progress

RECIPE = "recipe.json"
RATE_ZERO = (
    "the learning rate was zero in all of {steps} optimizer steps, since it rises from zero in the first ones; "
    "set warmup_ratio: 0, or a smaller global_batch_size"
)


@dataclass(frozen=True)
class TrainReport:
    """What a training did; ``training.json`` holds it beside settings and versions.

    ``output`` is the model folder, or the adapter folder. ``rows`` were trained on, of which ``truncated`` were cut and
    do not teach their end; ``left_out`` counts the others by reason. ``target_tokens`` are learnt in one pass over the
    rows. Per optimizer step ``losses`` has the mean loss over the target tokens of its global batch, in nats, and
    ``learning_rates`` the rate. The last run began after step ``resumed_at`` and took ``wall_s`` seconds. ``fresh`` is
    False where the folder was there already.
    """

    output: Path
    rows: int
    left_out: dict[str, int]
    truncated: int
    target_tokens: int
    steps: int
    losses: list[float]
    learning_rates: list[float]
    seed: int
    wall_s: float
    resumed_at: int
    fresh: bool = True

    @property
    def last_loss(self) -> float | None:
        """That of the last step."""
        return round(self.losses[-1], 4) if self.losses else None


def fit(
    rows: Rows,
    base: str | Path,
    tokenizer: Any,
    settings: TrainSettings,
    output: str | Path,
    *,
    seed: int,
    device: str = "auto",
    log: Log = print,
    progress: Progress | None = None,
    base_fingerprint: str | None = None,
    rendering: dict[str, Any] | None = None,
    beside: Mapping[str, str] | None = None,
    weights: npt.NDArray[np.float64] | None = None,
) -> TrainReport:
    """Train a model, or an adapter on it, and write it to a folder that is whole or absent.

    A finished ``output`` of the same training is returned as it is. An interrupted call leaves its checkpoints beside
    ``output``, and the same call goes on from them to the same weights. See ``losses`` for the loss of a step.

    ``rows`` come from ``training_rows``; those with a reason are left out. ``base`` is the folder of the model to start
    from. The ``tokenizer``, which made the rows, is saved beside the model, unchanged. The settings' own seed, where
    given, goes before ``seed``: of order, dropout and adapter weights. ``progress`` is told after each step, the log at
    most every ten seconds. ``base_fingerprint`` and ``rendering``, how the rows were made, are for the record.
    ``beside`` are texts that lie beside the weights, by the names of their files. ``weights`` are factors on the losses
    of the rows, [rows], of any scale.

    Raises a ConfigError where a setting is unknown or does not fit, a DataError where no row can be trained on, a
    PlanError without the training extra, a StoreError where the output cannot be written or something else is there,
    and an EngineError where the model cannot be loaded or trained, or its loss is no number.
    """
    output, base = Path(output), Path(base)
    seed = settings.seed_of(seed)
    open_ = np.flatnonzero(rows.reason == None)  # noqa: E711 - elementwise
    used, factors = rows.take(open_), None if weights is None else weights[open_]
    digests = used.keys()
    data = fingerprint([digest.hex() for digest in digests], *([] if factors is None else [factors.tolist()]))
    recipe = {"settings": settings.learning(), "seed": seed, "data": data, "base_fingerprint": base_fingerprint}
    if (output / RECORD).is_file():
        return _read_finished(output, recipe)
    left_out = _check(rows, len(used), output)
    counts: dict[str, Any] = {"rows": len(used), "left_out": left_out, "truncated": int(used.truncated.sum())}
    counts |= {"rendering": rendering} if rendering else {}
    with _quiet():
        job = Job(used, base, tokenizer, settings, seed, device, log, progress, _scaled(factors, used))
        return _run_job(job, output, recipe, counts, beside or {})


def _scaled(weights: npt.NDArray[np.float64] | None, rows: Rows) -> npt.NDArray[np.float64] | None:
    """Weights whose mean over the target tokens is 1, so that a learning rate means what it means without them."""
    if weights is None:
        return None
    counts, weights = rows.n_targets(), weights / max(weights.max(initial=0.0), np.finfo(np.float64).tiny)
    total = float((weights * counts).sum())
    if not total > 0:
        raise DataError("the weights of all rows that can be trained on are 0; give another train.weights")
    return np.asarray(weights * counts.sum() / total)


def weights_of(pool: Pool, column: str | None) -> npt.NDArray[np.float64] | None:
    """The factors that a column has; a DataError names the first row where it is no number or below 0."""
    if column is None:
        return None
    values = pool.column(column)
    for row, value in zip(pool.rows.tolist(), values, strict=True):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= sys.float_info.max:
            raise DataError(
                f"row {row} of {pool.origin}: '{column}' is {value!r}; a weight is a number that is 0 or more, as "
                "`instdiff select --weights` writes it"
            )
    return np.array(values, np.float64)


def _run_job(
    job: Job, output: Path, recipe: dict[str, Any], counts: dict[str, Any], beside: Mapping[str, str]
) -> TrainReport:
    args, model = job.arguments(output), job.load()
    main = args.process_index == 0
    with building(output) if main else nullcontext(output.with_name(f".{output.name}.partial")) as folder:
        with args.distributed_state.main_process_first():
            start = _checkpoint(folder, recipe | _stamp(job.base), job.settings.resume)
        if start is not None and main:
            job.log(f"going on after step {_step(start)}")
        record: dict[str, Any] = recipe | {"base": job.base.name} | counts | job.run(args, model, folder, start)
        if main:
            saves = [folder / SAVES / str(number + 1) for number in range(len(job.settings.saves))]
            for place in (folder, *saves):
                for name, text in beside.items():
                    (place / name).write_text(text, encoding="utf-8")
                _tidy(place, job.base, record)
            _finish(folder, record, job.log)
    args.distributed_state.wait_for_everyone()
    return _report(output, record, fresh=True)


def _check(rows: Rows, used: int, output: Path) -> dict[str, int]:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise StoreError(f"'{output}' is there already, but no finished training; remove it or choose another place")
    left_out = dict(Counter(str(reason) for reason in rows.reason if reason is not None))
    if not used:
        raise DataError(f"none of {len(rows)} rows can be trained on: {left_out or 'there are none'}")
    return left_out


def _report(output: Path, record: dict[str, Any], fresh: bool) -> TrainReport:
    names = {field.name for field in dataclasses.fields(TrainReport)}
    return TrainReport(output=output, fresh=fresh, **{key: value for key, value in record.items() if key in names})


def _read_finished(output: Path, recipe: dict[str, Any]) -> TrainReport:
    record = read_json(output / RECORD)
    other = [key for key in recipe if record.get(key) != recipe[key]]
    if other:
        raise StoreError(f"'{output}' was trained with other {' and '.join(other)}; remove it, or give another output")
    try:
        return _report(output, record, fresh=False)
    except TypeError:
        raise StoreError(f"'{output / RECORD}' is not complete; remove '{output}' to train again") from None


def _stamp(base: Path) -> dict[str, Any]:
    """Tells a changed base from the one that an interrupted training began with, without reading its weights."""
    files = [*sorted(base.glob("*.safetensors")), base / "config.json"]
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return {"base": fingerprint([list(stat) for stat in stats])}


def _checkpoint(folder: Path, recipe: dict[str, Any], resume: bool) -> Path | None:
    """The newest usable checkpoint of the same training; what cannot be used is removed."""
    if not resume or not (folder / RECIPE).is_file() or read_json(folder / RECIPE) != recipe:
        for item in folder.iterdir():
            shutil.rmtree(item) if item.is_dir() else item.unlink()
        write_json(folder / RECIPE, recipe)
    newest: Path | None = None
    for place in sorted(folder.glob(f"{CHECKPOINTS}/checkpoint-*"), key=_step, reverse=True):
        try:
            json.loads((place / "trainer_state.json").read_text(encoding="utf-8"))  # written last
            newest = newest or place
        except (OSError, ValueError):
            shutil.rmtree(place)
    return newest


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def _finish(folder: Path, record: dict[str, Any], log: Log) -> None:
    if not any(record["learning_rates"]):
        log(f"warning: nothing was learnt: {RATE_ZERO.format(steps=record['steps'])}")
    if (folder / CHECKPOINTS / "runs").is_dir():  # TensorBoard's
        (folder / CHECKPOINTS / "runs").rename(folder / "runs")
    shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    write_record(folder / RECORD, record | digests(folder))


def _tidy(folder: Path, base: Path, record: dict[str, Any]) -> None:
    """A model folder as others expect it, of what the trainer has saved."""
    for name in (RECIPE, "training_args.bin", "README.md"):
        (folder / name).unlink(missing_ok=True)
    # Saving notes how the tokenizer was loaded, and the length limit that scoring lifts: neither is the tokenizer's.
    saved, original = folder / "tokenizer_config.json", base / "tokenizer_config.json"
    config = {key: value for key, value in read_json(saved).items() if key not in ("is_local", "local_files_only")}
    limit = read_json(original).get("model_max_length") if original.is_file() else None
    write_json(saved, config if limit is None else config | {"model_max_length": limit})
    _stop_at(folder / "generation_config.json", record.get("rendering", {}).get("stops", []))


def _stop_at(config: Path, tokens: list[int]) -> None:
    """Whoever runs the model stops where it has learnt to."""
    if not tokens or not config.is_file():  # an adapter has none
        return
    facts = read_json(config)
    known = facts.get("eos_token_id")
    known = known if isinstance(known, list) else [] if known is None else [known]
    if more := [token for token in tokens if token not in known]:
        write_json(config, {**facts, "eos_token_id": [*known, *more]})


@contextmanager
def _quiet() -> Iterator[None]:
    """Third parties say nothing that a user cannot act upon."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def train(
    pool: Pool,
    base: ModelRef,
    train_settings: TrainSettings,
    settings: Settings,
    output: Path,
    *,
    store: Store,
    seed: int,
    log: Log,
    strict: bool = False,
    say: Callable[[dict[str, Any]], None] | None = None,
) -> ModelRef:
    """Supervised fine-tuning of a base model on all rows of a pool.

    Gives the trained model; for LoRA the base with the adapter on it.

    Raises:
        ConfigError: the base has an adapter; or ``strict``, and no row has an end to learn.
    """
    if base.adapter:
        raise ConfigError(f"'{base}' has an adapter; merge it into its base before training on top of it")
    source = resolve(base, store.memo, adapters=False)
    tokenizer = load_tokenizer(source, settings.template_date)
    tell_own_template(base, settings, tokenizer, log)
    renderer, layout = Renderer(pool, tokenizer), template(shown := base.template or settings.template)
    rows = renderer.training_rows(layout, train_settings.model_max_length)
    rendering = {"template": shown, "template_date": str(settings.template_date), **dataclasses.asdict(pool.turns)}
    stops = sorted(turn_end(tokenizer, layout).tokens)
    for line in (*renderer.report(), *lines_of_ends(rows, strict=strict)):
        log(line)
    if (output / RECORD).is_file() and (name := changed(output, store.memo)):
        log(f"warning: '{output / name}' was changed since it was trained; if that was not you, train to another place")
    report = fit(
        rows,
        source.folder,
        tokenizer.hf,
        train_settings,
        output,
        seed=seed,
        device=settings.device,
        base_fingerprint=source.fingerprint,
        rendering=rendering | ({"stops": stops} if stops else {}),
        beside={TRAINED_ROWS: text_of(pool.ids, prompt_groups(pool, near=True), rows.reason)},
        weights=weights_of(pool, train_settings.weights),
        log=log,
    )
    if say is not None:
        say({"rows": report.rows, "steps": report.steps, "last_loss": report.last_loss})
    return trained_model(base, train_settings, output)


def lines_of_ends(rows: Rows, *, strict: bool = False) -> list[str]:
    """What the log should say of rows without an end to learn; a ConfigError where all are, and this is ``strict``."""
    used = rows.reason == None  # noqa: E711 - elementwise
    if rows.ended is None or not (open_ := used & ~rows.ended).any():
        return []
    cut = int((open_ & rows.truncated).sum())
    if not open_[used].all():
        more = f"; {cut:,} of them are cut at the length limit" if cut else ""
        return [f"{open_.sum():,} of {used.sum():,} rows have no end to learn after their last answer{more}"]
    advice = (
        "all of them are cut at the length limit, so raise train.model_max_length"
        if cut == used.sum()
        else "give a --template that closes an answer, or a tokenizer with an end token"
    )
    said = f"no row has an end to learn, so the model will not learn to stop; {advice}"
    if strict:
        raise ConfigError(f"{said}, or leave --strict out")
    return [f"warning: {said}"]


def saved_model(start: ModelRef, how: TrainSettings, place: Path, number: int) -> ModelRef:
    """What a training in ``place`` had made after the passes of its save ``number``, which counts from 1."""
    return trained_model(start, how, place / SAVES / str(number))


def trained_model(start: ModelRef, how: TrainSettings, place: Path) -> ModelRef:
    """What a finished training has made."""
    if how.use_lora:
        return ModelRef(start.where, start.revision, str(place), start.template)
    return ModelRef(str(place), template=start.template)
