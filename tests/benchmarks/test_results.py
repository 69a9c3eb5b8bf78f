"""A run over two real processes, small: what it writes has the documented form."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import latency
import pytest
from harness.null_policy import check_reply, constant_chunk
from harness.payloads import parse_payload
from harness.placement import placed, processors_of
from harness.plan import Plan, TransportStep
from rich.console import Console

from async_delta_inference.errors import ConfigError, ProtocolError
from async_delta_inference.transport import ActionChunk

ROW_KEYS = {
    *("transport", "mode", "payload", "policy", "pacing", "level", "cores", "n", "cpu_us", "peak_rss_mb", "ratios"),
    *("p50_us", "p90_us", "p99_us", "p999_us", "max_us"),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("bench")
    # Shared memory alone: its server needs no lerobot, which takes half a minute to load.
    plan = Plan("test", (TransportStep(parse_payload("state"), ("shm",), 40, 4),), (), 2000)
    run = latency.Run(plan, folder, Console(quiet=True))
    found = run.execute()
    latency.write_results(folder, found, run.series)
    return folder, json.loads((folder / "latency.json").read_text())


def test_rows_have_the_documented_keys(results: tuple[Path, dict]) -> None:
    _, found = results
    assert set(found) == {"rows", "environment", "stages", "memory"}
    assert all(set(row) == ROW_KEYS for row in found["rows"])
    combinations = {(row["transport"], row["mode"], row["pacing"]) for row in found["rows"]}
    shm = {("shm", mode, pacing) for mode in ("copy", "loan") for pacing in ("tight", "paced")}
    assert shm <= combinations <= {*shm, ("floor", "copy", "tight")}
    for row in found["rows"]:
        assert 0 < row["p50_us"] <= row["p90_us"] <= row["p99_us"] <= row["p999_us"] <= row["max_us"]


def test_ratios_to_the_floor_are_taken_where_both_ran_alike(results: tuple[Path, dict]) -> None:
    rows = [row for row in results[1]["rows"] if row["pacing"] == "tight"]
    placed = {row["cores"] for row in rows if row["transport"] == "floor"} - {"any"}
    if not placed:
        pytest.skip("no C compiler: there is no floor")
    assert "one" in placed
    for cores in placed:
        found = {(row["transport"], row["mode"]): row for row in rows if row["cores"] == cores}
        assert set(found) == {("floor", "copy"), ("shm", "copy"), ("shm", "loan")}
        assert all(found["shm", mode]["ratios"]["p50_to_floor"]["low"] > 0 for mode in ("copy", "loan"))


def test_a_placement_holds_for_every_thread_and_ends() -> None:
    before = os.sched_getaffinity(0)
    release = threading.Event()
    thread = threading.Thread(target=release.wait)
    thread.start()
    try:
        processors = processors_of("one")
        assert processors is not None
        with placed(os.getpid(), *processors):
            assert [os.sched_getaffinity(task) for task in (0, thread.native_id or 0)] == [processors[0]] * 2
        assert [os.sched_getaffinity(task) for task in (0, thread.native_id or 0)] == [before] * 2
    finally:
        release.set()
        thread.join()


def test_environment_tells_machine_versions_and_load(results: tuple[Path, dict]) -> None:
    environment = results[1]["environment"]
    assert {"cpu", "cores", "python", "packages", "load_average_at_start", "stage_recorder"} <= set(environment)


def test_report_and_pictures_are_written(results: tuple[Path, dict]) -> None:
    folder, _ = results
    assert {"latency.md", "latency_cdf.png", "latency_bars.png", "latency_stages.png"} <= {
        path.name for path in folder.iterdir()
    }


@pytest.mark.parametrize("wrong", ["timestep", "mark", "actions"])
def test_wrong_reply_is_refused(wrong: str) -> None:
    expected = constant_chunk((50, 7))
    actions = constant_chunk((50, 7))
    actions[0, :2] = 9, 9
    chunk = ActionChunk(actions, 9)
    check_reply(chunk, 9, expected)
    if wrong == "timestep":
        chunk.timestep = 8
    elif wrong == "mark":
        actions[0, 1] = 8
    else:
        actions[-1, -1] += 1
    with pytest.raises(ProtocolError):
        check_reply(chunk, 9, expected)


def test_payloads_of_ones_own() -> None:
    assert parse_payload("2x224x224").image_shapes == ((224, 224, 3),) * 2
    assert len(parse_payload("libero", cameras=3).image_shapes) == 3
    with pytest.raises(ConfigError, match="unknown --payload"):
        parse_payload("huge")
