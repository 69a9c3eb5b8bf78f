"""``async-delta-eval``: one evaluation from the command line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from async_delta_inference.client.config import SimClientConfig
from async_delta_inference.client.record.eval_info import EVAL_INFO_NAME
from async_delta_inference.client.sim_client import SimClient
from async_delta_inference.command_line import EXIT_FAILED, parse_arguments, run_command
from async_delta_inference.errors import MissingExtraError

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0, or 2 for a user's mistake, 1 for another error or a result that could not be written, 130 when interrupted.
    """
    return run_command(lambda: _evaluate(_parse(arguments)))


def _parse(arguments: Sequence[str] | None) -> SimClientConfig:
    try:
        from lerobot.envs.configs import EnvConfig
        from lerobot.utils.import_utils import register_third_party_plugins
    except ModuleNotFoundError as exc:
        raise MissingExtraError("lerobot", "async-delta-eval") from exc

    # Environments of LeRobot's plugin packages, and any gymnasium id, become choices of --env.type.
    register_third_party_plugins()
    import async_delta_inference.client.environments.gymnasium_id  # noqa: F401

    @dataclass(kw_only=True)
    class EvalConfig(SimClientConfig):
        """Evaluate a served policy in simulation."""

        env: EnvConfig = field(metadata={"help": "environment, such as --env.type=libero --env.task=libero_object"})

    # draccus looks annotations up in the module.
    globals()["EnvConfig"] = EnvConfig
    return parse_arguments(EvalConfig, arguments, "async-delta-eval")


def _evaluate(config: SimClientConfig) -> int:
    from rich.console import Console

    from async_delta_inference.client.view.table import result_table

    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    client = SimClient(config)
    try:
        client.start()
        # As it is, on one line: it may be long, and brackets in it mean nothing.
        console.print(f"output in {client.output_dir}", markup=False, soft_wrap=True)
        client.control_loop()
    finally:
        try:
            client.stop()
        finally:
            if client.result.episodes:
                console.print(result_table(client.result))
                console.print(f"evaluated {client.result.policy}", markup=False, soft_wrap=True)
                written = client.output_dir / EVAL_INFO_NAME
                if written not in client.unwritten:
                    console.print(f"wrote {written}", markup=False, soft_wrap=True)
    return EXIT_FAILED if client.unwritten else 0
