"""Make the tables of a comparison again from its items: ``python scripts/retable.py RUN/items.parquet``."""

from __future__ import annotations

import sys
from pathlib import Path

from instdiff.errors import InstDiffError
from instdiff.experiments.tables import remake


def main(places: list[str]) -> None:
    if not places:
        sys.exit("name one or more items.parquet of comparisons")
    for place in places:
        try:
            print(remake(Path(place)))
        except InstDiffError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main(sys.argv[1:])
