"""What a run shows to a person: the progress bar, the table at its end, and pictures."""
