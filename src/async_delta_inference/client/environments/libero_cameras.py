"""LIBERO's cameras behind a `FrameGate`, which is open while a frame is wanted.

Rendering is 95 % of a LIBERO step. The gate wraps the *sensors* of the camera observables, whose own timers keep
running, so that an image that is rendered is the one that would have been rendered anyway; disabling and enabling an
observable resets its timer and gives other images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from async_delta_inference.client.environments.frame_gate import FrameGate

__all__ = ["LiberoFrameGate", "Sensor", "any_skips_second_step", "gated_sensor", "samples_in_next_steps"]

Sensor = Callable[[dict[str, Any]], NDArray[np.uint8]]


class LiberoFrameGate(FrameGate):
    """Opens where a frame is wanted. Shared by an environment and its simulator, which may be built anew under it."""

    def __init__(self) -> None:
        super().__init__()
        self._wanted = False
        self._settling_steps = 0

    def expect_reset(self, wanted: bool, settling_steps: int) -> None:
        """A reset follows; of the steps in it that let the objects settle, only the last one's frames can be wanted."""
        self._wanted, self._settling_steps = wanted, settling_steps
        self.is_open = wanted and settling_steps == 0

    def expect_step(self, wanted: bool) -> None:
        """One step follows."""
        self._wanted, self._settling_steps, self.is_open = wanted, 0, False

    def begin_step(self, sampled_ahead: Callable[[], bool]) -> None:
        """The simulator begins a step.

        Args:
            sampled_ahead: Tells whether the cameras will not be sampled in the step after this one: then the images of
                this step are the ones seen after the next too, and are rendered in case those are wanted.
        """
        settling, self._settling_steps = self._settling_steps > 1, max(0, self._settling_steps - 1)
        self.is_open = (self._wanted and not settling) or sampled_ahead()


def gated_sensor(gate: FrameGate, camera: str, sensor: Sensor, shape: tuple[int, int, int]) -> Sensor:
    """A robosuite camera's sensor behind a gate.

    Args:
        gate: Shared by the cameras of a simulator.
        camera: Name of the observable.
        sensor: What renders.
        shape: Height, width and channels of its image.
    """

    def gated(obs_cache: dict[str, Any]) -> NDArray[np.uint8]:
        return gate.look(camera, shape, lambda: sensor(obs_cache))

    gated.__modality__ = sensor.__modality__  # type: ignore[attr-defined]
    return gated


def samples_in_next_steps(observable: Any, timestep_s: float, substeps: int, steps: int) -> list[bool]:
    """Whether a robosuite observable will be sampled in each of the next control steps: its timer, run ahead.

    The same float operations in the same order as ``Observable.update``, since a rounding decides at which substep a
    period ends. Where the control period is no multiple of the timestep (30 fps), a step now and then has no sample.
    """
    elapsed_s, sampled = observable._time_since_last_sample, observable._sampled
    period_s, delay_s = observable._sampling_timestep, observable._current_delay
    result = []
    for _ in range(steps):
        any_sample = False
        for _ in range(substeps):
            elapsed_s += timestep_s
            if not sampled and period_s - delay_s >= elapsed_s:
                any_sample = sampled = True
            if elapsed_s >= period_s:
                any_sample = any_sample or not sampled
                elapsed_s %= period_s
                sampled = False
        result.append(any_sample)
    return result


def any_skips_second_step(observables: Iterable[Any], timestep_s: float, substeps: int) -> bool:
    """Whether one of them will not be sampled in the step after the next."""
    return any(not samples_in_next_steps(o, timestep_s, substeps, 2)[1] for o in observables)
