"""Handing a subset to a trainer: its data format, and the lines to paste."""
