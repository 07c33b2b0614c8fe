"""The generators behind `make_demo.py`, one module per domain of the demonstration data."""
