"""Superfiltering (Li et al., ACL 2024, arXiv:2402.00530): a small model scores for a large one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from instdiff.methods.ifd import IFD


@dataclass(frozen=True)
class Superfiltering(IFD):
    """IFD as a ratio of perplexities under a small ``proxy`` model (GPT-2 in the paper), with the template ``plain``.

    ``compat="official"`` leaves out the published selector's fixed data size of 52,002 rows: a budget is always of
    the data at hand.
    """

    name: ClassVar[str] = "superfiltering"
    paper: ClassVar[str] = "arXiv:2402.00530"

    model: str = "proxy"
