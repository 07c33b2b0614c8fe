"""Suites: what a trained model can do, item by item, so that two models can be compared on the same items."""
