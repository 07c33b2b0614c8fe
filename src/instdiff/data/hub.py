"""Data sets from the Hugging Face hub, or from a local folder that `datasets` understands."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import nullcontext
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from instdiff.data.tables import BATCH
from instdiff.errors import DataError, require

Parts = tuple[str, str | None, str | None, str | None]
"""Name, configuration, revision and split."""


def hub_rows(spec: str, limit: int | None) -> Iterator[dict[str, Any]]:
    """Rows of a data set, as ``hub_tables`` has them."""
    return (row for table in hub_tables(spec, limit) for row in table.to_pylist())


def hub_tables(spec: str, limit: int | None, shard: tuple[int, int] | None = None) -> Iterator[pa.Table]:
    """Some rows at a time of ``owner/name[@revision][:split]``; without a split ``train``, or the only one there is.

    ``shard`` is which of how many parts of the split. A DataError where `datasets` is missing, or cannot find or reach
    it.
    """
    name, config, revision, split = parse_hub(spec)
    require("datasets", f"hub:{spec}", DataError)
    import datasets

    with TemporaryDirectory() if os.path.isdir(name) else nullcontext() as aside:
        # The package keeps a local folder by its name: another one of that name would be taken for it.
        yield from _tables(datasets, spec, (name, config, revision, split), aside, limit, shard)


def _tables(
    datasets: Any, spec: str, parts: Parts, aside: str | None, limit: int | None, shard: tuple[int, int] | None
) -> Iterator[pa.Table]:
    name, config, revision, split = parts
    try:
        found = datasets.load_dataset(name, config, revision=revision, split=split, cache_dir=aside)
    except (OSError, ValueError, RuntimeError, KeyError, datasets.exceptions.DatasetsError) as error:
        raise DataError(_advice(spec, name, error)) from error
    table = found if split else _only_split(spec, found)
    if limit is not None:
        table = table.select(range(min(limit, len(table))))
    if shard is not None:
        table = table.shard(num_shards=shard[1], index=shard[0], contiguous=True)
    yield from table.with_format("arrow").iter(batch_size=BATCH)


def parse_hub(spec: str) -> Parts:
    """Name, configuration, revision and split of what stands after ``hub:``; a DataError where there is no name.

    A configuration is a third part of the name, as in ``openai/gsm8k/main``.
    """
    folder, _, split_of_folder = spec.rpartition(":")
    if os.path.isdir(spec):
        return spec, None, None, None
    if folder and os.path.isdir(folder):
        return folder, None, None, split_of_folder
    match = re.fullmatch(r"(?P<name>[^:@]+)(?:@(?P<revision>[^:@]+))?(?::(?P<split>[^:/]+))?", spec)
    if match is None:
        raise DataError(
            f"hub:{spec} names no data set; write hub:owner/name, hub:owner/name:split or hub:owner/name@revision:split"
        )
    owner, *rest = match["name"].split("/")
    config = rest[1] if len(rest) == 2 else None
    return "/".join([owner, *rest[:1]]) if config else match["name"], config, match["revision"], match["split"]


def _only_split(spec: str, found: Any) -> Any:
    splits = list(found)
    if "train" in splits:
        return found["train"]
    if len(splits) == 1:
        return found[splits[0]]
    raise DataError(f"hub:{spec} has no split 'train' but {', '.join(splits)}; name one, as in hub:{spec}:{splits[0]}")


def _advice(spec: str, name: str, error: BaseException) -> str:
    said = " ".join((str(error) or type(error).__name__).split())[:400]
    return (
        f"cannot load hub:{spec}: {said}. Check the name and the split; without a network, download it where there is "
        f"one (hf download --repo-type dataset {name} --local-dir DIR) and give hub:DIR or the folder itself"
    )
