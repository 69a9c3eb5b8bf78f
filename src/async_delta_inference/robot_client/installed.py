"""Importing this installs the channel: nothing else is in it."""

from async_delta_inference.robot_client.installation import install

__all__: list[str] = []

install()
