"""`is_finite` against numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from async_delta_inference.transport.finite import is_finite


@given(arrays(np.float32, array_shapes(min_dims=0, max_dims=3), elements=st.floats(width=32)))
def test_agrees_with_numpy(array: np.ndarray) -> None:
    assert is_finite(array.tobytes()) == bool(np.isfinite(array).all())


@given(st.integers(0, 2**32 - 1))
def test_every_bit_pattern_is_judged_rightly(bits: int) -> None:
    array = np.array([1.0, 0.0, 2.0], np.float32)
    array.view(np.uint32)[1] = bits
    assert is_finite(array.tobytes()) == bool(np.isfinite(array).all())


@pytest.mark.parametrize("value", [3.4028235e38, -3.4028235e38, 1.7014118e38, -1.7014118e38])
def test_large_numbers_are_finite(value: float) -> None:
    assert is_finite(np.full((4, 3), value, np.float32).tobytes())
