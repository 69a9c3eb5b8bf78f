"""What stands around the episodes of a run: the server of its own, the checkpoint, the clock and its delays."""
