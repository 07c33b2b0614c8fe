"""Embedders and judges: models that read the words of a row."""
