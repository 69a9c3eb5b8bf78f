"""``async-delta-sweep``: a grid over any flag of ``async-delta-eval``, over the same episodes and one server."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from async_delta_inference.client.cli import parse_evaluation
from async_delta_inference.client.compare.runs import read_finished
from async_delta_inference.client.config import SimClientConfig
from async_delta_inference.client.evaluation import evaluate
from async_delta_inference.client.record.figures import run_figures
from async_delta_inference.client.report.curves import delay_charts
from async_delta_inference.client.report.page import ReportedRun, report_page
from async_delta_inference.client.run.embedded_server import EmbeddedServer, flags_for_many
from async_delta_inference.client.sim_client import SimClient
from async_delta_inference.client.sweep import Point, Sweep, split_grid
from async_delta_inference.client.view.sweep_table import Row, sweep_csv, sweep_table
from async_delta_inference.command_line import run_command
from async_delta_inference.errors import ConfigError, EpisodeError
from async_delta_inference.whole_files import write_whole

__all__ = ["main", "run_sweep"]

_HELP = """usage: async-delta-sweep --sweep.FLAG=VALUE,VALUE,... [--sweep.FLAG=...] --output_dir=DIR [flags]

Runs async-delta-eval with every combination of the values, over one server that loads the policy once, each into a
folder of its own in DIR. The same command again runs what is missing. Ends with a table (table.csv), curves over the
delay (*.svg) and a report (report.html). The other flags are those of async-delta-eval.
"""

Parse = Callable[[Sequence[str]], SimClientConfig]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        As ``async-delta-eval`` does.
    """
    words = sys.argv[1:] if arguments is None else list(arguments)
    if not words or "-h" in words or "--help" in words:
        print(_HELP, end="")
        return 0
    return run_command(lambda: run_sweep(words, parse_evaluation))


def run_sweep(words: Sequence[str], parse: Parse) -> int:
    """Run a sweep, or what is missing of it.

    Args:
        words: The command line.
        parse: From the words of one evaluation to its configuration.
    """
    from rich.console import Console

    points, others = split_grid(words)
    folder, common = _output_dir(others)
    # All of them, before the first runs: a mistake in the last value shall not come up in the night.
    configs = [parse([*common, *point.arguments, f"--output_dir={folder / point.name}"]) for point in points]
    if configs[0].num_servers is not None:
        raise ConfigError("--num_servers: a sweep has one server for all of its runs; leave it out")
    sweep = Sweep(folder, points, common)
    sweep.load()
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    with _server(configs[0], folder) as address:

        def run_point(point: Point, into: Path) -> None:
            resume = ["--resume=true"] if (into / "run.yaml").exists() else []
            given = [f"--server_address={address()}"] if configs[0].server_address is None else []
            # It is for a server of one's own, and refused beside an address: the sweep's server has been told.
            alike = [word for word in common if not word.startswith("--max_batch=")]
            config = parse([*alike, *point.arguments, f"--output_dir={into}", *given, *resume])
            result = evaluate(config) if config.n_envs is not None else SimClient(config).run()
            if result.given_up:
                raise EpisodeError(
                    f"{point.name}: {result.given_up[0].spec.name} has no result: {result.given_up[0].failures[-1]}"
                )

        for point in sweep.run(run_point):
            console.print(f"complete: {point.name}", markup=False, soft_wrap=True)
    rows = _write(sweep)
    console.print(sweep_table(rows))
    console.print(f"wrote {folder}/table.csv and report.html", markup=False, soft_wrap=True)
    return 0


def _output_dir(words: Sequence[str]) -> tuple[Path, list[str]]:
    given = [word for word in words if word.startswith("--output_dir=")]
    if len(given) != 1:
        raise ConfigError("a sweep needs one --output_dir=DIR: the folder that it goes on with when it is run again")
    return Path(given[0].partition("=")[2]).expanduser(), [word for word in words if word not in given]


@contextmanager
def _server(config: SimClientConfig, folder: Path) -> Iterator[Callable[[], str]]:
    """The address of one server for all points; it is started only if there is none, and somebody asks."""
    started: list[EmbeddedServer] = []

    def address() -> str:
        if config.uri is not None:
            return config.uri
        if not started:
            assert config.transport is not None  # resolved by the configuration
            host, flags = config.policy_host, flags_for_many(config)
            started.append(EmbeddedServer(config.transport, folder / "server.log", policy_host=host, flags=flags))
        return started[0].wait_until_ready(config.setup_timeout_s)

    try:
        yield address
    finally:
        for server in started:
            server.stop()


def _write(sweep: Sweep) -> list[Row]:
    """The table, the curves and the report."""
    runs = [(point, read_finished(sweep.folder_of(point))) for point in sweep.points]
    rows: list[Row] = [(point.values, run_figures(list(run.episodes.values()))) for point, run in runs]
    write_whole(sweep.folder / "table.csv", lambda path: path.write_text(sweep_csv(rows)))
    for name, chart in delay_charts([(point.name, run) for point, run in runs]):
        write_whole(sweep.folder / f"{name}.svg", lambda path, chart=chart: path.write_text(chart))  # type: ignore[misc]
    page = report_page([ReportedRun(point.name, run, [], row[1]) for (point, run), row in zip(runs, rows, strict=True)])
    write_whole(sweep.folder / "report.html", lambda path: path.write_text(page))
    return rows
