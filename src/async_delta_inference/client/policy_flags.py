"""`PolicyFlags`: which policy is evaluated, and how it is loaded and asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from async_delta_inference.checkpoint_config import read_checkpoint_config
from async_delta_inference.errors import ConfigError, InvalidMessageError
from async_delta_inference.transport import PolicyOptions, RtcOptions

__all__ = ["PolicyFlags"]


@dataclass(kw_only=True)
class PolicyFlags:
    """The flags of `SimClientConfig` that are about the policy."""

    actions_per_chunk: int | None = None
    """Number of actions the server sends per chunk, at most; none: as many as lerobot-eval executes of a chunk."""
    policy_type: str = ""
    """LeRobot policy type, such as act; empty: as the checkpoint says, or whatever a server serves."""
    pretrained_name_or_path: str = ""
    """Checkpoint folder, or hub name; LeRobot's --policy.path is the same. Empty: what a server that is there already
    was given, by serve() say."""
    policy_device: str = "cpu"
    """Torch device of the policy on the server; LeRobot's --policy.device is the same."""
    policy_host: str = "lerobot"
    """What a server of its own asks: lerobot (as lerobot-eval does, any type), or policy_server (LeRobot's
    PolicyServer as it is)."""
    policy_overrides: list[str] = field(default_factory=list)
    """Of the checkpoint's configuration, as '["num_inference_steps=10"]'; LeRobot's --policy.NAME=VALUE is the same."""
    rename_map: dict[str, str] = field(default_factory=dict)
    """As lerobot-eval's: what the environment calls an observation, and what the policy calls it."""
    check: bool = False
    """Only compare environment and checkpoint, in one table with what is wrong and which flag mends it; run nothing."""
    noise: str = "request"
    """request: every inference is seeded by seed, episode and step; stream: one stream of random numbers as
    lerobot-eval has it."""
    rtc: RtcOptions = field(default_factory=RtcOptions)
    """Real-time chunking, by LeRobot's own names."""

    @property
    def policy_in_short(self) -> str:
        """The policy's type, as the user or the checkpoint's file says; empty where neither does."""
        if self.policy_type or not self.pretrained_name_or_path:
            return self.policy_type
        try:
            file = Path(self.pretrained_name_or_path).expanduser() / "config.json"
            return read_checkpoint_config(file).policy_type
        except (ConfigError, RuntimeError):  # One for the hub, or one that will be refused with its reason.
            return ""

    def check_policy(self) -> None:
        """Validate.

        Raises:
            ConfigError: One line that names the flag and the remedy.
        """
        if self.policy_type and not self.pretrained_name_or_path:
            raise ConfigError("--policy_type needs --pretrained_name_or_path: which checkpoint of that type?")
        if self.actions_per_chunk is not None and self.actions_per_chunk < 1:
            raise ConfigError(f"--actions_per_chunk must be at least 1, got {self.actions_per_chunk}")
        if self.policy_host not in ("lerobot", "policy_server"):
            raise ConfigError(f"unknown --policy_host={self.policy_host}; known are: lerobot, policy_server")
        self.policy_options(0)

    def policy_options(self, seed: int) -> PolicyOptions:
        """What is asked of the policy beyond its name.

        Raises:
            ConfigError: A value cannot be.
        """
        try:
            return PolicyOptions(seed, self.noise, self.rename_map, tuple(self.policy_overrides), self.rtc)
        except InvalidMessageError as exc:
            raise ConfigError(f"--{exc}") from exc
