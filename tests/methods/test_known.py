"""What is said of the rows that a model knows already."""

from __future__ import annotations

from instdiff.scoring.known import KnownRows, tell_known


def test_one_line_for_all_of_which_the_same_is_said() -> None:
    later = [KnownRows(name, 0.1, 20, None) for name in ("learnability", "blended 0")]
    lines = tell_known([later[0], KnownRows("other", 0.1, 20, 5), later[1], KnownRows("strict", 0.2, 20, None)])
    assert lines == [
        "learnability, blended 0: which share of the rows is below the floor of 0.1 nats, and so known, is told after "
        "scoring; the store does not have their NLL yet",
        "other: 5 of 20 rows (25%) are below the floor of 0.1 nats, and so known",
        "strict: which share of the rows is below the floor of 0.2 nats, and so known, is told after scoring; the "
        "store does not have their NLL yet",
    ]
