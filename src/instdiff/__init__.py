"""instdiff."""
