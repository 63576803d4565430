"""Search algorithms: one file each, offering itself in ``METHODS``; third parties use entry points of this name."""
