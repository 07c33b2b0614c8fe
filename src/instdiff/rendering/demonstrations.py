"""Views that put other rows before a row: demonstrations and anchors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from instdiff.core.arrays.ragged import Ragged
from instdiff.rendering.rows import Indices, Marks, RowByRowBuilder, Rows, without_prefix_token


def put_demonstrations(
    rows: Rows,
    neighbours: Indices,
    whole: Rows,
    join_ids: Sequence[int],
    limit: int,
    *,
    prefix_token: int | None = None,
) -> Rows:
    """Rows after demonstrations, the farthest first and the nearest last; targets are the rows' own, unchanged.

    A row itself is kept whole, so the context loses its beginning where both do not fit; a row that leaves no room for
    any is ``too_long``, and one that has no demonstration ``no_neighbour``.

    Args:
        rows: the prompted view.
        neighbours: [rows, shots] row numbers, nearest first, -1 for none.
        whole: what demonstrates: the prompted view with end tokens.
        join_ids: what stands after each demonstration.
        limit: tokens of a row with its context.
        prefix_token: the token that starts a row, taken off all but the first.
    """
    out = RowByRowBuilder()
    joint = np.array(join_ids, np.int32)
    target = Ragged(rows.target, rows.ids.offsets)
    for row, near in enumerate(neighbours.tolist()):
        shown = [other for other in reversed(near) if other >= 0 and len(whole.ids[other])]
        if rows.reason[row] is not None or not shown:
            out.add(reason=rows.reason[row] or "no_neighbour")
            continue
        context = np.concatenate(
            [part for other in shown for part in (without_prefix_token(whole.ids[other], prefix_token), joint)]
        )
        out.after(context, rows.ids[row], target[row], bool(rows.truncated[row]), limit, prefix_token)
    return out.rows()


def anchors_of(rows: Rows, limit: int) -> Marks:
    """Rows that can be anchors: cut to ``limit`` tokens they still have a target."""
    target = Ragged(rows.target, rows.ids.offsets)
    first = [int(np.argmax(marks)) if len(marks := target[row]) else limit for row in range(len(rows))]
    return np.array(first, np.int64) < limit


def cut_anchors(rows: Rows, anchors: Indices, limit: int) -> Rows:
    """The anchors by themselves, cut to ``limit`` tokens: a row for each.

    Raises:
        ValueError: an anchor has no target within the limit.
    """
    few = rows.take(np.asarray(anchors, np.int64))
    if not anchors_of(few, limit).all():
        raise ValueError(f"an anchor has no target within its first {limit} tokens; see anchors_of")
    target = Ragged(few.target, few.ids.offsets)
    out = RowByRowBuilder()
    for row in range(len(few)):
        out.add(few.ids[row][:limit], target[row][:limit], len(few.ids[row]) > limit)
    return out.rows()


def put_before_anchors(
    rows: Rows,
    whole: Rows,
    anchors: Indices,
    limit: int,
    *,
    most: int,
    join_ids: Sequence[int] = (),
    prefix_token: int | None = None,
) -> Rows:
    """Every row as the demonstration before each anchor; the rows of a sample stand together, in the anchors' order.

    Targets are those of ``cut_anchors``, so that both tell of the same tokens. An anchor is also shown to itself.

    Args:
        rows: the prompted view.
        whole: what demonstrates: the prompted view with end tokens.
        anchors: row numbers.
        limit: tokens of an anchor; see ``anchors_of``.
        most: tokens of a demonstration with an anchor; what is longer loses its beginning.
        join_ids: what stands after a demonstration.
        prefix_token: the token that starts a row, taken off all but the first.

    Raises:
        ValueError: an anchor has no target within its limit.
    """
    few = cut_anchors(rows, anchors, limit)
    target = Ragged(few.target, few.ids.offsets)
    joint = np.array(join_ids, np.int32)
    out = RowByRowBuilder()
    for row in range(len(rows)):
        shown = without_prefix_token(whole.ids[row], prefix_token)
        context = np.concatenate([shown, joint]) if len(shown) else shown
        for anchor in range(len(few)):
            if len(shown):
                out.after(context, few.ids[anchor], target[anchor], bool(few.truncated[anchor]), most, prefix_token)
            else:
                out.add(reason=whole.reason[row] or "no_context")
    return out.rows()
