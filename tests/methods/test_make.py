"""Methods and budgets by what people write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from instdiff.config.methods import make_method, make_methods
from instdiff.core import Budget
from instdiff.core.budget import parse_budget, published_budget
from instdiff.data import load
from instdiff.errors import ConfigError
from instdiff.methods import IFD, METHODS, InstructDiff, Perplexity, Random, resolve
from instdiff.scoring.scorer import score

MINE = '''
from dataclasses import dataclass
import numpy as np
from instdiff.core import Length, Method, Scores, Signal

@dataclass(frozen=True)
class Margin(Method):
    """Response minus instruction, in words."""
    name = "margin"
    weight: float = 1.0
    def signals(self):
        return {p: Signal(Length(p, "words")) for p in ("response", "instruction")}
    def score(self, s):
        return Scores(s.response - self.weight * s.instruction, twice=2 * s.response)

NotOne = 3
'''


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE, encoding="utf-8")
    return path


# ── by name ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_every_name_resolves_to_its_class() -> None:
    for name, kind in METHODS.items():
        assert resolve(name) is kind and kind.name == name
        method = make_method(name, {})
        assert method == kind() and make_method(name, method.params()) == method


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("idf", "unknown method 'idf'; did you mean 'ifd'?"),
        ("instructdif", "unknown method 'instructdif'; did you mean 'instructdiff'?"),
        ("zzz", "unknown method 'zzz'; known: alpagasus, blend, bm25, choice, column,"),
    ],
)
def test_an_unknown_method_gets_a_suggestion(name: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(name)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("ifd", {"ratios": "loss"}, "method 'ifd' has no parameter 'ratios'; did you mean 'ratio'?"),
        ("instructdiff", {"gamma": 0.1}, "method 'instructdiff' has no parameter 'gamma'; known: abs, band, base,"),
        ("ifd", {"ratio": "lost"}, "'ifd.ratio': Input should be 'perplexity' or 'loss' (given: 'lost')"),
        (
            "perplexity",
            {"min_response_tokens": "many"},
            "'perplexity.min_response_tokens': Input should be a valid int",
        ),
    ],
)
def test_a_parameter_that_does_not_fit(name: str, params: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_method(name, params)
    assert str(error.value).startswith(message)


def test_parameters_reach_the_method() -> None:
    assert make_method("ifd", {"ratio": "loss", "compat": "official"}) == IFD(ratio="loss", compat="official")
    assert make_method("instructdiff", {"nll_reject_ratio": "0.05"}) == InstructDiff(nll_reject_ratio=0.05)
    made = make_methods(["random", "perplexity"], {"perplexity": {"band": "mid"}}, seed=7)
    assert made == {"random": ("random", Random(seed=7)), "perplexity": ("perplexity", Perplexity(band="mid"))}
    assert make_methods(["random"], {"random": {"seed": 1}}, seed=7)["random"][1] == Random(seed=1)
    with pytest.raises(ConfigError, match="method 'ifd' is given twice"):
        make_methods(["ifd", "ifd"], {}, 1)
    with pytest.raises(ConfigError, match="parameters for 'idf', which is not among the methods; did you mean 'ifd'"):
        make_methods(["ifd"], {"idf": {"ratio": "loss"}}, 1)


# ── a method of one's own ─────────────────────────────────────────────────────────────────────────────────────────────


def test_a_method_from_a_file(mine: Path) -> None:
    kind = resolve(f"{mine}:Margin")
    method = make_method(f"{mine}:Margin", {"weight": "0.5"})
    assert type(method).__name__ == kind.__name__ == "Margin" and method.params() == {"weight": 0.5}
    table = score(load([{"instruction": "a b", "output": "c d e"}, {"instruction": "a", "output": ""}]), [method])
    out = table["margin"]
    np.testing.assert_array_equal(out.value, [2.0, np.nan])
    np.testing.assert_array_equal(out.details["twice"], [6.0, 0.0])
    assert out.reason.tolist() == [None, "empty_response"]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{mine}:Margins", "has no 'Margins'; did you mean 'Margin'?"),
        ("{mine}:NotOne", "'NotOne' is not a subclass of instdiff.Method"),
        ("{mine}", "no file '{mine}'; write it as path/to/file.py:Class"),
        ("{mine}x:Margin", "no file '{mine}x'; write it as path/to/file.py:Class"),
    ],
)
def test_errors_of_a_methods_file(mine: Path, spec: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(spec.format(mine=mine))
    assert message.format(mine=mine) in str(error.value)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("def x(:", "SyntaxError"),
        ("import numpyy", "ModuleNotFoundError: No module named 'numpyy'"),
        ("1/0", "ZeroDiv"),
    ],
)
def test_a_file_that_cannot_be_imported(tmp_path: Path, code: str, message: str) -> None:
    path = tmp_path / "broken.py"
    path.write_text(code, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        resolve(f"{path}:Broken")
    assert f"{path} cannot be imported: {message}" in str(error.value)


def test_a_parameter_of_a_methods_file(mine: Path) -> None:
    with pytest.raises(ConfigError, match="has no parameter 'wieght'; did you mean 'weight'"):
        make_method(f"{mine}:Margin", {"wieght": 1})
    with pytest.raises(ConfigError, match=r"'margin\.weight': Input should be a valid number"):
        make_method(f"{mine}:Margin", {"weight": "heavy"})


# ── budgets ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("500", Budget(500, "rows")),
        (500, Budget(500, "rows")),
        ("500 rows", Budget(500, "rows")),
        ("1_000", Budget(1000, "rows")),
        ("10%", Budget(0.1, "share")),
        (" 10 % ", Budget(0.1, "share")),
        ("29% rows", Budget(0.29, "share")),
        ("12.5%", Budget(0.125, "share")),
        ("100%", Budget(1.0, "share")),
        ("25% eligible", Budget(0.25, "eligible")),
        ("200000 tokens", Budget(200_000, "tokens")),
        ("200,000 tokens", Budget(200_000, "tokens")),
        ("2e5 tokens", Budget(200_000, "tokens")),
        ("10% tokens", Budget(0.1, "token_share")),
        (Budget(0.3), Budget(0.3)),
    ],
)
def test_budgets(text: Any, budget: Budget) -> None:
    assert parse_budget(text) == budget
    assert parse_budget(str(budget)) == budget  # and what it prints can be read again


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ten percent", "budget 'ten percent' is not understood; write 500, 10%,"),
        ("-5", "budget '-5' is not understood"),
        ("", "budget '' is not understood"),
        ("10% words", "budget '10% words' is not understood"),
        ("0%", "budget '0%': a share lies above 0 and up to 100 %"),
        ("101%", "budget '101%': a share lies above 0 and up to 100 %"),
        ("50 eligible", "budget '50 eligible': 'eligible' goes with a share"),
        ("0", "budget '0' is no whole count"),
        (0.1, "budget '0.1' is no whole count; for a share write 10%;"),
        ("2.5 tokens", "budget '2.5 tokens' is no whole count"),
        ("1e999", "budget '1e999' is no whole count"),
        ("1e999%", "budget '1e999%': a share lies above 0 and up to 100 %"),
    ],
)
def test_budgets_that_are_none(text: Any, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_budget(text)
    assert str(error.value).startswith(message)


def test_published_budget_keys() -> None:
    assert published_budget(0.1, "tokens") == Budget(0.1, "token_share")
    assert published_budget(0.2, "rows") == Budget(0.2, "share")
    assert published_budget(1, "filtered") == Budget(1, "eligible")
    with pytest.raises(ConfigError, match="budget 'filterd': with select_ratio it is one of tokens, rows, filtered"):
        published_budget(0.1, "filterd")
    for ratio in (0, -0.1, 1.1):
        with pytest.raises(ConfigError, match="lies outside 0 to 1"):
            published_budget(ratio, "rows")
