"""The robot's own actions on their way: whatever fits arrives as it was, whatever does not is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from async_delta_inference.errors import InvalidMessageError, ProtocolError
from async_delta_inference.transport import ActionPrefix, PrefixLimits
from async_delta_inference.transport.grpc import native
from async_delta_inference.transport.grpc.observations import Assembly, Packed
from async_delta_inference.transport.shm.shared.layout import PREFIX_COUNTS, SegmentLayout
from async_delta_inference.transport.shm.shared.prefix_slot import PrefixSlot
from async_delta_inference.transport.testing import CONTRACT_POLICY, contract_observation

FEATURES = CONTRACT_POLICY.features
ROWS = st.integers(0, 12)


@st.composite
def agreed_prefixes(draw: Any) -> tuple[PrefixLimits, ActionPrefix]:
    """What a policy wants to be told of at the most, and something that it may be told."""
    limits, width = PrefixLimits(draw(ROWS), draw(ROWS)), draw(st.integers(1, 9))
    executed, committed = draw(st.integers(0, limits.executed)), draw(st.integers(0, limits.committed))
    rows = np.random.default_rng(draw(st.integers(0, 2**32))).normal(size=(executed + committed, width))
    return limits, ActionPrefix.of_rows(rows.astype(np.float32), executed)


def assert_same(found: ActionPrefix | None, sent: ActionPrefix) -> None:
    assert found is not None
    np.testing.assert_array_equal(found.executed, sent.executed)
    np.testing.assert_array_equal(found.committed, sent.committed)
    assert not found.executed.flags.writeable
    assert not found.committed.flags.writeable


@given(agreed_prefixes())
def test_slot_of_shared_memory_gives_back_what_was_put_into_it(agreed: tuple[PrefixLimits, ActionPrefix]) -> None:
    limits, prefix = agreed
    width = prefix.executed.shape[1]
    layout = SegmentLayout(FEATURES, (5, width), prefix=limits)
    # Exactly the bytes that the layout has for it: a write beyond them would raise.
    memory = memoryview(bytearray(layout.task_offset - layout.prefix_offset))
    if not limits:
        assert len(memory) == 0
        return
    slot = PrefixSlot(memory, limits, width)
    slot.write(ActionPrefix.of_rows(np.full((limits.rows, width), 7, np.float32), limits.executed))
    slot.write(prefix)
    assert_same(PrefixSlot(memory, limits, width).read(), prefix)


@given(agreed_prefixes(), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_counts_beyond_what_was_agreed_are_refused_before_memory_is_touched(
    agreed: tuple[PrefixLimits, ActionPrefix], executed: int, committed: int
) -> None:
    limits, prefix = agreed
    width = prefix.executed.shape[1]
    memory = memoryview(bytearray(PREFIX_COUNTS.size + limits.bytes(width)))
    PREFIX_COUNTS.pack_into(memory, 0, executed, committed)
    slot = PrefixSlot(memory, limits, width)
    if executed <= limits.executed and committed <= limits.committed:
        assert (len(slot.read().executed), len(slot.read().committed)) == (executed, committed)
    else:
        with pytest.raises(ProtocolError, match="agreed were"):
            slot.read()


@given(agreed_prefixes(), st.sampled_from(["raw", "png"]))
def test_message_of_our_own_protocol_gives_back_what_was_put_into_it(
    agreed: tuple[PrefixLimits, ActionPrefix], encoding: str
) -> None:
    limits, prefix = agreed
    observation = contract_observation(3)
    observation.prefix = prefix if limits else None
    (data,) = Packed.of(observation, FEATURES, encoding, 1, True).messages
    assembly = Assembly(FEATURES, 1, encoding, limits, prefix.executed.shape[1])
    whole = assembly.add_whole(data) or assembly.add(native.decode_client(data))
    assert whole is not None
    if limits:
        assert_same(whole.observation.prefix, prefix)
    else:
        assert whole.observation.prefix is None


@pytest.mark.parametrize(
    ("executed", "size"), [(3, 5 * 12), (0, 4 * 12), (2, 6 * 12), (1, 0), (0, 13), (2**32 - 1, 5 * 12)]
)
def test_message_with_more_than_was_agreed_is_refused(executed: int, size: int) -> None:
    fields = native.new_observation()
    fields.executed_rows, fields.prefix = executed, bytes(size)
    size = native.step_bytes(FEATURES)
    fields.array_bytes = size
    data = native.join_observation(fields, [bytes(size)], size)
    with pytest.raises(ProtocolError, match="agreed were"):
        Assembly(FEATURES, 1, "raw", PrefixLimits(2, 3), 3).add_whole(data)


@pytest.mark.parametrize("rows", [-1, 1025, True, 1.0])
def test_limits_are_bounded(rows: Any) -> None:
    with pytest.raises(InvalidMessageError):
        PrefixLimits(executed=rows)
    with pytest.raises(InvalidMessageError):
        PrefixLimits(committed=rows)
