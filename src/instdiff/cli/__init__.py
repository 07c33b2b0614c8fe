"""The command line: verbs, options, and how they speak."""
