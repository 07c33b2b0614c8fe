"""The command line. The collector of garbage looks rarely: what imports make lives to the end."""

import gc

gc.set_threshold(100_000, 50, 100)
