"""Where every byte of a session's segment is. Pure arithmetic: both sides compute it from the same schema.

::

    0                     segment header: magic, version, sizes
    120                   advice: 1 while the server asks the client to ring its bell, else 0
    128                   observation records, one cache line each: timestep, episode, ..., and the slot's number
    ...                   action records, one cache line each
    page boundary         observation slots, each on a page boundary: state, images, the same of each step before, the
                          robot's own actions where the policy wants to be told of them, task
    page boundary         action slots, each on a cache line: float32 rows, or the UTF-8 text of an error

The layout is written out byte by byte in ``docs/design/shm.md``.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from async_delta_inference.errors import InvalidMessageError
from async_delta_inference.transport.action_prefix import NO_PREFIX, PrefixLimits
from async_delta_inference.transport.messages import MAX_TASK_BYTES, ObservationFeatures, SessionSpec

__all__ = [
    "ACTION_RECORD",
    "ADVICE_OFFSET",
    "ERROR_KIND",
    "CHUNK_KIND",
    "FILTERED_KIND",
    "MUST_GO_FLAG",
    "OBSERVATION_RECORD",
    "PREFIX_COUNTS",
    "RECORD_STRIDE",
    "SEGMENT_HEADER",
    "SegmentLayout",
    "SizeLimits",
]

MAGIC = b"ADI-shm\n"
LAYOUT_VERSION = 3

SEGMENT_HEADER = struct.Struct("@8sIIQIIQQQQ")
"""magic, version, header size, segment size, observation slots, action slots, size of an observation slot, size of an
action slot, offset of the observation slots, offset of the action slots."""

ADVICE_OFFSET = 120
"""One byte, the server's: 1 asks the client to ring the bell after it published; 0 says that the server waits for this
session alone. It is advice and no more: it hands nothing over, and a ring missed because of it costs a moment."""

OBSERVATION_RECORD = struct.Struct("@QQQdIIII")
"""sequence (from 1), timestep, episode, timestamp_s, slot, number of the task, bytes of the task, flags."""

ACTION_RECORD = struct.Struct("@QQdQIII")
"""sequence (from 1), timestep, timestamp_s, published_ns (monotonic), kind, rows, bytes of text."""

PREFIX_COUNTS = struct.Struct("@II")
"""Before the robot's own actions in a slot: how many of them are executed, and how many are to come; float32 rows."""

MUST_GO_FLAG = 1
DELAY_SHIFT = 1
"""An observation's flags from this bit on: its inference delay in steps and one, or 0 where it is not known."""

CHUNK_KIND = 1
"""``rows`` rows of actions."""
ERROR_KIND = 2
"""The policy raised: a text."""
FILTERED_KIND = 3
"""The server chose not to answer this observation."""

RECORD_STRIDE = 64
"""A cache line: two records never share one, so that the two sides never fight over it."""

MAX_ERROR_BYTES = 2048
_PAGE_BYTES = 4096


@dataclass(frozen=True)
class SizeLimits:
    """What a server is willing to reserve; everything a peer asks for is compared with these first.

    Args:
        max_segment_bytes: Size of one session's segment.
        max_cameras: Images of an observation.
        max_image_side: Height or width.
        max_channels: Of an image.
        max_state_dim: Elements of the state.
        max_actions: Rows of a chunk.
        max_action_dim: Length of an action.
        max_obs_steps: Successive observations that a policy may look at.
    """

    max_segment_bytes: int = 2 << 30
    max_cameras: int = 32
    max_image_side: int = 16384
    max_channels: int = 16
    max_state_dim: int = 4096
    max_actions: int = 10_000
    max_action_dim: int = 4096
    max_obs_steps: int = 64

    def check(self, spec: SessionSpec) -> None:
        """Refuse what is larger.

        Raises:
            InvalidMessageError: Naming the size and the limit.
        """
        images = spec.features.images.values()
        for what, size, limit in (
            ("cameras", len(images), self.max_cameras),
            ("image side", max((max(h, w) for h, w, _ in images), default=0), self.max_image_side),
            ("image channels", max((c for _, _, c in images), default=0), self.max_channels),
            ("state elements", spec.features.state_dim, self.max_state_dim),
            ("actions per chunk", spec.actions_per_chunk, self.max_actions),
            ("action elements", spec.action_dim, self.max_action_dim),
        ):
            if size > limit:
                raise InvalidMessageError(f"{what}: {size} is more than the limit of {limit}")


@dataclass(frozen=True)
class SegmentLayout:
    """Offsets and sizes, in bytes from the start of the segment.

    Args:
        features: Schema of an observation.
        chunk_shape: Rows and columns of the largest chunk.
        observation_slots: At least 4: one being read, one unread, one loaned, one being written.
        action_slots: Chunks that may wait for the client; even.
        n_obs_steps: Successive observations in a slot: the newest first, then those before it, the oldest first.
        prefix: Most of the robot's own actions in a slot.
    """

    features: ObservationFeatures
    chunk_shape: tuple[int, int]
    observation_slots: int = 4
    action_slots: int = 32
    n_obs_steps: int = 1
    prefix: PrefixLimits = NO_PREFIX

    image_offsets: dict[str, int] = field(init=False, compare=False)
    step_bytes: int = field(init=False)
    prefix_offset: int = field(init=False)
    task_offset: int = field(init=False)
    observation_slot_bytes: int = field(init=False)
    action_slot_bytes: int = field(init=False)
    observation_records_offset: int = field(init=False)
    action_records_offset: int = field(init=False)
    observation_slots_offset: int = field(init=False)
    action_slots_offset: int = field(init=False)
    segment_bytes: int = field(init=False)

    def __post_init__(self) -> None:
        if not 4 <= self.observation_slots <= 64 or not 2 <= self.action_slots <= 4096 or self.action_slots % 2:
            raise InvalidMessageError(
                f"a segment has 4 to 64 observation slots and an even number of 2 to 4096 action slots, "
                f"not {self.observation_slots} and {self.action_slots}"
            )
        if not 1 <= self.n_obs_steps <= SizeLimits.max_obs_steps:
            raise InvalidMessageError(
                f"a slot holds 1 to {SizeLimits.max_obs_steps} successive observations, not {self.n_obs_steps}"
            )
        end = _align(self.features.state_dim * 4, RECORD_STRIDE)
        image_offsets = {}
        for name, (height, width, channels) in self.features.image_shapes:
            image_offsets[name] = end
            end = _align(end + height * width * channels, RECORD_STRIDE)
        rows, columns = self.chunk_shape
        values: dict[str, object] = {"image_offsets": image_offsets, "step_bytes": end}
        values["prefix_offset"] = end = end * self.n_obs_steps
        if self.prefix:
            end = _align(end + PREFIX_COUNTS.size + self.prefix.bytes(columns), RECORD_STRIDE)
        values["task_offset"] = end
        values["observation_slot_bytes"] = observation_bytes = _align(end + MAX_TASK_BYTES, _PAGE_BYTES)
        values["action_slot_bytes"] = action_bytes = _align(max(rows * columns * 4, MAX_ERROR_BYTES), RECORD_STRIDE)
        offset = RECORD_STRIDE * 2
        values["observation_records_offset"] = offset
        offset += self.observation_slots * RECORD_STRIDE
        values["action_records_offset"] = offset
        offset = _align(offset + self.action_slots * RECORD_STRIDE, _PAGE_BYTES)
        values["observation_slots_offset"] = offset
        offset += self.observation_slots * observation_bytes
        values["action_slots_offset"] = offset
        values["segment_bytes"] = _align(offset + self.action_slots * action_bytes, _PAGE_BYTES)
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @classmethod
    def of_session(
        cls,
        spec: SessionSpec,
        observation_slots: int = 4,
        action_slots: int = 32,
        n_obs_steps: int = 1,
        prefix: PrefixLimits | None = None,
    ) -> SegmentLayout:
        """The layout of a session with this specification."""
        chunk_shape = (spec.actions_per_chunk, spec.action_dim)
        return cls(spec.features, chunk_shape, observation_slots, action_slots, n_obs_steps, prefix or NO_PREFIX)

    def header(self) -> bytes:
        """The segment header, which says in the segment itself what the handshake agreed on."""
        return SEGMENT_HEADER.pack(
            MAGIC,
            LAYOUT_VERSION,
            SEGMENT_HEADER.size,
            self.segment_bytes,
            self.observation_slots,
            self.action_slots,
            self.observation_slot_bytes,
            self.action_slot_bytes,
            self.observation_slots_offset,
            self.action_slots_offset,
        )

    def observation_slot_offset(self, slot: int) -> int:
        """Where observation slot ``slot`` begins."""
        return self.observation_slots_offset + slot * self.observation_slot_bytes

    def action_slot_offset(self, slot: int) -> int:
        """Where action slot ``slot`` begins."""
        return self.action_slots_offset + slot * self.action_slot_bytes


def _align(size: int, to: int) -> int:
    return -(-size // to) * to
