"""Samples become rows of tokens."""
