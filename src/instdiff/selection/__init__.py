"""Looking at what was chosen: one row, or two selections."""
