"""Forward passes in other processes."""
