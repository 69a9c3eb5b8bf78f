"""`PolicyHost` against PolicyServer itself: the same bits, nothing kept, nothing unpickled that it did not make."""

from __future__ import annotations

import gc
import pickle
import shutil
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_act import build_random_act

from async_delta_inference.errors import PolicyError, SetupRefusedError
from async_delta_inference.server_adapter import policy_host
from async_delta_inference.server_adapter.image_tables import image_tables
from async_delta_inference.server_adapter.lerobot_internals import load_policy_server_module
from async_delta_inference.server_adapter.policy_host import PolicyHost
from async_delta_inference.transport import Observation, ObservationFeatures, SessionSpec

FEATURES = ObservationFeatures(tuple(f"s{i}" for i in range(8)), {"image": (96, 96, 3), "image2": (96, 96, 3)})
LARGER = ObservationFeatures(FEATURES.state_names, {"image": (120, 160, 3), "image2": (96, 96, 3)})
ROWS, COLUMNS = 12, 7


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_random_act(tmp_path_factory.mktemp("act"), FEATURES, COLUMNS, chunk_size=16)


@pytest.fixture(scope="module")
def host() -> PolicyHost:
    return PolicyHost()


def spec(checkpoint: Path, features: ObservationFeatures = FEATURES, **changes: Any) -> SessionSpec:
    fields = {"policy_type": "act", "actions_per_chunk": ROWS, "action_dim": COLUMNS, **changes}
    return SessionSpec(pretrained_name_or_path=str(checkpoint), features=features, **fields)


def observe(timestep: int, features: ObservationFeatures = FEATURES, **scalars: Any) -> Observation:
    rng = np.random.default_rng(timestep)
    observation = Observation.empty(features)
    observation.state[...] = rng.normal(size=features.state_dim) * 3
    for image in observation.images.values():
        image[...] = rng.integers(0, 256, image.shape, np.uint8)
        image.setflags(write=False)
    observation.timestep, observation.task = timestep, "pick up the soup"
    for name, value in scalars.items():
        setattr(observation, name, value)
    return observation


class Context:
    def peer(self) -> str:
        return "test"


def upstream_server(host: PolicyHost) -> Any:
    """Another PolicyServer, set up by the same call, and left as it is."""
    module: Any = load_policy_server_module()
    server = module.PolicyServer(module.PolicyServerConfig())
    server.Ready(None, Context())
    server.SendPolicyInstructions(module.services_pb2.PolicySetup(data=host.instructions), Context())
    return server


def upstream_actions(server: Any, observation: Observation, features: ObservationFeatures) -> np.ndarray:
    module: Any = load_policy_server_module()
    raw = dict(zip(features.state_names, observation.state.tolist(), strict=True))
    raw |= {**observation.images, "task": observation.task}
    timed = module.TimedObservation(timestamp=0.0, timestep=observation.timestep, observation=raw, must_go=True)
    return torch.stack([row.get_action() for row in server._predict_action_chunk(timed)]).numpy()


# The same bits.


@pytest.mark.parametrize("features", [FEATURES, LARGER], ids=["of the policy's size", "resized"])
@pytest.mark.parametrize("taken_apart", [True, False])
def test_actions_are_bit_equal_to_upstream(
    host: PolicyHost,
    checkpoint: Path,
    features: ObservationFeatures,
    taken_apart: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host.set_up(spec(checkpoint, features))
    if not taken_apart:
        monkeypatch.setattr(host, "_prepare", None)
    server = upstream_server(host)
    for timestep in range(5):
        observation = observe(timestep, features)
        actions = host.infer(observation)
        assert actions is not None
        assert actions.dtype == np.float32
        assert actions.tobytes() == upstream_actions(server, observation, features).tobytes()


def policy_input(host: PolicyHost, observation: Observation) -> dict[str, Any]:
    """What the policy is given."""
    assert host._prepare is not None
    assert host._preprocess is not None
    return host._preprocess(*host._prepare(observation))


def upstream_policy_input(host: PolicyHost, observation: Observation, features: ObservationFeatures) -> dict[str, Any]:
    raw = {**dict(zip(features.state_names, observation.state.tolist(), strict=True)), **observation.images}
    raw["task"] = observation.task
    server = host.policy_server
    return server.preprocessor(
        host._helpers.raw_observation_to_observation(raw, server.lerobot_features, server.policy_image_features)
    )


@pytest.mark.parametrize("features", [FEATURES, LARGER], ids=["of the policy's size", "resized"])
@pytest.mark.parametrize("by_table", [True, False])
def test_policy_is_given_the_same_bits_as_by_upstream(
    host: PolicyHost,
    checkpoint: Path,
    features: ObservationFeatures,
    by_table: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    host.set_up(spec(checkpoint, features))
    assert host._prepare is not None
    assert set(host._prepare._tables) == {"observation.images.image", "observation.images.image2"}
    if not by_table:
        monkeypatch.setattr(host._prepare, "_tables", {})
    observation = observe(3, features)
    expected = upstream_policy_input(host, observation, features)
    given = policy_input(host, observation)
    assert set(given) == set(expected)
    for key, value in expected.items():
        if not isinstance(value, torch.Tensor):
            assert given[key] == value
            continue
        assert (given[key].dtype, given[key].shape) == (value.dtype, value.shape)
        assert given[key].stride() == value.stride()
        assert given[key].numpy().tobytes() == value.numpy().tobytes()


def test_all_pixel_values_become_the_same_floats(host: PolicyHost, checkpoint: Path) -> None:
    host.set_up(spec(checkpoint))
    observation = observe(1)
    observation.images["image"] = np.arange(96 * 96 * 3).reshape(96, 96, 3).astype(np.uint8)
    expected = upstream_policy_input(host, observation, FEATURES)["observation.images.image"]
    assert torch.equal(policy_input(host, observation)["observation.images.image"], expected)


@pytest.mark.parametrize("by_table", [True, False])
def test_memory_that_a_policy_keeps_is_not_written_again(
    host: PolicyHost, checkpoint: Path, by_table: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.set_up(spec(checkpoint))
    assert host._prepare is not None
    if not by_table:
        monkeypatch.setattr(host._prepare, "_tables", {})

    def images(timestep: int) -> dict[str, torch.Tensor]:
        assert host._prepare is not None
        batch, finished = host._prepare(observe(timestep))
        return {key: value for key, value in {**batch, **finished}.items() if "images" in key}

    addresses = [next(iter(images(0).values())).data_ptr() for _ in range(2)]
    assert addresses[0] == addresses[1]  # nobody held the first one: its memory serves again
    kept = {key: value[0, 1:] for key, value in images(1).items()}  # views, as a queue of past images would hold
    copies = {key: value.clone() for key, value in kept.items()}
    again = images(2)
    assert all(torch.equal(kept[key], copies[key]) for key in kept)
    assert not any(torch.equal(again[key][0, 1:], kept[key]) for key in kept)


class Pipeline:
    """A preprocessor of one step, whose name is all that is looked at before it runs."""

    def __init__(self, step_name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        self.steps = (type(step_name, (), {})(),)
        self._change = change

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        return {key: self._change(value) if key == "image" else value for key, value in batch.items()}


def scale(image: torch.Tensor) -> torch.Tensor:
    return (image - 0.4) / 0.3


def blur_along_rows(image: torch.Tensor) -> torch.Tensor:
    return torch.cumsum(image, dim=-1)


def darken_one_corner(image: torch.Tensor) -> torch.Tensor:
    return torch.cat([image[..., :-1, :], image[..., -1:, :] * 0.5], dim=-2)


@pytest.mark.parametrize(
    ("step_name", "change", "shape", "has_table"),
    [
        ("NormalizerProcessorStep", scale, (3, 40, 50), True),
        ("SomeOtherStep", scale, (3, 40, 50), False),
        ("NormalizerProcessorStep", blur_along_rows, (3, 40, 50), False),
        ("NormalizerProcessorStep", darken_one_corner, (3, 40, 50), False),
        ("NormalizerProcessorStep", torch.Tensor.double, (3, 40, 50), False),
        ("NormalizerProcessorStep", lambda image: image[:, :2], (3, 40, 50), False),
        ("NormalizerProcessorStep", scale, (3, 4, 5), False),  # too small to show every value
    ],
)
def test_table_stands_in_only_for_what_looks_at_single_pixels(
    step_name: str, change: Callable[[torch.Tensor], torch.Tensor], shape: tuple[int, ...], has_table: bool
) -> None:
    tables = image_tables(Pipeline(step_name, change), {"image": shape}, {"task": ""})
    assert set(tables) == ({"image"} if has_table else set())
    if has_table:
        levels = torch.arange(256, dtype=torch.float32) / 255
        assert all(torch.equal(torch.from_numpy(channel), scale(levels)) for channel in tables["image"])


def test_a_changed_lerobot_is_noticed(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    monkeypatch.setattr(policy_host, "are_as_tested", lambda *modules: False)
    host = PolicyHost()
    host.set_up(spec(checkpoint))
    assert host._prepare is None
    observation = observe(2)
    actions = host.infer(observation)
    assert actions is not None
    assert actions.tobytes() == upstream_actions(upstream_server(host), observation, FEATURES).tobytes()


# Set-up.


def test_policy_is_loaded_once_for_equal_sessions(host: PolicyHost, checkpoint: Path) -> None:
    host.set_up(spec(checkpoint))
    policy = host.policy_server.policy
    host.set_up(spec(checkpoint, actions_per_chunk=5))
    assert host.policy_server.policy is policy
    actions = host.infer(observe(1))
    assert actions is not None
    assert actions.shape == (5, COLUMNS)
    host.set_up(spec(checkpoint, LARGER))
    assert host.policy_server.policy is not policy


def test_checkpoint_that_was_written_anew_is_loaded_anew(host: PolicyHost, checkpoint: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "act")
    host.set_up(spec(folder))
    policy = host.policy_server.policy
    (folder / "model.safetensors").touch()
    host.set_up(spec(folder))
    assert host.policy_server.policy is not policy


@pytest.mark.parametrize(
    ("changes", "features", "words"),
    [
        ({"policy_type": "nonsense"}, FEATURES, ["nonsense", "not supported"]),
        ({"action_dim": 6}, FEATURES, ["action", "6", "(7,)"]),
        ({}, ObservationFeatures(("x", "y"), dict(FEATURES.images)), ["state", "2", "(8,)"]),
        (
            {},
            ObservationFeatures(FEATURES.state_names, {"front": (96, 96, 3)}),
            ["cameras", "images.front", "images.image2"],
        ),
    ],
)
def test_session_that_cannot_be_served_is_refused(
    host: PolicyHost, checkpoint: Path, changes: dict[str, Any], features: ObservationFeatures, words: list[str]
) -> None:
    with pytest.raises(SetupRefusedError) as info:
        host.set_up(spec(checkpoint, features, **changes))
    assert all(word in str(info.value) for word in words), str(info.value)
    host.set_up(spec(checkpoint))
    assert host.infer(observe(1)) is not None


def test_absent_checkpoint_is_refused(host: PolicyHost, tmp_path: Path, checkpoint: Path) -> None:
    with pytest.raises(SetupRefusedError, match="nothing-here"):
        host.set_up(spec(tmp_path / "nothing-here"))
    host.set_up(spec(checkpoint))


# Sessions and episodes.


@pytest.fixture
def ready(host: PolicyHost, checkpoint: Path) -> PolicyHost:
    host.set_up(spec(checkpoint))
    return host


def test_similar_observation_is_filtered_and_must_go_is_not(ready: PolicyHost) -> None:
    first = observe(0)
    assert ready.infer(first) is not None
    similar = observe(0, must_go=False)
    similar.timestep = 1
    assert ready.infer(similar) is None
    similar.must_go = True
    assert ready.infer(similar) is not None
    assert ready.infer(observe(77, must_go=False)) is not None


def test_nothing_of_an_episode_reaches_into_the_next(ready: PolicyHost) -> None:
    resets = []
    ready.policy_server.policy.reset = lambda: resets.append(1)
    try:
        assert ready.infer(observe(0)) is not None
        assert len(resets) == 1
        assert ready.infer(observe(1)) is not None
        assert len(resets) == 1
        ready.policy_server.observation_queue.put("left over")
        again = observe(1, must_go=False, episode=1)  # seen and predicted before, in the last episode
        assert ready.infer(again) is not None
        assert len(resets) == 2
        assert ready.policy_server.observation_queue.empty()
    finally:
        del ready.policy_server.policy.reset


def test_new_session_begins_anew(host: PolicyHost, checkpoint: Path) -> None:
    host.set_up(spec(checkpoint))
    assert host.infer(observe(5)) is not None
    host.set_up(spec(checkpoint))
    assert host.infer(observe(5, must_go=False)) is not None


def test_memory_of_predicted_timesteps_is_bounded(ready: PolicyHost) -> None:
    for timestep in range(5):
        ready.infer(observe(timestep))
    assert ready.policy_server._predicted_timesteps == {4}


@pytest.mark.parametrize("taken_apart", [True, False])
def test_images_are_not_kept(ready: PolicyHost, taken_apart: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slot must be free once it was given back, whatever PolicyServer remembers."""
    if not taken_apart:
        monkeypatch.setattr(ready, "_prepare", None)
    observation = observe(3)
    kept = [weakref.ref(image) for image in observation.images.values()]
    assert ready.infer(observation) is not None
    del observation
    gc.collect()
    assert [image() for image in kept] == [None, None]


def test_slot_is_given_back_before_the_forward_pass(ready: PolicyHost, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    act = ready._act
    monkeypatch.setattr(ready, "_act", lambda batch: (order.append("forward"), act(batch))[1])
    observation = observe(4)
    expected = ready.infer(observe(4))

    def release() -> None:
        order.append("release")
        for image in observation.images.values():
            image.setflags(write=True)
            image[...] = 0

    actions = ready.infer(observation, release)
    assert order == ["forward", "release", "forward"]
    assert actions is not None
    assert expected is not None
    assert actions.tobytes() == expected.tobytes()


def test_values_that_are_not_finite_are_policy_errors(ready: PolicyHost, monkeypatch: pytest.MonkeyPatch) -> None:
    observation = observe(1)
    observation.state[2] = np.nan
    with pytest.raises(PolicyError, match="state of timestep 1 is not finite"):
        ready.infer(observation)
    act = ready._act
    monkeypatch.setattr(ready, "_act", lambda batch: act(batch) * float("inf"))
    with pytest.raises(PolicyError, match="actions that are not finite"):
        ready.infer(observe(2))
    monkeypatch.undo()
    assert ready.infer(observe(3)) is not None


def test_error_of_the_policy_passes_and_the_next_is_answered(
    ready: PolicyHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(batch: object) -> None:
        raise RuntimeError("the policy broke")

    monkeypatch.setattr(ready, "_act", fail)
    with pytest.raises(RuntimeError, match="the policy broke"):
        ready.infer(observe(1))
    monkeypatch.undo()
    assert ready.infer(observe(2)) is not None


def test_inference_latency_is_kept(checkpoint: Path) -> None:
    host = PolicyHost(inference_latency=0.4)
    host.set_up(spec(checkpoint))
    start_s = time.perf_counter()
    host.infer(observe(1))
    assert time.perf_counter() - start_s >= 0.4


def test_only_its_own_instructions_are_unpickled(
    host: PolicyHost, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[bytes] = []
    loads: Callable[..., Any] = pickle.loads
    monkeypatch.setattr(pickle, "loads", lambda data, **kwargs: (loaded.append(data), loads(data, **kwargs))[1])
    host.set_up(spec(checkpoint, LARGER))
    host.set_up(spec(checkpoint))
    for timestep in range(3):
        observation = observe(timestep)
        observation.task = pickle.dumps(print).decode("latin-1")
        host.infer(observation)
    assert len(loaded) == 2
    assert loaded[-1] == host.instructions
