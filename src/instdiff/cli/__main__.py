"""``python -m instdiff.cli``."""

from instdiff.cli.app import main

main()
