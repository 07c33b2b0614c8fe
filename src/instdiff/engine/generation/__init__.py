"""Answers of a model: what is asked, by which backend, and the cache."""
