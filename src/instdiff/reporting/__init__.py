"""What was chosen and why, as one page without network and as JSON; and its plots as functions."""

from instdiff.reporting.page import report

__all__ = ["plots", "report"]
