"""What stands in for LeRobot's pipelines gives their bits, and stands in only where it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.processor_act import make_act_pre_post_processors

from async_delta_inference.server_adapter.processors import Postprocessor, Preprocessor, as_chunk

STATE_DIM, ACTION_DIM = 6, 5
IMAGE_KEY = "observation.images.image"
MODES = [mode for mode in NormalizationMode if mode is not NormalizationMode.IDENTITY]


def make_pipelines(mode: NormalizationMode = NormalizationMode.MEAN_STD) -> tuple[Any, Any]:
    """LeRobot's own, for ACT, with statistics that are not round."""
    config = ACTConfig(
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (STATE_DIM,)),
            IMAGE_KEY: PolicyFeature(FeatureType.VISUAL, (3, 32, 32)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION_DIM,))},
        normalization_mapping=dict.fromkeys(("VISUAL", "STATE", "ACTION"), mode),
        pretrained_backbone_weights=None,
        device="cpu",
    )
    generator = torch.Generator().manual_seed(3)

    def statistics(*shape: int) -> dict[str, torch.Tensor]:
        low, high = torch.rand(shape, generator=generator) - 2, torch.rand(shape, generator=generator) + 1
        middle = torch.rand(shape, generator=generator)
        names = {"min": low, "q01": low * 0.9, "q10": low * 0.7, "q90": high * 0.7, "q99": high * 0.9, "max": high}
        return {**names, "mean": middle, "std": middle + 0.1}

    stats = {
        "observation.state": statistics(STATE_DIM),
        IMAGE_KEY: statistics(3, 1, 1),
        "action": statistics(ACTION_DIM),
    }
    return make_act_pre_post_processors(config, stats)


def observation(state: torch.Tensor, task: str = "pick it up") -> dict[str, Any]:
    return {"observation.state": state, "task": [task], IMAGE_KEY: torch.linspace(0, 1, 3072).reshape(1, 3, 32, 32)}


def make_preprocessor(pipeline: Any) -> Preprocessor:
    return Preprocessor(pipeline, observation(torch.linspace(-3, 3, STATE_DIM)[None]))


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert set(found) == set(expected)
    for key, value in expected.items():
        if isinstance(value, torch.Tensor):
            assert found[key].dtype == value.dtype
            assert found[key].numpy().tobytes() == value.numpy().tobytes()
        else:
            assert found[key] == value


@settings(max_examples=30, deadline=None)
@given(
    mode=st.sampled_from(MODES),
    values=st.lists(st.floats(-1e6, 1e6, width=32), min_size=STATE_DIM, max_size=STATE_DIM),
    task=st.text(max_size=20),
)
def test_any_state_becomes_the_bits_that_the_pipeline_makes_of_it(
    mode: NormalizationMode, values: list[float], task: str
) -> None:
    pipeline, _ = make_pipelines(mode)
    preprocess = make_preprocessor(pipeline)
    assert preprocess._normalize is not None
    batch = observation(torch.tensor([values]), task)
    expected = pipeline(dict(batch))
    image = {IMAGE_KEY: expected[IMAGE_KEY]}
    del batch[IMAGE_KEY]
    assert_same(preprocess(batch, image), expected)


def test_an_image_that_is_not_normalised_yet_goes_through_the_pipeline() -> None:
    pipeline, _ = make_pipelines()
    batch = observation(torch.ones(1, STATE_DIM))
    assert_same(make_preprocessor(pipeline)(dict(batch), {}), pipeline(dict(batch)))


def test_two_inputs_share_no_memory_with_each_other() -> None:
    pipeline, _ = make_pipelines()
    preprocess = make_preprocessor(pipeline)
    state = torch.ones(1, STATE_DIM)
    first, second = (preprocess({"observation.state": state, "task": [""]}, {}) for _ in range(2))
    for key, value in first.items():
        if isinstance(value, torch.Tensor | dict | list):
            assert second[key] is not value


def add_hook(pipeline: Any) -> None:
    pipeline.before_step_hooks.append(lambda index, transition: None)


def rename(pipeline: Any) -> None:
    pipeline.steps[0].rename_map = {"observation.state": "observation.joints"}


def use_half_precision(pipeline: Any) -> None:
    next(step for step in pipeline.steps if hasattr(step, "float_dtype")).float_dtype = "float16"


def add_a_step(pipeline: Any) -> None:
    pipeline.steps = [*pipeline.steps, type("Unknown", (), {"__call__": lambda self, transition: transition})()]


@pytest.mark.parametrize("change", [add_hook, rename, use_half_precision, add_a_step])
def test_other_pipelines_are_called_themselves(change: Callable[[Any], None]) -> None:
    pipeline, _ = make_pipelines()
    change(pipeline)
    preprocess = make_preprocessor(pipeline)
    assert preprocess._normalize is None
    batch = observation(torch.ones(1, STATE_DIM))
    assert_same(preprocess(dict(batch), {}), pipeline(dict(batch)))


def test_a_normaliser_that_disagrees_with_its_pipeline_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, _ = make_pipelines()
    normalizer = next(step for step in pipeline.steps if hasattr(step, "_normalize_observation"))
    calls = []

    def unsteady(batch: dict[str, Any], inverse: bool) -> dict[str, Any]:
        calls.append(1)
        return {key: value + len(calls) for key, value in batch.items()}

    monkeypatch.setattr(normalizer, "_normalize_observation", unsteady)
    assert make_preprocessor(pipeline)._normalize is None


@pytest.mark.parametrize("mode", MODES)
def test_whole_chunk_is_postprocessed_at_once_once_proven(mode: NormalizationMode) -> None:
    _, pipeline = make_pipelines(mode)
    postprocess = Postprocessor(pipeline)
    for _ in range(3):
        chunk = torch.randn(1, 9, ACTION_DIM)
        rows = torch.cat([pipeline(chunk[:, row]) for row in range(9)])
        assert postprocess(chunk).tobytes() == rows.numpy().tobytes()
        assert postprocess._proven
        assert postprocess._transform is not pipeline


def test_a_chunk_on_another_device_is_unnormalised_there_and_then_fetched() -> None:
    """A mock of such a chunk: this suite runs without a GPU."""

    class Elsewhere(torch.Tensor):
        is_cpu = property(lambda self: False)  # type: ignore[assignment]

    def statistics_of_the_cpu(chunk: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the chunk is not on the CPU")

    _, pipeline = make_pipelines()
    postprocess = Postprocessor(pipeline)
    postprocess._transform = statistics_of_the_cpu
    for _ in range(2):
        chunk = torch.randn(1, 4, ACTION_DIM)
        assert postprocess(chunk.as_subclass(Elsewhere)).tobytes() == pipeline(chunk).numpy().tobytes()


@pytest.mark.parametrize("mode", MODES)
def test_chunks_of_several_sessions_get_the_bits_that_each_gets_alone(mode: NormalizationMode) -> None:
    _, pipeline = make_pipelines(mode)
    postprocess, alone = Postprocessor(pipeline), Postprocessor(pipeline)
    for _ in range(2):  # The first time it is looked whether that holds.
        chunks = torch.randn(3, 9, ACTION_DIM)
        expected = np.stack([alone(chunks[row : row + 1]) for row in range(3)])
        assert postprocess.begin(chunks)().tobytes() == expected.tobytes()


def test_postprocessor_that_is_not_elementwise_goes_row_by_row() -> None:
    class Cumulative:
        steps = ()

        def __call__(self, actions: torch.Tensor) -> torch.Tensor:
            return actions.cumsum(dim=-2) if actions.ndim == 3 else actions

    class Unknown(Cumulative):
        steps = (object(),)

    chunk = torch.rand(1, 5, 3)
    for pipeline in (Cumulative(), Unknown()):
        postprocess = Postprocessor(pipeline)
        for _ in range(3):
            assert np.array_equal(postprocess(chunk), chunk[0].numpy())
        assert not postprocess._whole


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_chunk_of_any_floating_type_becomes_float32(dtype: torch.dtype) -> None:
    tensor = torch.randn(1, 6, 9, dtype=dtype, requires_grad=True)[:, :4, :3]
    chunk = as_chunk(tensor)
    assert (chunk.dtype, chunk.shape) == (np.float32, (4, 3))
    assert chunk.flags.c_contiguous
    assert chunk.tobytes() == tensor.detach()[0].to(torch.float32).numpy().tobytes()
