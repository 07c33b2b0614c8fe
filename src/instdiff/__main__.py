"""``python -m instdiff``."""

from instdiff.cli.entry import main

main()
