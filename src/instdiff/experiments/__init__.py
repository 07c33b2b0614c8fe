"""Pipelines and comparisons, and the folders that they write."""
