"""Rankings learnt from the statistics of nodes (ParZC)."""
