"""The client half of the shared-memory transport."""
