"""Where a run writes to unless told."""

from __future__ import annotations

import re

from async_delta_inference.client.record.output_folder import default_output_dir


def test_default_folder_names_day_time_environment_and_policy() -> None:
    folder = default_output_dir("pusht", "act").as_posix()
    assert re.fullmatch(r"outputs/eval/\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d_pusht_act", folder)
