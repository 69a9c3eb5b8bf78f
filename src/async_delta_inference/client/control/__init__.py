"""One episode, step by step: ask for chunks, merge them, act. Knows no files."""
