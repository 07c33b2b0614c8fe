"""One batch through the model: backbone, then the head where a target is predicted.

Shapes: B rows, T tokens, n packed tokens, D hidden size, V vocabulary, N target positions of the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from instdiff.core import Brier, Choice, Entropy, GradSketch, Log, MeanNll, Measure, Neurons, Nll, Pooled, Rank, Top1
from instdiff.core.arrays.ragged import Ragged, offsets_of
from instdiff.engine.attention import Layout, Unsupported, attending
from instdiff.engine.batch import Batch, round_up
from instdiff.engine.grad_sketch import Sketch, Sketches, projection
from instdiff.engine.head import Fused, Head, More, choice_logs, fused_kernel, heads, token_stats
from instdiff.engine.hooks import capture
from instdiff.engine.upload import upload
from instdiff.errors import EngineError

BY_HEAD = (Nll, Entropy, Top1, MeanNll, Rank, Brier, Choice, GradSketch)
BY_TAP = (Pooled, Neurons)

CHECKED = 64
"""Positions on which two ways are compared."""


class Forward:
    """Reads measures off a causal language model.

    On the first batch the fast path (backbone, then the output embedding on target positions, then a cap or scale that
    the configuration names) is compared with the model's own logits; a model that does something else to them goes
    through its own head, with the logits of all positions in memory, and the log says so.
    In the same way packed trees are compared with a row alone; a model whose attention cannot follow a tree gets padded
    batches.
    """

    def __init__(self, model: Any, log: Log) -> None:
        self.model, self.log = model, log
        self.device = next(model.parameters()).device
        self.backbone = getattr(model, model.base_model_prefix, None)
        self.output = model.get_output_embeddings()
        self.fast: bool | None = False if self.backbone is None or self.output is None else None
        self.head: Head = self.output
        self.fused: Fused | None = None
        self.vocabulary = int(model.config.get_text_config().vocab_size)
        self.packs: bool | None = None if self.backbone is not None else False
        self.positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        self.forwards = self.tokens = 0

    @torch.inference_mode()
    def __call__(self, batch: Batch, measures: tuple[Measure, ...]) -> dict[Measure, Ragged]:
        """For each measure its values, rows in batch order."""
        unknown = [measure for measure in measures if not isinstance(measure, (*BY_HEAD, *BY_TAP))]
        if unknown:
            raise EngineError(f"the engine does not know the measure {unknown[0]!r}")
        self._check_ids(batch)
        by_head = [measure for measure in measures if isinstance(measure, BY_HEAD)]
        if self.fast is None and by_head:
            self._choose_head(batch)
        self.forwards += 1
        self.tokens += batch.ids.size
        own = bool(by_head) and not self.fast
        if self.backbone is None and len(by_head) < len(measures):
            raise EngineError(f"where {type(self.model).__name__} has its layers is not known, so they cannot be read")
        with capture(self.backbone, measures, batch.where, batch.target_places()) as tapped:
            states = self._run(self.model if own else self.backbone, batch)
        out = {measure: Ragged.of_matrix(vectors) for measure, vectors in tapped.items()}
        if by_head:
            hidden = states.flatten(0, 1)[upload(batch.predictors(), self.device)]
            out |= self._by_head(hidden, batch, by_head, torch.nn.Identity() if own else self.head)
        return out

    def _by_head(
        self, hidden: torch.Tensor, batch: Batch, measures: Sequence[Measure], head: Head
    ) -> dict[Measure, Ragged]:
        """What is read off the distributions that predict the targets."""
        out: dict[Measure, Ragged] = {}
        offsets = offsets_of(batch.counts)
        for measure in measures:
            if isinstance(measure, Choice):
                _check_choice(measure, batch)
                out[measure] = Ragged.of_matrix(choice_logs(hidden, head, measure.ids, self.vocabulary).cpu().numpy())
        if len(out) == len(measures):
            return out
        target = upload(batch.target, self.device)
        ranks, briers = ([m for m in measures if isinstance(m, kind)] for kind in (Rank, Brier))
        more = More(bool(ranks), tuple(m.likeliest for m in briers if isinstance(m, Brier)))
        sketches = self._sketches(hidden, target, head, measures)
        asked: dict[str, Any] = {"entropy": Entropy() in measures, "more": more, "fused": self.fused}
        if sketches:
            asked["also"] = Sketches(sketches.values())
        stats = token_stats(hidden, target, head, self.vocabulary, **asked)
        nll = Ragged(stats.nll.cpu().numpy(), offsets)
        known: dict[Measure, Ragged] = {Nll(): nll, Top1(): Ragged(stats.top.cpu().numpy(), offsets)}
        if MeanNll() in measures:
            known[MeanNll()] = _means(nll)
        if stats.entropy is not None:
            known[Entropy()] = Ragged(stats.entropy.cpu().numpy(), offsets)
        for measure in measures:
            if isinstance(measure, Rank) and stats.rank is not None:
                known[measure] = Ragged(stats.rank.clamp(max=measure.clip).cpu().numpy(), offsets)
        for measure, line in zip(briers, () if stats.brier is None else stats.brier.cpu().numpy(), strict=True):
            known[measure] = Ragged(line, offsets)
        for measure, sketch in sketches.items():
            known[measure] = Ragged.of_matrix(sketch.rows(batch.counts).cpu().numpy())
        return out | {measure: known[measure] for measure in measures if measure not in out}

    def _sketches(
        self, hidden: torch.Tensor, target: torch.Tensor, head: Head, measures: Sequence[Measure]
    ) -> dict[GradSketch, Sketch]:
        """What gathers gradients while the head runs; an EngineError where it is not known what the head does."""
        asked = [measure for measure in measures if isinstance(measure, GradSketch)]
        if asked and not self.fast:
            raise EngineError(
                f"{type(self.model).__name__} makes its logits in a way of its own, so the gradient of its output "
                "embedding cannot be read off them; give another model"
            )
        entries = int(getattr(self.output, "out_features", self.vocabulary))
        how = [projection(measure, entries, hidden.shape[-1], hidden.device) for measure in asked]
        return {one: Sketch(hidden, target, head, way) for one, way in zip(asked, how, strict=True)}

    def _check_ids(self, batch: Batch) -> None:
        known, highest = self.model.get_input_embeddings().num_embeddings, int(batch.ids.max())
        if highest >= known:
            raise EngineError(
                f"token id {highest} is outside the model's {known} embeddings; "
                "tokenizer and model do not belong together"
            )

    def _run(self, module: Any, batch: Batch) -> torch.Tensor:
        """Hidden states of the backbone, or logits of the whole model: [B, T, ...]."""
        given: dict[str, torch.Tensor] = {"input_ids": upload(batch.ids, self.device)}
        if batch.noise is not None:
            embedded = self.model.get_input_embeddings()(given.pop("input_ids"))
            drawn = batch.noise.at(np.concatenate(batch.where), batch.ids.size).values(embedded.shape[-1], self.device)
            given["inputs_embeds"] = embedded + drawn.view(embedded.shape).to(embedded.dtype)
        if batch.tree is None or batch.position is None:
            return self._read(module(**given, use_cache=False))
        given["position_ids"] = upload(batch.position, self.device)
        tokens = batch.ids.size
        given = {name: _zero_pad(tensor, round_up(tokens)) for name, tensor in given.items()}
        with attending(self.model, Layout(batch.tree, round_up(tokens), self.device)):
            return self._read(module(**given, use_cache=False))[:, :tokens]

    def _read(self, out: Any) -> torch.Tensor:
        states: torch.Tensor = out.last_hidden_state if hasattr(out, "last_hidden_state") else out.logits
        return states

    @torch.inference_mode()
    def can_pack(self, batch: Batch) -> bool:
        """Whether a packed batch gives what its longest row gives alone; asked of the first batch only."""
        if self.packs is not None or self.backbone is None:
            return bool(self.packs)
        self._check_ids(batch)
        row, where = batch.longest()
        ids = torch.from_numpy(row)[None].to(self.device)
        alone = self._read(self.backbone(input_ids=ids, use_cache=False))[0].float()
        try:
            states = self._run(self.backbone, replace(batch, noise=None))[0]
            packed = states[upload(where, self.device)].float()
        except (Unsupported, TypeError, RuntimeError) as error:
            if out_of_memory(error):
                raise  # a smaller batch may be packed
            self.packs = False
            return False
        both = torch.isfinite(alone) & torch.isfinite(packed)
        if not bool(both.any()):
            return False
        gap = float((alone - packed)[both].norm() / alone[both].norm().clamp(min=1e-12))
        # Rounding in another order: a bf16 state moves by a unit or two, a wrong attention by far more.
        self.packs = gap <= max(1e-4, 4 * torch.finfo(self.model.dtype).eps)
        return self.packs

    def _choose_head(self, batch: Batch) -> None:
        """Compare heads on the beginning of a row; none is chosen where it has no finite logit to compare."""
        row = torch.from_numpy(batch.longest()[0][:CHECKED])[None].to(self.device)
        own = self._read(self.model(input_ids=row, use_cache=False))[0].float()
        assert self.backbone is not None
        hidden = self._read(self.backbone(input_ids=row, use_cache=False))[0]
        gaps = []
        for head in heads(self.output, self.model.config.get_text_config()):
            fast = head(hidden).float()
            both = torch.isfinite(own) & torch.isfinite(fast)
            if not bool(both.any()):
                return
            gap, scale = float((own - fast).abs()[both].max()), float(own[both].abs().max())
            # Equal but for rounding: products may be summed in another order, which moves a bf16 logit by a unit.
            if gap <= max(1e-3, 4 * torch.finfo(self.model.dtype).eps) * max(scale, 1.0):
                self.fast, self.head, self.fused = True, head, fused_kernel(hidden, head, self.log)
                return
            gaps.append(gap)
        self.fast = False
        self.log(
            f"the fast head differs from {type(self.model).__name__}'s own logits by {min(gaps):.2g}; "
            "using the model's own head (slower)"
        )

    @property
    def width(self) -> int:
        """Size of an input embedding."""
        return int(self.model.get_input_embeddings().weight.shape[-1])

    def broken_weights(self) -> str | None:
        """The name of a weight tensor that makes every row non-finite, if there is one.

        A row of a lookup table only touches the rows of text that look it up.
        """
        tables = {id(m.weight) for m in self.model.modules() if isinstance(m, torch.nn.Embedding)}
        tables -= {id(getattr(self.output, "weight", None))}
        for name, weight in self.model.named_parameters():
            finite = torch.isfinite(weight)
            if not bool(finite.all(-1).any() if id(weight) in tables else finite.all()):
                return str(name)
        return None


def _zero_pad(packed: torch.Tensor, tokens: int) -> torch.Tensor:
    """[1, n, ...] with zeros behind it up to a number of tokens."""
    room = packed.new_zeros((1, tokens, *packed.shape[2:]))
    room[:, : packed.shape[1]] = packed
    return room


def _check_choice(measure: Choice, batch: Batch) -> None:
    if len(measure.ids) != len(measure.options):
        raise EngineError(f"{measure!r} has no token ids; they come from the model's tokenizer")
    if (batch.counts != 1).any():
        raise EngineError("a choice is read where a row has one target; use a view that asks, such as Asked")


def _means(nll: Ragged) -> Ragged:
    """The mean of each row; NaN where one of its tokens has no number, so that no row passes for a whole one."""
    return Ragged.of_matrix(np.where(nll.count() == nll.lengths(), nll.mean(), np.nan)[:, None].astype(np.float32))


def out_of_memory(error: Exception) -> bool:
    """A device says it by its own class, the CPU's allocator in words."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
