"""`FrameGate`: cameras render only when somebody will look, since rendering is most of the cost of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["FrameGate"]


class FrameGate:
    """Stands before a simulator's cameras: open, it lets them render; closed, it repeats their last images.

    Attributes:
        is_open: Whether the next look through a camera renders; at first it does not.
    """

    def __init__(self) -> None:
        self.is_open = False
        self._last: dict[str, NDArray[np.uint8]] = {}
        self._stale: set[str] = set()

    @classmethod
    def behind(cls, method: Any) -> Self | None:
        """The gate whose method a simulator calls in place of its own, or None where it still calls its own."""
        gate = getattr(method, "__self__", None)
        return gate if isinstance(gate, cls) else None

    @property
    def fresh(self) -> bool:
        """Whether the last look through every camera rendered."""
        return bool(self._last) and not self._stale

    def look(
        self, camera: str, shape: tuple[int, int, int], render: Callable[[], NDArray[np.uint8]]
    ) -> NDArray[np.uint8]:
        """Look through a camera.

        Args:
            camera: Its name; each has a last image of its own.
            shape: Height, width and channels that are asked for.
            render: Renders the image.

        Returns:
            uint8 (H, W, C): the image; of a closed gate the last one, or black where there is none of that shape.
        """
        if self.is_open:
            self._last[camera] = image = render()
            self._stale.discard(camera)
            return image
        self._stale.add(camera)
        last = self._last.get(camera)
        return np.zeros(shape, np.uint8) if last is None or last.shape != shape else last
