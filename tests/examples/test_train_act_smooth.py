"""What a sample of a delay is told, and what it is to answer with."""

from __future__ import annotations

import pytest
import torch
from train_act_smooth import told_and_wanted


@pytest.mark.parametrize("delay", [0, 1, 3])
def test_told_are_the_actions_before_those_that_are_wanted(delay: int) -> None:
    steps = torch.arange(8.0)[None, :, None]
    # The episode ends after six.
    is_pad = (torch.arange(8) >= 6)[None]
    told, wanted, wanted_is_pad = told_and_wanted(steps, is_pad, torch.tensor([delay]), 3, 5)
    known = told["inference_action"][~told["inference_action_is_pad"]]
    assert known.flatten().tolist() == list(range(delay))
    assert wanted[0, :, 0].tolist() == list(range(delay, delay + 5))
    assert wanted_is_pad[0].tolist() == [step >= 6 for step in range(delay, delay + 5)]
