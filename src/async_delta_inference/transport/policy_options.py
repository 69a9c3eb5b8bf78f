"""`PolicyOptions`: what a session asks of the policy beyond its name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from async_delta_inference.errors import InvalidMessageError
from async_delta_inference.transport.rtc_options import RtcOptions

__all__ = ["PolicyOptions"]

_MAX_ENTRIES = 64
_MAX_TEXT = 512
_NOISE = ("request", "stream")


@dataclass(frozen=True)
class PolicyOptions:
    """How a policy is to be loaded and asked; every part has the value that changes nothing.

    Args:
        seed: What random numbers begin with, those of a policy's construction included.
        noise: ``request`` seeds every inference by the seed, its episode and its step, so that it depends on nothing
            else; ``stream`` is lerobot-eval's one stream of random numbers for all inferences of the session.
        rename_map: The environment's name of an observation to the policy's, both as LeRobot writes them.
        overrides: Of the checkpoint's configuration, such as ``n_action_steps=10``.
        rtc: Real-time chunking.

    Raises:
        InvalidMessageError: One is not as described.
    """

    seed: int = 1000
    noise: str = "request"
    rename_map: Mapping[str, str] = field(default_factory=dict)
    overrides: tuple[str, ...] = ()
    rtc: RtcOptions = field(default_factory=RtcOptions)

    def __post_init__(self) -> None:
        object.__setattr__(self, "rename_map", MappingProxyType(dict(self.rename_map)))
        object.__setattr__(self, "overrides", tuple(self.overrides))
        if type(self.seed) is not int or not 0 <= self.seed < 2**63:
            raise InvalidMessageError(f"seed must be an integer in [0, 2**63), got {str(self.seed)[:40]}")
        if self.noise not in _NOISE:
            raise InvalidMessageError(f"noise must be {' or '.join(_NOISE)}, got {str(self.noise)[:40]!r}")
        for what, texts in (
            ("rename_map", [*self.rename_map, *self.rename_map.values()]),
            ("overrides", self.overrides),
        ):
            if len(texts) > 2 * _MAX_ENTRIES or not all(type(t) is str and len(t) <= _MAX_TEXT for t in texts):
                raise InvalidMessageError(f"{what} must be at most {_MAX_ENTRIES} texts of {_MAX_TEXT} characters")
        if wrong := [text for text in self.overrides if "=" not in text]:
            raise InvalidMessageError(f"overrides are written name=value, got {wrong[0]!r}")

    def __hash__(self) -> int:
        return hash((self.seed, self.noise, tuple(self.rename_map.items()), self.overrides, self.rtc))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.seed, self.noise, dict(self.rename_map), self.overrides, self.rtc)

    def to_message(self) -> list[Any]:
        """Plain lists, texts and numbers, which `from_message` reads."""
        renames = [list(pair) for pair in self.rename_map.items()]
        return [self.seed, self.noise, renames, list(self.overrides), self.rtc.to_message()]

    @classmethod
    def from_message(cls, message: object) -> PolicyOptions:
        """Read and check what a peer sent.

        Raises:
            InvalidMessageError: It is not what `to_message` gives.
        """
        if isinstance(message, (list, tuple)) and len(message) == 5:
            seed, noise, renames, overrides, rtc = message
            try:
                return cls(seed, noise, dict(renames), tuple(overrides), RtcOptions.from_message(rtc))
            except (TypeError, ValueError):
                pass
        raise InvalidMessageError(f"not a policy's options: {str(message)[:200]}")
