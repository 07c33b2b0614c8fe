"""Whether a written answer is right: mathematics, programs, exact texts."""
