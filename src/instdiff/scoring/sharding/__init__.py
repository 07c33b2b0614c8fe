"""A part of the rows for each of several processes, and joining what they made."""
