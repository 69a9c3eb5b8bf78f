"""Pinned memory, and slots that are given back when their copies have ended.

CUDA's driver and its events are mocks here, which write down what they are asked: this suite runs without a GPU.
`tests/gpu` has the real ones.
"""

from __future__ import annotations

import logging
import mmap
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from small_act import begin, observe, request, spec

from async_delta_inference.server_adapter.device import (
    ChunkFetch,
    DevicePreparation,
    FrameCopies,
    PinnedMemory,
    SideStream,
)
from async_delta_inference.server_adapter.lerobot import LeRobotPolicy, surroundings
from async_delta_inference.server_adapter.lerobot.session import LeRobotSession

CPU = torch.device("cpu")


class Driver:
    """Registers memory, or refuses."""

    def __init__(self, code: int = 0) -> None:
        self.code = code
        self.registered: dict[int, int] = {}

    def cudaHostRegister(self, address: int, size: int, flags: int) -> int:  # noqa: N802 - CUDA's name
        if not self.code:
            self.registered[address] = size
        return self.code

    def cudaHostUnregister(self, address: int) -> int:  # noqa: N802 - CUDA's name
        del self.registered[address]
        return 0


class Event:
    """Of a stream that a test lets go on."""

    made: ClassVar[list[Event]] = []

    def __init__(self, device: torch.device) -> None:
        assert device == CPU
        self.fired = False
        self.waited_for = 0
        Event.made.append(self)

    def query(self) -> bool:
        return self.fired

    def synchronize(self) -> None:
        self.waited_for += 1
        self.fired = True


@pytest.fixture(autouse=True)
def no_events_before() -> None:
    Event.made.clear()


def test_all_of_a_mapping_is_registered_until_it_is_given_back() -> None:
    driver, mapping = Driver(), mmap.mmap(-1, 3 * mmap.PAGESIZE)
    pinned = PinnedMemory.pin(memoryview(mapping), CPU, driver)
    assert pinned is not None
    address = np.frombuffer(mapping, np.uint8).ctypes.data
    assert driver.registered == {address: 3 * mmap.PAGESIZE}
    pinned.unpin()
    pinned.unpin()
    assert not driver.registered
    mapping.close()  # Nobody holds it any more.


@pytest.mark.parametrize("driver", [Driver(code=2), None], ids=["refuses", "absent"])
def test_memory_that_cannot_be_registered_costs_one_line(driver: Driver | None, caplog: Any) -> None:
    if driver is None and torch.cuda.is_available():
        pytest.skip("there is a driver here")
    with caplog.at_level(logging.WARNING):
        assert PinnedMemory.pin(memoryview(bytearray(64)), CPU, driver) is None
    assert len(caplog.records) == 1
    assert "pinned memory" in caplog.text


def test_slots_come_back_in_turn_once_their_copies_have_ended() -> None:
    given_back: list[str] = []
    copies = FrameCopies(CPU, Event)
    copies.began(lambda: given_back.append("first"))
    copies.began(lambda: given_back.append("second"))
    assert not copies.settle()
    Event.made[1].fired = True
    assert not copies.settle()
    assert given_back == []
    Event.made[0].fired = True
    assert copies.settle()
    assert given_back == ["first", "second"]
    copies.began(lambda: given_back.append("third"))
    copies.finish()
    assert given_back[2:] == ["third"]
    assert [event.waited_for for event in Event.made] == [0, 0, 1]


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Has a policy on the CPU served as one on a GPU, with a driver and events that are mocks."""
    driver = Driver()
    # Where the session itself looks: other tests load its module anew.
    names = LeRobotSession.share.__globals__
    pin = PinnedMemory.pin
    mocked = SimpleNamespace(pin=lambda memory, device: pin(memory, device, driver))
    monkeypatch.setitem(names, "PinnedMemory", mocked)
    monkeypatch.setitem(names, "FrameCopies", lambda device: FrameCopies(device, Event))
    monkeypatch.setattr(
        surroundings,
        "_preparation",
        lambda loaded, names, tables: DevicePreparation(names.cameras, names.vectors, tables),
    )
    return driver


def opened(policy: LeRobotPolicy, checkpoint: Path) -> Any:
    session = policy.open(spec(checkpoint))
    assert policy.loaded is not None
    policy.loaded.pins_memory = True
    session.share(memoryview(bytearray(4096)))
    begin(session)
    return session


def test_a_slot_is_given_back_when_its_frames_have_been_copied(driver: Driver, checkpoint: Path) -> None:
    """Not before, even where that is after the forward pass; and not while the copy of another try is under way."""
    policy = LeRobotPolicy()
    session = opened(policy, checkpoint)
    log: list[str] = []
    way = session._way

    def forward(batches: Any, rows: int) -> torch.Tensor:
        log.append("forward")
        Event.made[-1].fired = len(Event.made) == 1  # The first copy ends beside the forward pass, the second later.
        return way(batches, rows)

    forward.remembers = forward.draws = False  # type: ignore[attr-defined]
    session._way = forward
    postprocess = session.around.postprocess
    object.__setattr__(session.around, "postprocess", lambda chunk: (log.append("postprocess"), postprocess(chunk))[1])
    policy.infer([request(session, observe(0), lambda: log.append("release"))])
    assert log == ["forward", "release", "postprocess"]
    log.clear()
    policy.infer([request(session, observe(1), lambda: log.append("release"))])
    assert log == ["forward", "postprocess", "release"]
    assert Event.made[-1].waited_for == 1
    session.close()


def test_a_session_that_ends_waits_for_its_copies_before_the_memory_goes(driver: Driver, checkpoint: Path) -> None:
    policy = LeRobotPolicy()
    session = opened(policy, checkpoint)
    assert len(driver.registered) == 1
    log: list[str] = []
    with torch.inference_mode():
        session.inputs(observe(0), lambda: log.append(f"release, {len(driver.registered)} registered"))
    session.close()
    assert log == ["release, 1 registered"]
    assert not driver.registered


def test_a_policy_may_be_told_not_to_pin(driver: Driver, checkpoint: Path) -> None:
    policy = LeRobotPolicy(pinned=False)
    session = policy.open(spec(checkpoint))
    session.share(memoryview(bytearray(4096)))
    assert not driver.registered
    session.close()


def test_a_policy_on_the_cpu_pins_nothing(checkpoint: Path) -> None:
    policy = LeRobotPolicy()
    session = policy.open(spec(checkpoint))
    session.share(memoryview(bytearray(4096)))
    assert session._pinned is None
    session.close()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_fetched_chunk_keeps_its_values_when_the_next_is_fetched(dtype: torch.dtype) -> None:
    fetch = ChunkFetch()
    chunks = [torch.randn(2, 5, 3, dtype=dtype) for _ in range(3)]
    fetched = [fetch.begin(chunk) for chunk in chunks]
    for chunk, get in zip(chunks, fetched, strict=True):
        assert get().tobytes() == chunk.to(torch.float32).numpy().tobytes()
        assert get() is get()


def test_nothing_runs_beside_on_the_cpu() -> None:
    with SideStream(CPU) as beside:
        made = torch.ones(2)
    beside.join([made])
