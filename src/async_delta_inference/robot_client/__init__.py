"""LeRobot's own RobotClient, unmodified, over a transport of ours: ``--server_address=shm://NAME``.

``import async_delta_inference.robot_client.installed`` makes it so in a program; ``async-delta-robot-client`` is
LeRobot's command line with that import before it.
"""

from async_delta_inference.robot_client.channel import CallError, TransportChannel
from async_delta_inference.robot_client.installation import install

__all__ = ["CallError", "TransportChannel", "install"]
