"""What a run found out, who is told of it while it goes on, and the files it leaves behind."""
