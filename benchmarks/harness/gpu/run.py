"""A run of ``benchmarks/gpu.py``: its parts in order, each within its share of the time, each kept once it is there."""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from async_delta_inference.transport import SessionSpec
from async_delta_inference.whole_files import write_whole
from harness.gpu.batches import describe_policy, measure_batches
from harness.gpu.budget import Budget, shares_of
from harness.gpu.device import check_device, describe_device_and_machine, precision_flags
from harness.gpu.policies import PUBLISHED, SMALL, write_act, write_smolvla
from harness.gpu.profiling import prepare_profiler
from harness.gpu.report import markdown
from harness.gpu.sessions import Load, crowds_of, in_turns, measure_sessions, trace_batches
from harness.gpu.settings import PARTS, Settings
from harness.gpu.simulators import Simulators
from harness.gpu.targets import Results, judged
from harness.gpu.timed_policies import TimedLeRobotPolicy

__all__ = ["Run"]

_WRITERS = {"act": write_act, "smolvla": write_smolvla}


class Run:
    """One run. Use it as a context manager, which ends what it started and removes its checkpoints.

    Args:
        settings: What to measure.
        folder: For results.
        say: Told what is done.

    Raises:
        ConfigError: There is no such device.
    """

    def __init__(self, settings: Settings, folder: Path, say: Callable[[str], None]) -> None:
        self._settings, self._folder, self._say = settings, folder, say
        self._device = check_device(settings.device)
        self._size = SMALL if settings.small else PUBLISHED
        self._stack = ExitStack()
        self._policies: dict[str, tuple[TimedLeRobotPolicy, SessionSpec]] = {}
        self._simulators: Simulators | None = None
        self.results: Results = {
            "machine": describe_device_and_machine(self._device),
            "settings": {**dataclasses.asdict(settings), "size": self._size.name},
            "parts": {},
        }

    def execute(self, deadline_s: float) -> Results:
        """Measure every part that is wanted; what is there is written after each.

        Args:
            deadline_s: When all has to be over, of ``time.monotonic()``.

        Returns:
            What ``gpu.json`` holds. A part that failed is in ``parts`` with its error.
        """
        self._scratch = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="adi-bench-")))
        wanted = {name: PARTS[name] for name in PARTS if name in self._settings.only}
        for name in wanted:
            budget = Budget(shares_of(deadline_s - time.monotonic(), wanted, name))
            self._say(f"{name}: {budget.left_s:.0f} s at the most")
            self.results["parts"][name] = self._part(name, budget)
            self.results["targets"] = judged(self.results)
            self._write()
        return self.results

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _part(self, name: str, budget: Budget) -> dict[str, Any]:
        start_s, error = time.monotonic(), None
        try:
            getattr(self, f"_measure_{name}")(budget)
            state = "cut short" if budget.was_cut_short else "done"
        except Exception:  # noqa: BLE001 - recorded, told, and the next part has its turn
            state, error = "failed", traceback.format_exc()
            self._say(f"{name} failed:\n{error}")
        return {"state": state, "seconds": round(time.monotonic() - start_s, 1), "error": error}

    # The parts.

    def _measure_transport(self, budget: Budget) -> None:
        from harness.servers import ServerProcess
        from harness.statistics import row_of
        from harness.transport_level import measure_payload

        settings, kinds = self._settings, ("grpc-native", "shm")
        if not settings.in_this_process:
            kinds = ("grpc-wire", *kinds)  # LeRobot's own, which needs a process that has lerobot loaded.
        with ExitStack() as stack:
            servers = {kind: stack.enter_context(ServerProcess(kind)) for kind in kinds}
            series = measure_payload(
                settings.payload, servers, kinds, tight=settings.exchanges, paced=0, floor_program=None
            )
        self.results["transport"] = [row_of(one, series) for one in series]

    def _measure_around_forward(self, budget: Budget) -> None:
        from harness.gpu.around_forward import compare_stacks

        settings = self._settings
        found, errors = compare_stacks(
            settings.payload,
            self._checkpoint("act"),
            settings.device,
            chunks=settings.chunks,
            rounds=settings.rounds,
            budget=budget,
            in_this_process=settings.in_this_process,
        )
        self.results["around_forward"] = found
        _raise_all("stacks", errors)

    def _measure_batches(self, budget: Budget) -> None:
        def measure(policy_type: str, share: Budget) -> Iterator[dict[str, Any]]:
            policy, _ = self._policy(policy_type)
            settings = self._settings
            return measure_batches(
                policy_type,
                policy.loaded,
                policy.clock,
                settings.payload,
                settings.batch_sizes,
                repeats=settings.repeats,
                budget=share,
            )

        self._measure_policies("batches", measure, budget)

    def _measure_sessions(self, budget: Budget) -> None:
        self._prepare_profiler()
        crowds = crowds_of(self._settings.sessions)

        def measure(policy_type: str, share: Budget) -> Iterator[dict[str, Any]]:
            return measure_sessions(self._load(policy_type), self._started_simulators(), crowds, share)

        self._measure_policies("sessions", measure, budget)

    def _measure_policies(
        self, part: str, measure: Callable[[str, Budget], Iterator[dict[str, Any]]], budget: Budget
    ) -> None:
        """The rows of one policy after the other; one that fails does not keep the next from its turn."""
        rows, errors = self.results.setdefault(part, []), []
        for policy_type in self._settings.policies:
            try:
                for row in measure(policy_type, self._share_of(budget, policy_type)):
                    rows.append(row)
                    self._write_json()
            except Exception as exc:  # noqa: BLE001 - raised with the others'
                errors.append(exc)
        _raise_all("policies", errors)

    def _measure_trace(self, budget: Budget) -> None:
        self._prepare_profiler()
        load, crowd = self._load(self._settings.policies[0]), in_turns(max(self._settings.sessions))
        path = self._folder / "trace.json.gz"
        self.results["trace"] = trace_batches(load, self._started_simulators(), crowd, path)

    # What they share.

    def _share_of(self, budget: Budget, policy_type: str) -> Budget:
        """Of a part's time for one policy: equal shares of what is left."""
        return Budget(shares_of(budget.left_s, dict.fromkeys(self._settings.policies, 1.0), policy_type), whole=budget)

    def _load(self, policy_type: str) -> Load:
        policy, spec = self._policy(policy_type)
        settings = self._settings
        return Load(
            policy_type,
            policy,
            spec,
            settings.payload,
            think_s=settings.think_ms / 1000,
            linger_s=settings.linger_ms / 1000,
            warmup_s=settings.warmup_s,
            measure_s=settings.measure_s,
            profile_s=settings.profile_s,
        )

    def _policy(self, policy_type: str) -> tuple[TimedLeRobotPolicy, SessionSpec]:
        """Loaded in this process, on the device."""
        if policy_type not in self._policies:
            checkpoint = self._checkpoint(policy_type)
            spec = dataclasses.replace(
                self._settings.payload.spec(str(checkpoint)), policy_type=policy_type, device=self._settings.device
            )
            self._say(f"loading {policy_type}")
            policy = TimedLeRobotPolicy()
            policy.open(spec).close()
            assert policy.loaded is not None
            self._policies[policy_type] = (policy, spec)
            described = describe_policy(policy_type, policy.loaded.policy)
            self.results.setdefault("policies", []).append(described)
            self.results["machine"]["precision"] = precision_flags()
        return self._policies[policy_type]

    def _checkpoint(self, policy_type: str) -> Path:
        folder = self._scratch / policy_type
        if not (folder / "config.json").is_file():
            self._say(f"writing a random {policy_type}")
            _WRITERS[policy_type](folder, self._settings.payload, self._size)
        return folder

    def _started_simulators(self) -> Simulators:
        if self._simulators is None:
            self._simulators = self._stack.enter_context(Simulators(max(self._settings.sessions)))
        return self._simulators

    def _prepare_profiler(self) -> None:
        prepare_profiler(self._device, self._scratch)

    def _write_json(self) -> None:
        text = json.dumps(self.results, indent=1) + "\n"
        write_whole(self._folder / "gpu.json", lambda partial: partial.write_text(text))

    def _write(self) -> None:
        self._write_json()
        (self._folder / "gpu.md").write_text(markdown(self.results))
        if find_spec("matplotlib") is None:
            self._say("no picture: matplotlib is not installed")
            return
        from harness.gpu.picture import draw_picture

        draw_picture(self._folder / "gpu.png", self.results)


def _raise_all(what: str, errors: Sequence[Exception]) -> None:
    if errors:
        raise ExceptionGroup(f"some {what} failed", errors)
