"""Texts by their words: what a search finds (BM25), and importance weights over hashed n-grams (DSIR)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from hashlib import sha256
from typing import Any

import numpy as np
import numpy.typing as npt

from instdiff.errors import require

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


class Search:
    """BM25 over texts (Robertson & Zaragoza, 2009, eq. 3.15).

    A word that the query has q times and a text f times adds q · log(1 + (n - df + 0.5) / (df + 0.5)) · f (k1 + 1) /
    (f + k1 (1 - b + b · length / mean length)). Words are runs of letters and digits in lower case; a script without
    spaces needs cutting beforehand. ``counts`` [n, words] are those of the texts, of which one has a word at least.
    """

    def __init__(self, texts: Sequence[str], *, k1: float = 1.5, b: float = 0.75) -> None:
        require("sklearn", "a search by words")
        from sklearn.feature_extraction.text import CountVectorizer

        self._counter = CountVectorizer(token_pattern=r"(?u)\w+", dtype=np.float64)
        counts = self.counts = self._counter.fit_transform(texts).tocsr()
        frequency = np.bincount(counts.indices, minlength=counts.shape[1])
        idf = np.log1p((len(texts) - frequency + 0.5) / (frequency + 0.5))
        length = np.asarray(counts.sum(1)).ravel()
        owner = np.repeat(np.arange(len(texts)), np.diff(counts.indptr))
        weights = counts.copy()
        even = k1 * (1 - b + b * length / length.mean())
        weights.data = idf[counts.indices] * counts.data * (k1 + 1) / (counts.data + even[owner])
        self._by_word = weights.T.tocsr()

    def count(self, queries: Sequence[str]) -> Any:
        """How often each query has each word of the texts: a sparse [queries, words]."""
        return self._counter.transform(queries).tocsr()

    def scores(self, counts: Any) -> Floats:
        """What each text scores for queries of these words, sparse or not: [queries, n]."""
        found = counts @ self._by_word
        return np.asarray(found.toarray() if hasattr(found, "toarray") else found)


def hash_ngrams(texts: Sequence[str], n: int, buckets: int) -> tuple[Indices, Indices, Indices]:
    """Buckets of each text's n-grams of up to ``n`` words, end to end; how many of them, and how many words, it has.

    Words are runs of letters and digits, or of other signs, in lower case; a bucket is sha256 modulo ``buckets`` (DSIR,
    section 3).
    """

    @lru_cache(maxsize=1 << 20)
    def bucket(gram: str) -> int:
        return int.from_bytes(sha256(gram.encode()).digest(), "big") % buckets

    parts, lengths = [np.zeros(0, np.int64)], []
    for text in texts:
        words = re.findall(r"\w+|[^\w\s]+", text.lower())
        grams = (" ".join(words[at : at + size]) for size in range(1, n + 1) for at in range(len(words) - size + 1))
        parts.append(np.fromiter(map(bucket, grams), np.int64))
        lengths.append(len(words))
    sizes = [len(part) for part in parts[1:]]
    return np.concatenate(parts), np.array(sizes, np.int64), np.array(lengths, np.int64)


def importance(pool: Indices, target: Indices, pseudo: float = 0.0) -> Floats:
    """Per bucket ln(share in the target + 1e-8) - ln(share in the pool + 1e-8), from counts (DSIR, section 3).

    ``pseudo`` is added to each count of the target.
    """
    wanted = target + pseudo
    shares = [counts / max(counts.sum(), 1e-300) for counts in (wanted, pool)]
    return np.asarray(np.log(shares[0] + 1e-8) - np.log(shares[1] + 1e-8), np.float64)
