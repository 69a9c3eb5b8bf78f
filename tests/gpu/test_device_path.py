"""What a GPU is given, and what comes back from it, are LeRobot's own bits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np
import pytest
import torch
from crowd import answers_at_once
from pusht_policies import build_for_pusht, skip_without_package
from pusht_policies import observe as observe_pusht
from pusht_policies import spec as pusht_spec
from small_act import begin, observe, request, spec

from async_delta_inference.server_adapter.device import ChunkFetch, DevicePreparation, FrameCopies, PinnedMemory
from async_delta_inference.server_adapter.lerobot import LeRobotPolicy
from async_delta_inference.transport import Observation, Server, SessionSpec, Transport, open_transport
from async_delta_inference.transport.server import make_server

ANSWER_TIMEOUT_S = 60.0


@contextmanager
def served(policy: LeRobotPolicy, **options: Any) -> Iterator[str]:
    server: Server = make_server(policy, f"shm://gpu-{token_hex(4)}", **options)
    server.start()
    try:
        (uri,) = server.uris
        yield uri
    finally:
        server.stop()


def connected(stack: ExitStack, uri: str, wanted: SessionSpec) -> Transport:
    transport = stack.enter_context(open_transport(uri))
    transport.connect(wanted)
    return transport


def answer(transport: Transport, observation: Observation) -> np.ndarray:
    transport.send_observation(observation)
    chunk = transport.receive_actions(ANSWER_TIMEOUT_S)
    assert chunk is not None
    return chunk.actions.copy()


def by_lerobot(policy: LeRobotPolicy, session: Any, observation: Observation) -> dict[str, Any]:
    """What LeRobot's own pipeline makes of an observation, on the policy's device."""
    names, pipeline = session.around.names, session.around.processors[0]
    images = {
        names.cameras[name]: torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))[None] / np.float32(255))
        for name, image in observation.images.items()
    }
    state = {key: torch.from_numpy(observation.state[None, part].copy()) for key, part in names.vectors.items()}
    batch: dict[str, Any] = pipeline({**images, **state, "task": [observation.task]})
    return batch


@torch.inference_mode()
def test_input_and_actions_have_the_bits_of_lerobots_processors(checkpoint: Path, device: torch.device) -> None:
    policy = LeRobotPolicy()
    session = policy.open(spec(checkpoint, device=str(device)))
    if device.type == "cuda":
        assert isinstance(session.around.prepare, DevicePreparation)
    assert session.around.preprocess._normalize is not None
    for timestep in range(3):
        observation = observe(timestep)
        batch, finished = session.around.prepare(observation, observation.task)
        found = session.around.preprocess(batch, finished)
        expected = by_lerobot(policy, session, observation)
        assert set(found) == set(expected)
        for key, value in expected.items():
            if isinstance(value, torch.Tensor):
                assert found[key].device.type == value.device.type == device.type
                assert found[key].stride() == value.stride()
                assert torch.equal(found[key].view(torch.uint8), value.view(torch.uint8)), key
        assert policy.loaded is not None
        chunk = policy.loaded.policy.predict_action_chunk(expected)
        rows = torch.stack([session.around.processors[1](chunk[:, i]) for i in range(chunk.shape[1])], dim=1)
        assert session.around.postprocess(chunk).tobytes() == rows[0].cpu().numpy().tobytes()
        assert session.around.postprocess.begin(chunk)()[0].tobytes() == rows[0].cpu().numpy().tobytes()
    session.close()


def test_pinned_and_pageable_copies_give_the_same_answers(checkpoint: Path, device: torch.device) -> None:
    answers = []
    for pinned in (True, False):
        policy = LeRobotPolicy(pinned=pinned)
        with served(policy) as uri, ExitStack() as stack:
            transport = connected(stack, uri, spec(checkpoint, device=str(device)))
            answers.append([answer(transport, observe(timestep, must_go=True)) for timestep in range(4)])
            (session,) = policy._sessions
            assert (session._pinned is not None) == (pinned and device.type == "cuda")
    # The inputs have equal bits; but each server's thread chooses the algorithms of its convolutions anew.
    for one, other in zip(*answers, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-2)


def test_a_slot_is_pinned_memory_for_torch(checkpoint: Path, cuda: torch.device) -> None:
    seen: list[bool] = []
    policy = LeRobotPolicy()
    launch = policy.launch

    def look(requests: Any) -> Any:
        seen.extend(torch.from_numpy(image).is_pinned() for image in requests[0].observation.images.values())
        return launch(requests)

    policy.launch = look  # type: ignore[method-assign]
    with served(policy) as uri, ExitStack() as stack:
        answer(connected(stack, uri, spec(checkpoint, device=str(cuda))), observe(0, must_go=True))
    assert seen == [True, True]


def test_the_same_memory_registered_twice_costs_one_line_and_no_later_kernel(cuda: torch.device) -> None:
    import mmap

    mapping = mmap.mmap(-1, 4 * mmap.PAGESIZE)
    first = PinnedMemory.pin(memoryview(mapping), cuda)
    assert first is not None
    assert PinnedMemory.pin(memoryview(mapping), cuda) is None
    assert float(torch.ones(3, device=cuda).sum()) == 3.0
    first.unpin()
    again = PinnedMemory.pin(memoryview(mapping), cuda)
    assert again is not None
    again.unpin()
    mapping.close()


def test_a_slot_comes_back_when_its_copy_has_ended_and_not_before(cuda: torch.device) -> None:
    given_back: list[int] = []
    copies = FrameCopies(cuda)
    torch.cuda._sleep(2_000_000_000)  # About a second of the device's clock.
    copies.began(lambda: given_back.append(1))
    assert not copies.settle()
    assert given_back == []
    copies.finish()
    assert given_back == [1]


def test_chunks_that_are_fetched_one_after_the_other_keep_their_values(device: torch.device) -> None:
    fetch = ChunkFetch()
    chunks = [torch.randn(4, 50, 7, device=device) for _ in range(3)]
    fetched = [fetch.begin(chunk) for chunk in chunks]
    assert [get().tobytes() for get in fetched] == [chunk.cpu().numpy().tobytes() for chunk in chunks]


def test_chunks_are_fetched_in_inference_mode_and_outside_of_it(device: torch.device) -> None:
    """As of a session with real-time chunking beside one without."""
    fetch = ChunkFetch()
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode):
        with mode():
            chunk = torch.randn(1, 50, 7, device=device)
            assert fetch.begin(chunk)().tobytes() == chunk.cpu().numpy().tobytes()


@pytest.mark.parametrize("kind", ["act", "smolvla"])
def test_overlapped_batches_of_many_sessions_are_answered_as_alone(
    kind: str, tmp_path: Path, device: torch.device
) -> None:
    """Sums are in another order, and on a GPU another kernel may do them."""
    skip_without_package(kind)
    folder = build_for_pusht(kind, tmp_path)
    count, steps = 5, 4
    alone = _answers(folder, device, count, steps, max_batch=1)
    together = _answers(folder, device, count, steps, max_batch=3)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=80.0 * 1e-2)


def _answers(folder: Path, device: torch.device, count: int, steps: int, *, max_batch: int) -> list[np.ndarray]:
    wanted = [replace(pusht_spec(folder, seed=seed), device=str(device)) for seed in range(count)]
    with served(LeRobotPolicy(), max_batch=max_batch) as uri:
        return answers_at_once(uri, wanted, steps)


@torch.inference_mode()
def test_what_is_prepared_beside_a_forward_pass_is_not_used_before_it_is_there(
    tmp_path: Path, device: torch.device
) -> None:
    """The side stream is held up: whoever does not wait for it computes with what was in the memory before."""
    policy = LeRobotPolicy()
    folder = build_for_pusht("act", tmp_path)
    sessions = [policy.open(replace(pusht_spec(folder, seed=i), device=str(device))) for i in range(2)]
    for session in sessions:
        begin(session)
    expected = [policy.infer([request(session, observe_pusht(i))])[0] for i, session in enumerate(sessions)]
    for session in sessions:
        begin(session)
    assert policy._together is not None
    if device.type == "cuda":
        with policy._together._beside:
            torch.cuda._sleep(500_000_000)
    requests = [request(session, observe_pusht(i)) for i, session in enumerate(sessions)]
    for one in requests:
        policy.prepare(one)
    for one, other in zip(policy.launch(requests)(), expected, strict=True):
        assert isinstance(one, np.ndarray)
        assert isinstance(other, np.ndarray)
        np.testing.assert_allclose(one, other, rtol=0, atol=80.0 * 1e-2)
    for session in sessions:
        session.close()
