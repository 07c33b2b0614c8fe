"""Whether pass rates drawn in steps give the band of sixteen draws for each row, and how many draws they save.

The model of the controlled pool is trained on a tenth of it, so that it solves some of the rest sometimes. An answer is
right in one way only, and is drawn token by token, so that the true rate of every row can be computed: the probability
of its answer at that temperature.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import arguments, finish, timed

import instdiff
from instdiff import Pool, Settings, Store
from instdiff.core import Floats, ModelRef
from instdiff.engine.sources import load_tokenizer, resolve
from instdiff.methods import PassRate
from instdiff.rendering.renderer import Renderer
from instdiff.rendering.templates import template

HOW: dict[str, Any] = {"verifier": "exact", "max_tokens": 8}
TRAIN = {
    "model_max_length": 128, "learning_rate": 1e-3, "global_batch_size": 32, "per_device_train_batch_size": 32,
    "dtype": "float32",
}  # fmt: skip
ROWS, EPOCHS, BAND = 1000, 10, "0.2-0.8"
KINDS = ("known", "learnable", "beyond", "noise", "duplicate", "filler")


def true_rates(folder: str, pool: Pool, temperature: float) -> Floats:
    """Per row the probability of its answer and of the end after it."""
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(resolve(ModelRef(folder)))
    rows = Renderer(pool, tokenizer).training_rows(template("plain"), 128)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    out = np.zeros(len(rows))
    with torch.inference_mode():
        for row in range(len(rows)):
            ids = torch.from_numpy(rows.ids[row].astype(np.int64))
            hit = np.flatnonzero(rows.target[rows.ids.offsets[row] : rows.ids.offsets[row + 1]])
            log_p = torch.log_softmax(model(ids[None]).logits[0, hit - 1].double() / temperature, -1)
            out[row] = float(log_p.gather(-1, ids[hit, None]).sum().exp())
    return out


def band_of(pool: Pool, folder: str, method: PassRate, store: Store) -> tuple[float, Any]:
    """Seconds, and the scores of a method."""
    how = Settings(dtype="float32", device="cpu", templates={"*": "plain"})
    return timed(lambda: instdiff.score(pool, method, {"base": folder}, settings=how, store=store)["pass_rate"])


def main() -> None:
    args = arguments(rows=ROWS, epochs=EPOCHS)
    rows = 60 if args.quick else args.rows
    pool = instdiff.load("builtin:skills")
    some = np.random.default_rng(0).permutation(len(pool))
    few, pool = pool.take(np.sort(some[:400])), pool.take(np.sort(some[:rows]))
    with tempfile.TemporaryDirectory() as place:
        folder = str(Path(place) / "model")
        instdiff.train(few, "builtin:skills", folder, template="plain", num_train_epochs=args.epochs, **TRAIN)
        truth = true_rates(folder, pool, PassRate().temperature)
        kind, store = np.array(pool.column("kind")), Store(Path(place) / "store")
        whole_s, whole = band_of(pool, folder, PassRate(band=BAND, step=16, **HOW), store)
        steps = band_of(pool, folder, PassRate(band=BAND, **HOW), store)[1]
        records = compare(BAND, truth, whole, steps, kind, whole_s)
    finish(args, records)


def compare(band: str, truth: Floats, whole: Any, steps: Any, kind: Any, seconds: float) -> list[dict[str, Any]]:
    """What both say of the rows, of all and of each kind."""
    low, high = map(float, band.split("-"))
    really, all16, adaptive = (truth >= low) & (truth <= high), whole.eligible, steps.eligible
    drawn, rate = steps.details["drawn"], whole.details["rate"]
    out = []
    for name in ("all", *KINDS):
        at = np.ones(len(truth), bool) if name == "all" else kind == name
        if not at.any():
            continue
        facts = {
            "rows": int(at.sum()), "draws": float(drawn[at].sum() / (16 * at.sum())),
            "same": float((all16 == adaptive)[at].mean()), "open": float((steps.details["decided"][at] == 0).mean()),
            "in_band": float(really[at].mean()), "in_band_16": float(all16[at].mean()),
            "wrong_16": float((all16 != really)[at].mean()), "wrong": float((adaptive != really)[at].mean()),
            "rate_error_16": float(np.abs(rate - truth)[at].mean()),
        }  # fmt: skip
        out.append({"what": "pool" if name == "all" else "kind", "band": band, "of": name, **facts})
    out[0]["seconds"] = seconds
    return out


if __name__ == "__main__":
    main()
