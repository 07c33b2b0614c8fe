"""Pictures of method pages: which of sixty made-up rows a method chooses. ``scripts/make_docs.py`` writes them.

Rows are drawn with a fixed seed, and chosen by the method's formula or by its own algorithm. ``PICTURES`` has for each
method a function that gives the picture and the sentence below it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt

from instdiff.methods.algorithms.facility_location import facility
from instdiff.methods.algorithms.kcenter import kcenter
from instdiff.methods.algorithms.kmeans import by_cluster
from instdiff.methods.algorithms.round_robin import robin
from instdiff.methods.algorithms.threshold import diverse

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]
Made = tuple[str, str]
COUNT, TENTH = 60, 6
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 420, 280, 44, 12, 408, 236
STYLE = (
    "text{font:13px system-ui,sans-serif;fill:#4b5563}.a{stroke:#9ca3af;fill:none}.l{stroke:#6b7280;fill:none;"
    "stroke-dasharray:4 3}.o{fill:#9ca3af}.c{fill:#2563eb}.x{stroke:#b45309;fill:none}.t{fill:#15803d}"
    ".r{stroke:#2563eb;fill:none;opacity:.45}@media(prefers-color-scheme:dark){text{fill:#b6bec9}.c{fill:#6ea0ff}"
    ".r{stroke:#6ea0ff}.x{stroke:#e0a04a}.t{fill:#4ac27a}.a,.l{stroke:#7d8794}.o{fill:#7d8794}}"
)


class Plane:
    """A picture with two axes; what is drawn on it is in the units of these."""

    def __init__(self, x: Floats, y: Floats, names: tuple[str, str], *, square: bool = False) -> None:
        self.x, self.y = x, y
        ends = [(float(v.min()), float(v.max())) for v in (x, y)]
        if square:
            ends = [(min(low for low, _ in ends), max(high for _, high in ends))] * 2
        self.ends = [(low - 0.06 * (high - low), high + 0.06 * (high - low)) for low, high in ends]
        middle = (
            f'x="{(LEFT + RIGHT) / 2:g}" y="{HEIGHT - 14}"',
            f'transform="rotate(-90)" x="{-(TOP + BOTTOM) / 2:g}" y="22"',
        )
        self.parts = [f'<path class="a" d="M{LEFT} {TOP}V{BOTTOM}H{RIGHT}"/>'] + [
            f'<text {place} text-anchor="middle">{name} →</text>'
            for place, name in zip(middle, names, strict=True)
            if name
        ]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The place of a point in the picture."""
        (left, right), (low, high) = self.ends
        return (
            LEFT + (RIGHT - LEFT) * (x - left) / (right - left),
            BOTTOM - (BOTTOM - TOP) * (y - low) / (high - low),
        )

    def line(self, points: Iterable[tuple[float, float]], kind: str = "l") -> None:
        """A line from point to point."""
        places = [self.at(*point) for point in points]
        self.parts.append(f'<path class="{kind}" d="M' + "L".join(f"{x:.0f} {y:.0f}" for x, y in places) + '"/>')

    def upright(self, x: float) -> None:
        """A vertical line."""
        self.line([(x, self.ends[1][0]), (x, self.ends[1][1])])

    def diagonal(self) -> None:
        """Where both are equal."""
        low, high = max(low for low, _ in self.ends), min(high for _, high in self.ends)
        self.line([(low, low), (high, high)])

    def rows(self, chosen: Rows, out: npt.NDArray[np.bool_] | None = None) -> None:
        """All rows: the chosen ones blue and above all others, those left out as crosses."""
        for row in sorted(range(len(self.x)), key=lambda row: row in chosen):
            x, y = self.at(self.x[row], self.y[row])
            if row in chosen:
                self.parts.append(f'<circle class="c" cx="{x:.0f}" cy="{y:.0f}" r="5"/>')
            elif out is not None and out[row]:
                self.parts.append(f'<path class="x" d="M{x - 3:.0f} {y - 3:.0f}l6 6m0-6l-6 6"/>')
            else:
                self.parts.append(f'<circle class="o" cx="{x:.0f}" cy="{y:.0f}" r="3"/>')

    def svg(self, said: str) -> str:
        """The picture, which asks for nothing, on light and dark pages."""
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" '
        head += f'height="{HEIGHT}" role="img"><title>{said}</title><style>{STYLE}</style>'
        return "\n".join([head, *self.parts, "</svg>\n"])


def drawn(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def best(value: Floats, count: int = TENTH) -> Rows:
    """The rows of highest value; NaN last."""
    return np.argsort(-np.where(np.isnan(value), -np.inf, value), kind="stable")[:count]


# ── one or two numbers a row ──────────────────────────────────────────────────────────────────────────────────────────


def losses(seed: int) -> tuple[Floats, Floats]:
    """Two means of NLL that go together."""
    rng = drawn(seed)
    first = rng.uniform(0.6, 3.6, COUNT)
    return first, np.clip(first * rng.uniform(0.35, 1.15, COUNT), 0.05, None)


def ranked(seed: int, name: str, sign: int, what: str) -> Made:
    """Rows by one number against their length, the lowest or highest chosen."""
    rng = drawn(seed)
    tokens, value = rng.uniform(5, 200, COUNT), rng.gamma(6, 0.35, COUNT)
    chosen = best(sign * value)
    plane = Plane(tokens, value, ("response tokens", name))
    edge = float((sign * value)[chosen].min()) * sign
    plane.line([(plane.ends[0][0], edge), (plane.ends[0][1], edge)])
    plane.rows(chosen)
    return plane.svg(what), what


def longest() -> Made:
    rng = drawn(1)
    prompt, tokens = rng.uniform(5, 120, COUNT), rng.gamma(2, 40, COUNT)
    said = "The rows with the longest responses are chosen, no matter what they say."
    plane, chosen = Plane(prompt, tokens, ("prompt tokens", "response tokens")), best(tokens)
    plane.line([(plane.ends[0][0], tokens[chosen].min()), (plane.ends[0][1], tokens[chosen].min())])
    plane.rows(chosen)
    return plane.svg(said), said


def perplexity() -> Made:
    said = "The rows of the lowest mean NLL are chosen; band=mid takes those in the middle, band=max the highest."
    return ranked(2, "mean NLL of the response", -1, said)


def entropy() -> Made:
    said = "The rows whose tokens leave the model the least choice are chosen; band=max takes the other end."
    return ranked(3, "mean entropy", -1, said)


def ifd() -> Made:
    alone, given = losses(4)
    ratio = np.exp(given - alone)
    said = "Above the diagonal the prompt misleads the model: left out. The rows just below it are chosen."
    plane = Plane(alone, given, ("NLL of the response alone", "NLL with its prompt"), square=True)
    plane.diagonal()
    plane.rows(best(np.where(ratio < 1, ratio, np.nan)), ratio >= 1)
    return plane.svg(said), said


def superfiltering() -> Made:
    rng = drawn(5)
    small = rng.normal(0, 1, COUNT)
    large = 0.85 * small + 0.5 * rng.normal(0, 1, COUNT)
    chosen = best(small)
    said = "A small model ranks: rows that are hard to follow for it mostly are so for the large one."
    plane = Plane(small, large, ("IFD by a small model", "IFD by the large model"))
    plane.upright(float(small[chosen].min()))
    plane.rows(chosen)
    return plane.svg(said), said


def instructdiff() -> Made:
    rng = drawn(6)
    nll, bits = rng.normal(0.4, 0.3, COUNT), rng.normal(0.1, 0.25, COUNT)
    order = np.argsort(nll, kind="stable")
    out = np.zeros(COUNT, bool)
    out[order[:TENTH]] = out[order[-TENTH:]] = True
    said = "A tenth at each end of delta NLL is left out; of the others the lowest delta entropy is chosen."
    plane = Plane(nll, bits, ("delta NLL", "delta entropy"))
    for before, after in ((TENTH - 1, TENTH), (-TENTH - 1, -TENTH)):
        plane.upright(float(nll[order[before]] + nll[order[after]]) / 2)
    plane.rows(best(np.where(out, np.nan, -bits)), out)
    return plane.svg(said), said


def learnability() -> Made:
    base, held = losses(7)
    base[:5], held[:5] = [0.02, 0.04, 0.06, 0.08, 0.05], 0.03
    out = base < 0.1
    said = "The further below the diagonal, as a share of the base's NLL, the more was learnt from other rows: chosen."
    plane = Plane(base, held, ("NLL of the base", "NLL of a model without it"), square=True)
    plane.diagonal()
    plane.rows(best(np.where(out, np.nan, (base - held) / np.maximum(base, 1e-6))), out)
    return plane.svg(said), said


def rho() -> Made:
    base, held = losses(8)
    said = "The rows furthest below the diagonal, in nats, are chosen: other data of the kind teach them."
    plane = Plane(base, held, ("NLL of the base", "NLL after the holdout set"), square=True)
    plane.diagonal()
    plane.rows(best(base - held))
    return plane.svg(said), said


def miwv() -> Made:
    zero, one = losses(9)
    said = "The higher above the diagonal, the less the most similar row helps as an example: these rows are chosen."
    plane = Plane(zero, one, ("NLL without an example", "NLL after an example"), square=True)
    plane.diagonal()
    plane.rows(best(one - zero))
    return plane.svg(said), said


def deita() -> Made:
    rng = drawn(10)
    complexity, quality = rng.uniform(1, 6, COUNT), rng.uniform(1, 6, COUNT)
    chosen = best(complexity * quality)
    edge = float((complexity * quality)[chosen].min())
    said = "The rows beyond a curve of equal complexity times quality are chosen, unless they are too similar."
    plane = Plane(complexity, quality, ("complexity", "quality"))
    top = plane.ends[1][1]
    plane.line([(x, edge / x) for x in np.linspace(edge / top, plane.ends[0][1], 12)])
    plane.rows(chosen)
    return plane.svg(said), said


def tshirt() -> Made:
    rng = drawn(11)
    mean, spread = rng.beta(6, 4, COUNT), rng.gamma(3, 0.02, COUNT)
    wide = best(mean, 2 * TENTH)
    said = "Twice as many rows as asked for, those right of the line, are looked at; the steadiest of them are chosen."
    plane = Plane(mean, spread, ("mean S-IFD over noisy copies", "standard deviation"))
    plane.upright(float(mean[wide].min()))
    plane.rows(wide[best(-spread[wide])])
    return plane.svg(said), said


# ── vectors ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def clouds(seed: int) -> tuple[Floats, Rows]:
    """Rows in four clouds of unlike sizes, and the cloud of each."""
    rng = drawn(seed)
    label = np.repeat(np.arange(4), [28, 16, 10, 6])
    middle = np.array([[0.0, 0.0], [3.2, 1.0], [1.2, 3.0], [4.2, 3.6]])
    return middle[label] + rng.normal(0, 0.55, (COUNT, 2)), label


def mapped(points: Floats) -> Plane:
    """Vectors of rows in two dimensions, which have no names."""
    return Plane(points[:, 0], points[:, 1], ("", ""))


def joined(plane: Plane, points: Floats, chosen: Rows) -> None:
    """A line from each row to the chosen row nearest to it."""
    near = np.square(points[:, None] - points[chosen]).sum(-1).argmin(1)
    for row, at in enumerate(near):
        if row not in chosen:
            plane.line([tuple(points[row]), tuple(points[chosen[at]])], "r")


def k_center() -> Made:
    points, _ = clouds(12)
    chosen = kcenter(points, TENTH, start="mean")
    said = "Always the row farthest from the chosen ones comes next: lines to the nearest chosen row stay short."
    plane = mapped(points)
    joined(plane, points, chosen)
    plane.rows(chosen)
    return plane.svg(said), said


def facility_location() -> Made:
    points, _ = clouds(12)
    chosen = facility(points, TENTH, kernel="rbf")
    said = "Each row is represented by the chosen row nearest to it: dense places get more of them than lonely rows."
    plane = mapped(points)
    joined(plane, points, chosen)
    plane.rows(chosen)
    return plane.svg(said), said


def kmeans_quota() -> Made:
    points, label = clouds(12)
    middle = np.array([points[label == one].mean(0) for one in range(4)])
    distance = np.sqrt(np.square(points - middle[label]).sum(1))
    chosen = by_cluster(label.astype(np.int64), distance, 8)
    said = "Each of four clusters, large or small, gives two rows, those nearest to its middle."
    plane = mapped(points)
    for row in np.setdiff1d(np.arange(COUNT), chosen):
        plane.line([tuple(points[row]), tuple(middle[label[row]])], "r")
    plane.rows(chosen)
    return plane.svg(said), said


def cosine_filter() -> Made:
    rng = drawn(13)
    angle = np.concatenate([rng.normal(0.35, 0.1, 30), rng.normal(1.1, 0.12, 20), rng.uniform(0, 1.5, 10)])
    points = rng.uniform(0.5, 1, (COUNT, 1)) * np.stack([np.cos(angle), np.sin(angle)], 1)
    chosen = diverse(points, threshold=0.98)
    said = "Rows in nearly the direction of a row that was kept are dropped: lines from the origin stay apart."
    plane = mapped(np.vstack([points, np.zeros((1, 2))]))
    plane.x, plane.y = points[:, 0], points[:, 1]
    for row in chosen:
        plane.line([(0.0, 0.0), tuple(points[row])], "r")
    plane.rows(chosen)
    return plane.svg(said), said


def rds() -> Made:
    points, _ = clouds(14)
    targets = np.array([[4.4, 3.2], [3.4, 1.6], [2.2, 3.4]])
    chosen = robin(points, targets, TENTH)
    said = "Each target row, a green triangle, takes in turn the free row of the most similar direction."
    plane = mapped(points)
    plane.rows(chosen)
    for place in targets:
        x, y = plane.at(*place)
        plane.parts.append(f'<path class="t" d="M{x:.0f} {y - 7:.0f}l6 11h-12z"/>')
    return plane.svg(said), said


PICTURES: dict[str, Callable[[], Made]] = {
    **{one.__name__: one for one in (longest, perplexity, entropy, ifd, superfiltering, instructdiff, learnability)},
    **{one.__name__: one for one in (rho, miwv, deita, tshirt, facility_location, kmeans_quota, cosine_filter, rds)},
    "kcenter": k_center,
}
