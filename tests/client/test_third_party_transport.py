"""Both commands over a transport that somebody else installed: nothing knows it but for its distribution's metadata."""

from __future__ import annotations

import os
from pathlib import Path
from secrets import token_hex

import pytest
from eval_process import TIMEOUT_S, Evaluated, finish_eval, start_eval
from serve_process import serve_process

DISTRIBUTION = Path(__file__).parents[1] / "support" / "coo_distribution"
INSTALLED = {"PYTHONPATH": os.pathsep.join(filter(None, [str(DISTRIBUTION), os.environ.get("PYTHONPATH")]))}


def policy(checkpoint: Path) -> list[str]:
    return ["--policy_type=act", f"--pretrained_name_or_path={checkpoint}", "--actions_per_chunk=20"]


def expect_evaluated(evaluated: Evaluated, checkpoint: Path) -> None:
    assert evaluated.info["overall"]["async"]["policy"] == f"act from {checkpoint}"
    assert f"evaluated act from {checkpoint}\n" in evaluated.stdout
    assert "pusht/0" in evaluated.stdout


@pytest.mark.timeout(3 * TIMEOUT_S)
def test_one_command_serves_and_the_other_evaluates(pusht_checkpoint: Path, tmp_path: Path) -> None:
    """Started together, since each loads lerobot: the client waits for the server."""
    address = f"loft-{token_hex(4)}"
    flags = ["--transport=coo", f"--server_address={address}"]
    patience = [f"--connect_timeout_s={TIMEOUT_S}"]
    client = start_eval(tmp_path, *flags, *patience, *policy(pusht_checkpoint), environment=INSTALLED)
    try:
        with serve_process(flags, cwd=tmp_path, environment=INSTALLED) as uris:
            assert uris == [f"coo://{address}"]
            expect_evaluated(finish_eval(client, tmp_path), pusht_checkpoint)
    finally:
        client.kill()
        client.communicate()


@pytest.mark.timeout(2 * TIMEOUT_S)
def test_embedded_server_serves_it(pusht_checkpoint: Path, tmp_path: Path) -> None:
    client = start_eval(tmp_path, "--transport=coo", *policy(pusht_checkpoint), environment=INSTALLED)
    evaluated = finish_eval(client, tmp_path)
    expect_evaluated(evaluated, pusht_checkpoint)
    assert "serving coo://" in (evaluated.output_dir / "server.log").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]  # no logs/ folder, no stray files
