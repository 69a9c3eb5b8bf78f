"""Policies for servers: LeRobot's own PolicyServer behind any transport, and the command that serves it."""
