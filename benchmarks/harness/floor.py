"""The C program that does the same copies and waits and nothing else, as a participant of the rounds."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from harness.payloads import Payload
from harness.statistics import Series

__all__ = ["Floor", "compile_floor"]

_SOURCE = Path(__file__).parent.parent / "floor.c"


def compile_floor() -> Path | None:
    """The compiled program, in a folder of its own that is the caller's to remove; None without a C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    program = Path(tempfile.mkdtemp(prefix="adi-bench-")) / "floor"
    subprocess.run([compiler, "-O2", "-o", str(program), str(_SOURCE), "-pthread"], check=True)
    return program


class Floor:
    """One payload's floor.

    Args:
        program: As compiled.
        payload: How many bytes go there and back.
        cores: Label of the series.
        processors: Of the client and of the server; as the kernel likes where None.
    """

    def __init__(
        self, program: Path, payload: Payload, cores: str = "any", processors: tuple[int, int] | None = None
    ) -> None:
        self.series = Series("floor", "copy", payload.name, cores=cores)
        self._command = [str(program), str(payload.observation_bytes), str(payload.chunk_bytes)]
        self._processors = [str(number) for number in processors or ()]

    def run_round(self, warmup: int, count: int) -> None:
        """Run the program once. Its CPU time is not known: most of it would be its start."""
        command = [*self._command, str(warmup), str(count), *self._processors]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        self.series.add(np.array(output.split(), np.int64), None)
