"""Two runs of the same episodes, and whether they differ by more than luck."""
