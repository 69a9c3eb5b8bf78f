"""What both halves of the shared-memory transport know: the handshake, the segment, the rings."""
