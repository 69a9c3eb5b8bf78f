"""The server's half: LeRobot's service over a `SessionHost`."""
