"""Runs as one page: pictures, numbers and videos in a file that needs nothing else."""
