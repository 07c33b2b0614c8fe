"""What was chosen and why, as one page without network and as JSON; and its plots as functions."""

from instdiff.reporting.page import report, write_report

__all__ = ["plots", "report", "write_report"]
