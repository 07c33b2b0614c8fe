"""Choosing a subset: rows in, row indices out, in the order taken.

Pure functions on arrays. None reads a file, knows a method or builds a table of rows times rows, but of a few thousand.
"""
