"""LeRobot's processors with less around them: what they do to a state and to a chunk, called directly.

A pipeline packs its input into a transition, copies that for every step, and unpacks it: 0.06 ms beside a forward
pass, for arithmetic on a few floats. Where its steps are LeRobot's plain ones, only the normaliser has anything to do.
Whether that gives the bits of the pipeline is looked at before it is relied on; else the pipeline is called.

For a policy on another device a state is normalised on the CPU and then sent, a few floats; a chunk is unnormalised
where it is and then fetched, once for all sessions of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from async_delta_inference.server_adapter.device.chunk_fetch import ChunkFetch, Fetched

__all__ = ["Postprocessor", "Preprocessor", "as_chunk"]

ELEMENTWISE_STEPS = frozenset({"UnnormalizerProcessorStep", "DeviceProcessorStep", "RenameObservationsProcessorStep"})
"""Steps of a postprocessor without state, which treat every element of an action alike wherever it stands."""

_PLAIN_STEPS = frozenset(
    {
        "AddBatchDimensionProcessorStep",
        "DeviceProcessorStep",
        "NormalizerProcessorStep",
        "RenameObservationsProcessorStep",
        "UnnormalizerProcessorStep",
    }
)
"""Steps that leave alone what is a batch, on the CPU, under its right name, and no state or action."""

_ACTION = "action"
_STATE = "observation.state"
_TASK = "task"

Transform = Callable[[torch.Tensor], torch.Tensor]


class Preprocessor:
    """Makes the policy's input of a state, a task, and images that are normalised already or not.

    Args:
        pipeline: LeRobot's.
        example: What the pipeline may be given: the state and every image, float32 tensors by key, and the task.
    """

    def __init__(self, pipeline: Callable[[dict[str, Any]], dict[str, Any]], example: Mapping[str, Any]) -> None:
        self._pipeline = pipeline
        self._normalize: Transform | None = None
        self._rest: dict[str, Any] = {}
        self._device = _device_of(pipeline)
        step = _only_normalizer(pipeline, "_normalize_observation")
        if step is None:
            return
        expected = pipeline(dict(example))
        self._rest = {key: value for key, value in expected.items() if not key.startswith("observation.")}
        self._normalize = _transform(step, _STATE, inverse=False, only_usual=self._device is not None)
        if self._normalize is None:
            return
        images = {key: value for key, value in expected.items() if key.startswith("observation.") and key != _STATE}
        rest = {key: example[key] for key in (_STATE, _TASK) if key in example}
        if not _same(self(rest, images), expected):
            self._normalize = None

    def __call__(self, batch: dict[str, Any], finished: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        """The policy's input.

        Args:
            batch: state (1, S), task in a list, and images (1, C, H, W) in [0, 1], float32, by LeRobot key.
            finished: Images that are as the pipeline would make them, by the same keys.
        """
        if self._normalize is None or len(batch) != 2 or _STATE not in batch:  # An image is among them, say.
            return {**self._pipeline(batch), **finished}
        state = self._normalize(batch[_STATE])
        if self._device is not None:
            state = state.to(self._device, non_blocking=True)
        rest = {key: dict(value) if isinstance(value, dict) else value for key, value in self._rest.items()}
        return {**rest, _TASK: batch[_TASK], _STATE: state, **finished}


class Postprocessor:
    """Applies a policy's postprocessor to whole chunks where that gives the same bits as row by row.

    Args:
        pipeline: LeRobot's.
    """

    def __init__(self, pipeline: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self._pipeline = pipeline
        steps = {type(step).__name__ for step in getattr(pipeline, "steps", [None])}
        self._whole = steps <= ELEMENTWISE_STEPS
        self._proven = False
        step = _only_normalizer(pipeline, "_normalize_action")
        self._normalizer = step
        self._transform: Transform = pipeline if step is None else _transform(step, _ACTION, inverse=True) or pipeline
        self._transform_elsewhere: Transform | None = None
        self._fetch = ChunkFetch()

    def __call__(self, chunk: torch.Tensor) -> NDArray[np.float32]:
        """(1, n, A) to float32 (n, A)."""
        if not self._whole:
            return as_chunk(self._row_by_row(chunk))
        whole = self._transformed(chunk)
        if not self._proven:
            # Once per policy: what the step types promise is looked at, too.
            rows = self._row_by_row(chunk)
            self._whole = self._proven = whole.dtype == rows.dtype and torch.equal(whole.to(rows.device), rows)
            return as_chunk(rows)
        return as_chunk(whole) if whole.is_cpu else self._fetch.begin(whole)()[0]

    def begin(self, chunks: torch.Tensor) -> Fetched:
        """Of several sessions at once, and without waiting for the device.

        Args:
            chunks: (B, n, A); so are the actions that are fetched.
        """
        if not (self._whole and self._proven):
            values = np.stack([self(chunks[row : row + 1]) for row in range(len(chunks))])
            return Fetched(torch.from_numpy(values))
        return self._fetch.begin(self._transformed(chunks))

    def _transformed(self, chunk: torch.Tensor) -> torch.Tensor:
        if chunk.is_cpu:
            return self._transform(chunk)
        if self._transform_elsewhere is None:
            self._transform_elsewhere = self._made_for(chunk)
        return self._transform_elsewhere(chunk)

    def _made_for(self, chunk: torch.Tensor) -> Transform:
        """For chunks on another device, of one type."""
        step = self._normalizer
        if step is None:
            return self._pipeline
        # The normaliser itself may make numbers on the host for each chunk, and wait until they are there; but its
        # statistics follow the type of the actions.
        if chunk.dtype is not torch.float32:
            return _by_method(step, "_normalize_action")
        return _transform(step, _ACTION, inverse=True, device=chunk.device) or self._pipeline

    def _row_by_row(self, chunk: torch.Tensor) -> torch.Tensor:
        return torch.stack([self._pipeline(chunk[:, row, :]) for row in range(chunk.shape[1])], dim=1)


def as_chunk(actions: torch.Tensor) -> NDArray[np.float32]:
    """(1, n, A) of any floating type, on any device, as a float32 array (n, A)."""
    if actions.dtype is not torch.float32 or actions.requires_grad or not actions.is_cpu:
        actions = actions.detach().cpu().to(torch.float32)
    return np.ascontiguousarray(actions.numpy()[0])  # Three of torch's calls less: each is slow when it is cold.


def _device_of(pipeline: Any) -> torch.device | None:
    """Where a pipeline leaves its tensors; None: on the CPU, or as it says nowhere."""
    for step in getattr(pipeline, "steps", ()):
        device = getattr(step, "tensor_device", None)
        if device is not None and device.type != "cpu":
            return torch.device(device)
    return None


def _only_normalizer(pipeline: Any, method: str) -> Any:
    """The one step of the pipeline that does anything but move tensors, or None where there may be others."""
    steps = list(getattr(pipeline, "steps", ()))
    if not {type(step).__name__ for step in steps} <= _PLAIN_STEPS:
        return None
    if getattr(pipeline, "before_step_hooks", ()) or getattr(pipeline, "after_step_hooks", ()):
        return None
    if any(getattr(step, "float_dtype", None) or getattr(step, "rename_map", None) for step in steps):
        return None
    normalizers = [step for step in steps if "ormalizer" in type(step).__name__]
    return normalizers[0] if len(normalizers) == 1 and hasattr(normalizers[0], method) else None


def _transform(
    normalizer: Any, key: str, *, inverse: bool, device: torch.device | str = "cpu", only_usual: bool = False
) -> Transform | None:
    """What a normaliser makes of the state or of actions: the same two operations, its statistics looked up once.

    Whoever uses it compares the bits first. Any other way than the two usual ones is left to the normaliser itself.

    Args:
        normalizer: LeRobot's step.
        key: Of the state or the actions.
        inverse: Whether to take the normalisation back.
        device: Where what is given lies.
        only_usual: None for any other way: given a tensor of the CPU, a normaliser whose statistics are elsewhere would
            move them.
    """
    feature = normalizer.features.get(key)
    mode = getattr(normalizer.norm_map.get(getattr(feature, "type", None)), "value", None)
    chosen, known = normalizer.normalize_observation_keys, normalizer.state_dict()
    mean, deviation, lowest, highest = (
        None if (known_as := known.get(f"{key}.{name}")) is None else known_as.to(device)
        for name in ("mean", "std", "min", "max")
    )
    is_chosen = inverse or chosen is None or key in chosen
    if is_chosen and mode == "MEAN_STD" and mean is not None and deviation is not None:
        if inverse:
            return lambda chunk: chunk * deviation + mean
        divisor = deviation + normalizer.eps
        return lambda state: (state - mean) / divisor
    if is_chosen and mode == "MIN_MAX" and lowest is not None and highest is not None:
        span = highest - lowest
        span = torch.where(span == 0, torch.tensor(normalizer.eps, dtype=span.dtype, device=span.device), span)
        if inverse:
            return lambda chunk: (chunk + 1) / 2 * span + lowest
        return lambda state: 2 * (state - lowest) / span - 1
    if only_usual:
        return None
    if inverse:
        return _by_method(normalizer, "_normalize_action")
    return lambda state: normalizer._normalize_observation({key: state}, False)[key]


def _by_method(normalizer: Any, method: str) -> Transform:
    """By the normaliser itself, whose statistics follow the actions to their device and type."""
    transform = getattr(normalizer, method)
    return lambda chunk: transform(chunk, True)


def _same(found: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    if set(found) != set(expected):
        return False
    for key, value in expected.items():
        other = found[key]
        if not isinstance(value, torch.Tensor):
            if other != value:
                return False
        elif not isinstance(other, torch.Tensor) or other.dtype != value.dtype or not torch.equal(other, value):
            return False
    return True
