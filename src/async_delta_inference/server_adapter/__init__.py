"""Hosts LeRobot's own PolicyServer behind a transport."""
