"""`SimClientConfig`: every flag of ``async-delta-eval``, validated where it is set."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from async_delta_inference.client.compare.stopping import check_stop_when
from async_delta_inference.client.control.aggregation import aggregate_function
from async_delta_inference.client.control.options import ControlOptions
from async_delta_inference.client.environments.registry import EnvironmentOptions
from async_delta_inference.client.policy_flags import PolicyFlags
from async_delta_inference.errors import ConfigError, InvalidMessageError
from async_delta_inference.flag_values import home_expanded
from async_delta_inference.transport import TransportOptions, known_schemes
from async_delta_inference.transport.addresses import is_loopback
from async_delta_inference.transport.link_options import GrpcOptions, LinkOptions, TlsOptions
from async_delta_inference.transport.registry import backend, split_uri

__all__ = ["SimClientConfig"]

_SEEDS = 2**32
"""As many as numpy's older generators take."""
SLOWEST_FPS, FASTEST_FPS = 1e-3, 1e6
"""Steps per second; beyond them a step lasts a quarter of an hour, or less than looking at the clock."""


@dataclass(kw_only=True)
class SimClientConfig(PolicyFlags):
    """What to evaluate, where, and how. Names follow LeRobot's RobotClientConfig."""

    env: Any
    """LeRobot environment configuration, such as --env.type=libero."""
    client_device: str = "cpu"
    """Device of the actions given to the environment; other than cpu: torch tensors."""
    task: str = ""
    """Instruction given to the policy; empty: the environment's own."""

    n_episodes: int = 10
    """Episodes per task."""
    seed: int = 1000
    """Episode i of a task is reset with seed + i."""
    output_dir: Path | None = None
    """Default: outputs/eval/<date>/<time>_<env>_<policy>, with a number where that is taken."""
    success_key: str | None = None
    """Key of the environment's info that says whether the task is solved; none: is_success, success or succeed."""
    overwrite: bool = False
    """Replace the results of an earlier run in --output_dir, once there are some of this one."""
    resume: str | None = None
    """true: run what is missing in --output_dir; or the folder that has the earlier run."""

    transport: str | None = None
    """Scheme of the transport, such as grpc or shm, or that of an installed plugin; none: that of --server_address,
    which is grpc where it names no scheme, and shm for a server of its own."""
    server_address: str | None = None
    """Where a policy server listens, such as 127.0.0.1:8080 or shm://name; none: a server of its own is started."""

    chunk_size_threshold: float = 0.5
    """Ask for a chunk when queued actions / chunk size <= this, in [0, 1]."""
    aggregate_fn_name: str = "weighted_average"
    """How overlapping chunks combine: weighted_average, latest_only, average, conservative."""
    must_go: str = "always"
    """always: the server must answer every observation; queue_empty: as upstream, only when none is queued."""
    one_request_in_flight: bool = True
    """false: as upstream, send an observation every step while the queue is short, answered or not."""
    fps: float | None = None
    """Control steps per second in the realtime clock; none: the environment's own."""

    clock: str = "realtime"
    """realtime: paced at fps; simulated: the environment's step count is the time."""
    inference_delay: str | None = None
    """Simulated clock: steps from an observation to its actions taking effect, or auto (measured, then frozen)."""
    inference_delay_s: float | None = None
    """Simulated clock: the same in seconds, rounded up at fps."""
    inference_delay_trace: Path | None = None
    """Simulated clock: replay the delays of another run's inference_delays.json."""
    on_starvation: str = "wait"
    """No action queued: wait (the simulator stands still until there is one), hold (it is stepped with its hold action,
    and the chunk is executed from its start when it comes, as RobotClient does) or skip (it is stepped with its hold
    action, and the actions of the steps that passed are dropped)."""
    check_repeatable: bool = False
    """Before the first episode, try whether the same seed and actions give the same; the results say so."""
    render_device: int | None = None
    """Device that EGL renders on, apart from the policy's; none: MUJOCO_EGL_DEVICE_ID, else one that is there."""
    n_envs: str | None = None
    """Simulators at the same time, each in a process of its own, or auto; none: one, in this process (auto with
    --runner=ray)."""
    runner: str = "processes"
    """Where those of --n_envs run: processes, of this machine, or ray, on the nodes of a Ray cluster."""
    ray_address: str | None = None
    """With --runner=ray: of a cluster that is there, such as 10.0.0.1:6379, or auto for this node's; none, or local:
    one that is started here and ends with the run."""
    num_servers: str | None = None
    """With --n_envs: policy servers that share the simulators evenly, or auto: one for each GPU if the policy runs on
    one, else one; none: one (auto with --runner=ray)."""
    max_batch: int = 1
    """With --n_envs: observations of different simulators that the policy is given together, at most."""
    max_retries: int = 2
    """With --n_envs: how often an episode is run again whose simulator crashed or hung, before it is given up."""
    episode_timeout_s: float = 120.0
    """With --n_envs: seconds without a step after which a simulator hangs."""
    render: str = "on_demand"
    """on_demand: only the frames that are sent or recorded; always: every step."""

    stop_when: str | None = None
    """End as soon as this is told: difference (of the success rate from --baseline's), or interval<N (it is known to N
    percentage points), by tests that may be looked at after every episode."""
    baseline: Path | None = None
    """Output folder of the run that --stop_when=difference compares with, episode by episode."""

    n_videos: int = 0
    """Episodes of each task to record as videos, the first ones."""
    display_data: bool = False
    """Show frames, state, action, queue and chunks in Rerun while it runs."""
    display_ip: str | None = None
    """Where a Rerun viewer listens; none: one is started."""
    display_port: int | None = None
    """Its port."""
    display_save: Path | None = None
    """Write what would be shown to this .rrd file instead."""
    record_dataset: Path | None = None
    """Write the episodes as a LeRobotDataset into this new folder; renders every frame."""
    save_trajectories: bool = False
    """Write one trajectories/*.npz per episode."""
    debug_visualize_queue_size: bool = False
    """Write queue_size.png: queued actions over the steps."""
    plot_latency: bool = False
    """Write latency.png: milliseconds from an observation's capture to its chunk's arrival, chunk by chunk."""
    trace: Path | None = None
    """Write where the time of every chunk goes to this file, for https://ui.perfetto.dev."""
    progress: bool = True
    """Show a progress bar."""

    connect_timeout_s: float = 20.0
    """Seconds for the server to be reached."""
    setup_timeout_s: float = 300.0
    """Seconds for the server to load the policy."""
    inference_timeout_s: float = 120.0
    """Seconds for an observation to be answered."""
    reconnect_timeout_s: float = 30.0
    """Seconds for a server that went away to come back."""
    grpc: GrpcOptions = field(default_factory=GrpcOptions)
    tls: TlsOptions = field(default_factory=TlsOptions)

    def __post_init__(self) -> None:
        """Validate.

        Raises:
            ConfigError: One line that names the flag and the remedy.
        """
        self._take_what_python_writes()
        self._check_folder()
        self.check_workers()
        self._check_numbers()
        self.check_policy()
        _require(self.n_episodes >= 1, f"--n_episodes must be at least 1, got {self.n_episodes}")
        _require(self.n_videos >= 0, f"--n_videos must not be negative, got {self.n_videos}")
        _require(
            0.0 <= self.chunk_size_threshold <= 1.0,
            f"--chunk_size_threshold must be between 0 and 1, got {self.chunk_size_threshold}",
        )
        _require(
            self.fps is None or SLOWEST_FPS <= self.fps <= FASTEST_FPS,
            f"--fps must be positive, from {SLOWEST_FPS:g} to {FASTEST_FPS:g} steps per second, got {self.fps}",
        )
        _require(
            self.render_device is None or self.render_device >= 0,
            f"--render_device must be 0 or more, got {self.render_device}",
        )
        _one_of("must_go", self.must_go, "always", "queue_empty")
        _one_of("clock", self.clock, "realtime", "simulated")
        _one_of("on_starvation", self.on_starvation, "wait", "hold", "skip")
        _one_of("render", self.render, "on_demand", "always")
        aggregate_function(self.aggregate_fn_name)
        _require(
            not self.rtc.enabled or (self.aggregate_fn_name == "latest_only" and self.one_request_in_flight),
            "--rtc.enabled=true continues the newest chunk, so it must be what is executed: add "
            "--aggregate_fn_name=latest_only, and leave --one_request_in_flight=false out",
        )
        _require(
            self.record_dataset is None or self.resume is None,
            "--record_dataset and --resume: a dataset is written by one run; leave one of them out",
        )
        _require(
            (self.display_ip is None) == (self.display_port is None),
            "--display_ip and --display_port belong together: give both, or neither for a viewer that is started here",
        )
        check_stop_when(self.stop_when, self.baseline)
        self._check_delay()
        self._check_address()
        self.transport_options()

    def _take_what_python_writes(self) -> None:
        """A program of the user's gives paths as text and a number of steps as a number; ``~`` is home."""
        for name in ("output_dir", "inference_delay_trace", "trace", "baseline", "record_dataset", "display_save"):
            if getattr(self, name) is not None:
                setattr(self, name, home_expanded(name, getattr(self, name)))
        if self.resume is not None:
            # A boolean is what a program writes, and what YAML makes of the flag.
            self.resume = {"true": "true", "false": None}.get(str(self.resume).lower(), str(self.resume))
        if self.inference_delay is not None:
            self.inference_delay = str(self.inference_delay)

    def check_workers(self) -> None:
        """The part of the validation that is about workers.

        Raises:
            ConfigError: One line that names the flag and the remedy.
        """
        self._check_runner()
        if self.n_envs is not None:
            self.n_envs = str(self.n_envs)
            _require(
                self.n_envs == "auto" or (self.n_envs.isdecimal() and int(self.n_envs) >= 1),
                f"--n_envs must be a number of simulators, 1 or more, or auto, got {self.n_envs}",
            )
            for name in ("trace", "stop_when", "record_dataset", "display_data"):
                # In the order of the plan, which several simulators do not keep.
                several = "--runner=ray" if self.runner == "ray" else "--n_envs"
                _require(not getattr(self, name), f"--{name} follows one simulator in one process: leave {several} out")
        _require(self.max_batch >= 1, f"--max_batch must be at least 1, got {self.max_batch}")
        _require(
            self.max_batch == 1 or self.server_address is None,
            "--max_batch is for a server of this run's own: give it to async-delta-serve",
        )
        _require(self.max_retries >= 0, f"--max_retries must not be negative, got {self.max_retries}")
        _require(self.episode_timeout_s > 0, f"--episode_timeout_s must be positive, got {self.episode_timeout_s}")

    def _check_runner(self) -> None:
        _one_of("runner", self.runner, "processes", "ray")
        _require(self.runner == "ray" or self.ray_address is None, "--ray_address is for --runner=ray: add that")
        if self.runner == "ray" and self.n_envs is None:
            self.n_envs = "auto"
        if self.num_servers is not None:
            self._check_servers(str(self.num_servers))
        if self.runner != "ray":
            return
        _require(
            not (self.ray_address or "").startswith("ray://"),
            f"--ray_address={self.ray_address}: Ray's client protocol is not spoken; run the command on a node of the "
            "cluster, with --ray_address=auto",
        )
        _require(
            self.server_address is not None or self.policy_device.partition(":")[2] in ("", "0"),
            f"--policy_device={self.policy_device}: Ray gives each server its GPU, so say cuda, or cpu",
        )
        _require(self.client_device == "cpu", "--client_device: workers ask Ray for no device; leave it out")
        _require(
            self.grpc.image_encoding != "jpeg" or self.server_address is not None,
            "--grpc.image_encoding=jpeg changes frames between nodes and not within one, so that results would depend "
            "on who runs what; png does not",
        )

    def _check_servers(self, wanted: str) -> None:
        self.num_servers = wanted
        _require(
            wanted == "auto" or (wanted.isdecimal() and int(wanted) >= 1),
            f"--num_servers must be a number of servers, 1 or more, or auto, got {wanted}",
        )
        _require(
            self.server_address is None,
            "--num_servers is for servers of this run's own, and --server_address names one that is there already",
        )
        _require(self.n_envs is not None, "--num_servers is for the servers of several simulators: add --n_envs")
        _require(
            self.runner == "ray" or wanted == "1" or ":" not in self.policy_device,
            f"--policy_device={self.policy_device} names one device, and --num_servers={wanted} gives each server its "
            "own GPU: say cuda, or leave --num_servers out",
        )

    def _check_folder(self) -> None:
        if self.resume is None:
            return
        _require(not self.overwrite, "--resume keeps what --overwrite=true replaces: give one of them")
        if self.resume != "true":
            folder = Path(self.resume).expanduser()
            _require(
                self.output_dir in (None, folder),
                f"--resume={self.resume} is another folder than --output_dir={self.output_dir}",
            )
            self.output_dir = folder
        _require(self.output_dir is not None, "--resume=true needs --output_dir, or name the folder: --resume=FOLDER")

    def _check_numbers(self) -> None:
        for name, declared in self.__dataclass_fields__.items():
            value = getattr(self, name)
            _require(
                not isinstance(value, float) or math.isfinite(value), f"--{name} must be a finite number, got {value}"
            )
            _require(
                value is not None or str(declared.type) not in ("int", "float", "bool", "str"),
                f"--{name} must have a value: leave it out for the default, {declared.default}",
            )
        _require(
            0 <= self.seed < _SEEDS - self.n_episodes,
            f"--seed must be 0 or more, and below 2**32 with the episodes added, got {self.seed}",
        )
        self._check_environment()

    def _check_environment(self) -> None:
        """What LeRobot's own configurations do not check, and find out late or never."""
        if self.env is None:
            return
        for name, value in vars(self.env).items():
            if name == "fps" or (value is not None and name.endswith(("episode_length", "_height", "_width"))):
                usable = isinstance(value, (int, float)) and math.isfinite(value) and value > 0
                _require(usable, f"--env.{name} must be a positive number, got {value}")

    def _check_delay(self) -> None:
        given = [
            f"--{name}"
            for name in ("inference_delay", "inference_delay_s", "inference_delay_trace")
            if getattr(self, name) is not None
        ]
        _require(len(given) <= 1, f"give one of {' and '.join(given)}, not both")
        if self.clock == "realtime":
            _require(
                not given, f"{' '.join(given)} needs --clock=simulated: in the realtime clock a delay is what it is"
            )
            return
        if not given:
            self.inference_delay = "auto"
        if self.inference_delay is not None and self.inference_delay != "auto":
            _require(
                self.inference_delay.isdecimal(),
                f"--inference_delay must be a number of steps, 0 or more, or auto, got {self.inference_delay}",
            )
        if self.inference_delay_s is not None:
            _require(self.inference_delay_s >= 0, f"--inference_delay_s must not be negative: {self.inference_delay_s}")
        _require(self.one_request_in_flight, "--one_request_in_flight=false has no meaning in the simulated clock")
        _require(
            self.must_go == "always",
            "--must_go=queue_empty needs --clock=realtime: the simulated clock waits for answers that the server drops",
        )

    def _check_address(self) -> None:
        if self.server_address is not None and "://" in self.server_address:
            scheme = split_uri(self.server_address)[0]
            _require(
                self.transport in (None, scheme), f"--transport={self.transport} cannot reach {self.server_address}"
            )
            self.transport = scheme
        elif self.transport is None:
            # Shared memory needs Linux; to another host there is only gRPC.
            self.transport = "shm" if self.server_address is None and sys.platform == "linux" else "grpc"
        _require(
            self.transport in known_schemes(),
            f"unknown --transport={self.transport}; known are: {', '.join(known_schemes())}",
        )
        _require(self.server_address != "", "--server_address must not be empty; leave it out for a server of its own")

    @property
    def servers_wanted(self) -> int | None:
        """The number of policy servers, where the user says one."""
        return None if self.num_servers in (None, "auto") else int(self.num_servers or 1)

    @property
    def uri(self) -> str | None:
        """Where to connect to, or None for a server of its own."""
        if self.server_address is None or "://" in self.server_address:
            return self.server_address
        return f"{self.transport}://{self.server_address}"

    @property
    def shares_files(self) -> bool:
        """Whether the server sees this machine's files, so that a path to a checkpoint can be checked here.

        Loads the transport.
        """
        if self.uri is None:
            return True
        scheme, address = split_uri(self.uri)
        return backend(scheme).listener.reach != "network" or is_loopback(address)

    def transport_options(self) -> TransportOptions:
        """The deadlines.

        Raises:
            ConfigError: One is not positive, or longer than any wait.
        """
        try:
            return TransportOptions(
                connect_timeout_s=self.connect_timeout_s,
                setup_timeout_s=self.setup_timeout_s,
                inference_timeout_s=self.inference_timeout_s,
                reconnect_timeout_s=self.reconnect_timeout_s,
                link=LinkOptions(self.grpc, self.tls),
            )
        except InvalidMessageError as exc:
            raise ConfigError(f"--{exc}") from exc

    def environment_options(self) -> EnvironmentOptions:
        """What is wished of the environments, besides their own configuration."""
        return EnvironmentOptions(self.success_key, self.render_device, self.render == "on_demand")

    def control_options(self) -> ControlOptions:
        """What the control loop needs to know of all this."""
        return ControlOptions(
            chunk_size_threshold=self.chunk_size_threshold,
            must_go=self.must_go,
            one_request_in_flight=self.one_request_in_flight,
            on_starvation=self.on_starvation,
            render="always" if self.record_dataset is not None else self.render,
            client_device=self.client_device,
        )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _one_of(name: str, value: str, *known: str) -> None:
    _require(value in known, f"unknown --{name}={value}; known are: {', '.join(known)}")
