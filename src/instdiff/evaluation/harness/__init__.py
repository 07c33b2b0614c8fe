"""Tasks of the lm-eval harness."""
