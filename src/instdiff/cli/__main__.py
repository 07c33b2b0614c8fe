"""``python -m instdiff.cli``."""

from instdiff.cli.entry import main

main()
