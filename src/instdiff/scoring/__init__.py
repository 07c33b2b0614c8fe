"""From a pool to a score table: plan, workbench, cost."""
