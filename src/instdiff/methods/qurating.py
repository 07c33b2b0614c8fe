"""QuRating (Wettig et al., ICML 2024, arXiv:2402.09739): sampling by the ratings of a classification head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from instdiff.core import Classified, Floats, Length, Method, Scores, Signal, Signals, Words
from instdiff.errors import ConfigError
from instdiff.methods.random import uniform


@dataclass(frozen=True)
class QuRating(Method):
    """A rating in standard deviations over ``temperature``, with Gumbel noise, highest first.

    With ``noise`` it is a draw without replacement, by ``seed``, in which a row counts exp(rating / temperature): the
    higher the temperature the nearer to a random choice. Without it the best come first. The rating is the logit of
    ``label`` by the model of the role ``rater``, any sequence-classification head: its label's name or number, those of
    QuRater where a head of four names none, and of one label always that. It reads the ``row``, its ``instruction`` or
    its ``response`` in chunks of 512 tokens, weighted by their tokens. Mean and standard deviation are over all rows
    that have a rating. Domains get shares in proportion by ``--group-by``. Details: ``rating``, and ``standard``, which
    is without temperature and noise.
    """

    name: ClassVar[str] = "qurating"
    paper: ClassVar[str] = "arXiv:2402.09739"

    label: str | int = "educational_value"
    temperature: float = 2.0
    noise: bool = True
    text: Literal["row", "instruction", "response"] = "row"
    seed: int = 42
    rater: str = "rater"

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(f"'{self.name}.temperature' is {self.temperature:g}; it lies above 0")

    def signals(self) -> dict[str, Signal]:
        """The rating."""
        rating = Signal(Classified(self.label), Words(self.text), self.rater)
        return {"rating": rating, "length": Signal(Length(unit="chars"))}

    def score(self, s: Signals) -> Scores:
        """Standardised, over the temperature, with noise."""
        rating = np.where(np.array([word is None for word in s.reason], bool), s.rating.mean(), np.nan)
        known = rating[np.isfinite(rating)]
        spread = float(known.std()) if len(known) else 1.0
        standard = (rating - (known.mean() if len(known) else 0.0)) / (spread or 1.0)
        value = standard / self.temperature
        return Scores(value + gumbel(self.seed, s) if self.noise else value, rating=rating, standard=standard)


def gumbel(seed: int, s: Signals) -> Floats:
    """Standard Gumbel noise per row, by seed and content."""
    draw = np.clip(uniform(seed, s), 2.0**-60, 1 - 2.0**-53)
    return np.asarray(-np.log(-np.log(draw)))
