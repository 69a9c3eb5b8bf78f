"""The server half of the shared-memory transport."""
