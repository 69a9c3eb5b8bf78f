"""`LeRobotPolicy`: any policy that LeRobot knows, asked as lerobot-eval asks it, for many sessions.

It imports torch and lerobot, half a minute on a slow machine: whoever must be quick imports it late. Of LeRobot it uses
the public interfaces: policy classes by type, processors, configurations.
"""

from async_delta_inference.server_adapter.lerobot.policy import LeRobotPolicy

__all__ = ["LeRobotPolicy"]
