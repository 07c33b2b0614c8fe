"""Signals in, the fewest passes out."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from instdiff.core import Column, Entropy, Length, Listed, Nll, Prompted, ResponseOnly, Signal, View, WholeText
from instdiff.methods import IFD, InstructDiff, Longest, Perplexity, Random, ResponseEntropy, Superfiltering
from instdiff.scoring.planner import Pass, plan


def signals(*methods: object) -> list[Signal]:
    return [signal for method in methods for signal in method.signals().values()]  # type: ignore[attr-defined]


def test_six_methods_need_three_passes() -> None:
    six = [InstructDiff(), IFD(), Perplexity(), ResponseEntropy(), Longest(), Random()]
    assert plan(signals(*six)) == [
        [
            Pass("base", Prompted(), (Entropy(), Nll())),
            Pass("base", ResponseOnly(), (Nll(),)),
            Pass("calibrated", Prompted(), (Entropy(), Nll())),
        ]
    ]
    alone = sum(len(wave) for method in six for wave in plan(signals(method)))
    assert alone == 2 + 2 + 1 + 1


def test_the_order_of_methods_changes_nothing() -> None:
    methods = [InstructDiff(), IFD(), Superfiltering(), Perplexity(compat="official")]
    plans = {repr(plan(signals(*order))) for order in itertools.permutations(methods)}
    assert len(plans) == 1


def test_passes_of_a_model_stand_together() -> None:
    (wave,) = plan(signals(InstructDiff(), IFD(), IFD(model="proxy"), IFD(model="calibrated")))
    roles = [step.model for step in wave]
    assert roles == sorted(roles)
    assert len(wave) == len({(step.model, step.view) for step in wave}) == 6


def test_what_needs_no_model_needs_no_pass() -> None:
    assert plan([]) == []
    assert plan(signals(Random(balance="source"), Longest())) == []
    assert plan([Signal(Length()), Signal(Column("source")), Signal(Listed("warmup"))]) == []


def test_other_views_are_other_passes() -> None:
    (wave,) = plan([Signal(Nll()), Signal(Nll(), WholeText()), Signal(Nll(), Prompted(score_eos=True)), Signal(Nll())])
    assert {step.view for step in wave} == {Prompted(), WholeText(), Prompted(score_eos=True)}
    assert all(step.measures == (Nll(),) for step in wave)


@dataclass(frozen=True)
class After(View):
    """A view that cannot be rendered before some signal is there."""

    needs: Signal


@dataclass(frozen=True)
class Later(Signal):
    def needs(self) -> tuple[Signal, ...]:
        return (self.view.needs,) if isinstance(self.view, After) else ()


def test_a_wave_needs_only_earlier_waves() -> None:
    first = Signal(Nll())
    second = Later(Nll(), After(first), "proxy")
    third = Later(Entropy(), After(second))
    assert plan([third]) == [
        [Pass("base", Prompted(), (Nll(),))],
        [Pass("proxy", After(first), (Nll(),))],
        [Pass("base", After(second), (Entropy(),))],
    ]


def test_measures_join_the_earliest_wave_that_has_their_pass() -> None:
    first = Signal(Nll())
    second = Later(Nll(), After(first))
    deep = Later(Nll(), After(second))
    # The entropy of `After(first)` is asked for at the same depth as its NLL, whatever the order of asking.
    waves = plan([deep, Later(Entropy(), After(first)), Signal(Entropy())])
    assert waves[0] == [Pass("base", Prompted(), (Entropy(), Nll()))]
    assert waves[1] == [Pass("base", After(first), (Entropy(), Nll()))]
    assert waves[2] == [Pass("base", After(second), (Nll(),))]


@dataclass(frozen=True)
class Measured(Signal):
    """A signal whose measure, not its view, needs another column."""

    def needs(self) -> tuple[Signal, ...]:
        return (Signal(Nll(), WholeText()),)


def test_a_measure_of_a_later_wave_joins_the_pass_that_is_there_already() -> None:
    waves = plan([Measured(Entropy()), Signal(Nll())])
    assert [step for wave in waves for step in wave] == [
        Pass("base", Prompted(), (Entropy(), Nll())),
        Pass("base", WholeText(), (Nll(),)),
    ]
