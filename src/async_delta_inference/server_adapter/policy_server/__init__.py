"""`PolicyServerPolicy`: LeRobot's PolicyServer as a policy of many sessions.

It imports torch and lerobot, half a minute on a slow machine: whoever must be quick imports it late.
"""

from async_delta_inference.server_adapter.policy_server.policy import PolicyServerPolicy

__all__ = ["PolicyServerPolicy"]
