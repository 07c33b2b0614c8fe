"""Answers graded or compared by a judge."""
