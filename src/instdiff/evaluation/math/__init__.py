"""Mathematics: answers graded by value."""
