"""On a GPU: what stands around a forward pass, what batches and many simulators make of it, and how busy it is.

::

    python benchmarks/gpu.py                                     # at most 8 minutes on one GPU
    python benchmarks/gpu.py --device=cpu --small                # tries everything out, with figures of no use

One command that needs no network: the policies are random, of published sizes. In order of importance, each part
within its share of ``--time_limit_s``, and written once it is there:

- ``transport``: frames of LIBERO's payload to a policy that costs nothing, over shared memory, our own gRPC, and
  LeRobot's gRPC;
- ``around_forward``: everything but the forward pass of an ACT of LeRobot's default size, for LeRobot's PolicyServer
  over LeRobot's gRPC, and for ours over shared memory with pageable and with pinned copies;
- ``batches``: forward passes of 1 to 32 observations, of a SmolVLA (450 M parameters, bfloat16) and of the ACT;
- ``sessions``: 1 to 32 processes that stand for simulators, answered in batches, and the share of the time in which the
  GPU computes;
- ``trace``: some of those batches as a Chrome trace, and how much of the copying to the device is hidden behind
  kernels.

How a forward pass is timed without a wait that the policy does not make is told in ``harness/gpu/forward_clock.py``:
two events on its stream, read afterwards. Writes ``gpu.json``, ``gpu.md``, ``gpu.png`` and ``trace.json.gz``;
`docs/benchmarks.md` explains them, and what a machine needs that cannot install this package.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from harness.gpu.settings import PARTS, Settings

from async_delta_inference.command_line import run_command

EXIT_FAILED_PART = 1
_OVERTIME_S = 90.0
"""After the time limit, when a part that hangs is ended with the stacks of all threads."""
_POWERS = (1, 2, 4, 8, 16, 32)
_POLICIES = ("smolvla", "act")


def main() -> int:
    """Run the command.

    Returns:
        0, or 1 when a part failed.
    """
    started_s = time.monotonic()
    settings, folder = _settings()
    faulthandler.dump_traceback_later(settings.time_limit_s + _OVERTIME_S, exit=True, file=sys.__stderr__)
    folder.mkdir(parents=True, exist_ok=True)
    if not settings.in_this_process and "transport" in settings.only:
        from harness.servers import preload

        preload()
    from harness.gpu.run import Run

    try:
        with Run(settings, folder, _say) as run:
            results = run.execute(started_s + settings.time_limit_s)
    finally:
        faulthandler.cancel_dump_traceback_later()
    print((folder / "gpu.md").read_text())
    _say(f"wrote {folder / 'gpu.json'}")
    failed = any(part["state"] == "failed" for part in results["parts"].values())
    return EXIT_FAILED_PART if failed else 0


def _settings() -> tuple[Settings, Path]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="torch's name of it")
    parser.add_argument("--small", action="store_true", help="tiny policies and frames, few repetitions")
    parser.add_argument("--in_this_process", action="store_true", help="servers as threads of this process")
    parser.add_argument("--only", type=_some_of(tuple(PARTS)), default=tuple(PARTS), help="parts, with commas between")
    parser.add_argument("--time_limit_s", type=float, default=480.0, help="for all of it")
    parser.add_argument("--policies", type=_some_of(_POLICIES), default=_POLICIES, help="the most important first")
    parser.add_argument("--sessions", type=_numbers, default=_POWERS, help="numbers of simulators, growing")
    parser.add_argument("--batch_sizes", type=_numbers, default=_POWERS, help="of forward passes, growing")
    parser.add_argument("--think_ms", type=float, default=0.0, help="a simulator's time between two chunks")
    parser.add_argument("--linger_ms", type=float, default=5.0, help="how long a batch waits for more sessions")
    parser.add_argument("--measure_s", type=float, default=4.0, help="for every number of sessions")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/gpu"))
    flags = vars(parser.parse_args())
    folder = flags.pop("output_dir")
    return Settings(**flags), folder


def _some_of(known: Sequence[str]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        return names

    return parse


def _numbers(text: str) -> tuple[int, ...]:
    numbers = tuple(sorted({int(number) for number in text.split(",")}))
    if numbers[0] < 1:
        raise argparse.ArgumentTypeError("numbers are 1 or more")
    return numbers


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", flush=True)


if __name__ == "__main__":
    sys.exit(run_command(main))
