"""Arrays that carry columns: ragged rows, content ids, spilling to disk, quantiles, ranking."""
