"""What is said in the handshake.

::

    client                                   server
    hello: version, schema, policy, session ->
                                            <- offer: sizes and slot counts (the segment is there), or refused
    attached                                ->
                                            <- ready (the policy is loaded): what is served, and how it computes; or
                                               refused

Later the server may say ``bye`` with a reason before it ends a session; the client says nothing more.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from async_delta_inference.errors import InvalidMessageError, PeerGoneError, ProtocolError, SetupRefusedError
from async_delta_inference.transport.action_prefix import PrefixLimits
from async_delta_inference.transport.computation import Computation, checked_computation
from async_delta_inference.transport.messages import MAX_TASK_BYTES, ObservationFeatures, SessionSpec
from async_delta_inference.transport.policy_options import PolicyOptions
from async_delta_inference.transport.shm.shared.fields import Fields
from async_delta_inference.transport.shm.shared.layout import MAX_ERROR_BYTES, SegmentLayout

__all__ = [
    "ATTACHED",
    "Hello",
    "Message",
    "bye",
    "check_kind",
    "offer",
    "read_offer",
    "read_ready",
    "ready",
    "reason_of",
    "refused",
]

Message = Mapping[str, Any]

PROTOCOL = "async-delta-shm"
PROTOCOL_VERSION = 6
ATTACHED: Message = {"kind": "attached"}

SCALARS = [
    ["timestep", "int64"],
    ["episode", "int64"],
    ["timestamp_s", "float64"],
    ["must_go", "bool"],
    ["inference_delay", "31 bits, or none"],
    ["task", f"utf-8 of at most {MAX_TASK_BYTES} bytes"],
]
"""The part of the schema that is the same in every session."""

_SESSION = re.compile(r"[0-9a-f]{16}")
_MAX_REASON = 8192
_MAX_NAME = 256
_MAX_PATH = 4096
_MAX_SIZE = 1 << 40


@dataclass(frozen=True)
class Hello:
    """The client's first message.

    Args:
        session: 16 hexadecimal digits, chosen at random; the segment is named after it.
        spec: What is asked for, the observation schema included.
        pid: Of the client, for messages to humans.
    """

    session: str
    spec: SessionSpec
    pid: int

    def to_message(self) -> Message:
        """The message that `from_message` reads."""
        spec = self.spec
        return {
            "kind": "hello",
            "protocol": PROTOCOL,
            "version": PROTOCOL_VERSION,
            "package": package_version(),
            "session": self.session,
            "pid": self.pid,
            "scalars": SCALARS,
            "arrays": _arrays(spec.features),
            "state_names": list(spec.features.state_names),
            "actions": ["float32", spec.actions_per_chunk, spec.action_dim],
            "policy": [spec.policy_type, spec.pretrained_name_or_path, spec.device],
            "options": spec.options.to_message(),
        }

    @classmethod
    def from_message(cls, message: Message) -> Hello:
        """Read and check.

        Raises:
            SetupRefusedError: Another version or schema than this side's; both are named.
            ProtocolError: Not a hello at all.
        """
        _check_version(message)
        names = {"protocol", "version", "package", "session", "pid", "scalars", "arrays", "state_names", "actions"}
        fields = Fields(message, "hello", names | {"policy", "options"})
        session = fields.text("session", 16)
        if not _SESSION.fullmatch(session):
            raise SetupRefusedError("the session must be named by 16 hexadecimal digits")
        if fields.items("scalars") != SCALARS:
            raise _schema_mismatch("scalars", message["scalars"], SCALARS)
        dtype, rows, columns = fields.items("actions", 3)
        if dtype != "float32":
            raise _schema_mismatch("actions", message["actions"], ["float32", "n", "A"])
        policy_type, path, device = (fields.text_of("policy", x, _MAX_PATH) for x in fields.items("policy", 3))
        try:
            spec = SessionSpec(
                policy_type,
                path,
                fields.integer_of("actions", rows, 1, _MAX_SIZE),
                _read_features(fields),
                fields.integer_of("actions", columns, 1, _MAX_SIZE),
                device,
                PolicyOptions.from_message(message["options"]),
            )
        except InvalidMessageError as exc:
            raise SetupRefusedError(f"the server refuses the schema: {exc}") from exc
        return cls(session, spec, fields.integer("pid", 0, 1 << 32))


def offer(layout: SegmentLayout) -> Message:
    """The server's answer to a hello: the segment is there."""
    return {
        "kind": "offer",
        "pid": os.getpid(),
        "segment_bytes": layout.segment_bytes,
        "observation_slots": layout.observation_slots,
        "action_slots": layout.action_slots,
        "n_obs_steps": layout.n_obs_steps,
        "executed_actions": layout.prefix.executed,
        "committed_actions": layout.prefix.committed,
        "max_task_bytes": MAX_TASK_BYTES,
        "max_error_bytes": MAX_ERROR_BYTES,
    }


def read_offer(message: Message, spec: SessionSpec) -> SegmentLayout:
    """The layout that the server's offer means.

    Raises:
        SetupRefusedError: The server refused, or its limits or sizes are not this side's.
        ProtocolError: Not an offer at all.
    """
    check_kind(message, "offer")
    limits = {"max_task_bytes": MAX_TASK_BYTES, "max_error_bytes": MAX_ERROR_BYTES}
    sizes = {"segment_bytes", "observation_slots", "action_slots", "n_obs_steps"}
    sizes |= {"executed_actions", "committed_actions"}
    fields = Fields(message, "offer", {"pid", *sizes, *limits})
    theirs = {name: fields.integer(name, 0, _MAX_SIZE) for name in sizes | limits.keys()}
    try:
        layout = SegmentLayout.of_session(
            spec,
            theirs["observation_slots"],
            theirs["action_slots"],
            theirs["n_obs_steps"],
            PrefixLimits(theirs["executed_actions"], theirs["committed_actions"]),
        )
    except InvalidMessageError as exc:
        raise SetupRefusedError(f"the server offers a segment that cannot be: {exc}") from exc
    ours = {"segment_bytes": layout.segment_bytes, **limits}
    if differing := sorted(name for name, value in ours.items() if theirs[name] != value):
        raise SetupRefusedError(
            f"server and client lay the segment out differently: {[(n, theirs[n], ours[n]) for n in differing]}"
        )
    return layout


def ready(description: str, computation: Computation | None = None) -> Message:
    """The policy is loaded and the session begins; ``description`` says what is served."""
    return {"kind": "ready", "serves": _sayable(description), "computation": dict(computation or {})}


def read_ready(message: Message) -> tuple[str, Computation]:
    """What the server says that it serves, and how that computes.

    Raises:
        SetupRefusedError, PeerGoneError, ProtocolError: As `check_kind`.
    """
    check_kind(message, "ready")
    serves = Fields(message, "ready", {"serves", "computation"}).text("serves", _MAX_REASON)
    try:
        return serves, checked_computation(message["computation"])
    except InvalidMessageError as exc:
        raise ProtocolError(f"ready: {exc}") from exc


def check_kind(message: Message, kind: str) -> None:
    """See to it that a message is what is due, and turn a refusal into an error.

    Raises:
        SetupRefusedError: The server refused; its reason.
        PeerGoneError: It said bye, since it is being stopped.
        ProtocolError: Anything else.
    """
    if message.get("kind") == "refused":
        raise SetupRefusedError(Fields(message, "refused", {"reason"}).text("reason", _MAX_REASON))
    if message.get("kind") == "bye":
        raise PeerGoneError(f"the server ended the session before it began: {reason_of(message)}")
    if message.get("kind") != kind:
        raise ProtocolError(f"expected the message {kind!r}, got {str(message.get('kind'))[:80]!r}")


def refused(reason: str) -> Message:
    """The server will not serve this client."""
    return {"kind": "refused", "reason": _sayable(reason)}


def bye(reason: str) -> Message:
    """The server ends the session."""
    return {"kind": "bye", "reason": _sayable(reason)}


def reason_of(message: Message) -> str:
    """Why the server said bye.

    Raises:
        ProtocolError: It said something else.
    """
    return Fields(message, "bye", {"reason"}).text("reason", _MAX_REASON)


def package_version() -> str:
    """Version of this package, for messages to humans."""
    try:
        return version("async-delta-inference")
    except PackageNotFoundError:
        return "unknown"


def _sayable(reason: str) -> str:
    # The name of a file on the server may be bytes that no text can hold.
    return reason[:_MAX_REASON].encode("utf-8", "replace").decode()


def _check_version(message: Message) -> None:
    theirs = (message.get("protocol"), message.get("version"))
    if message.get("kind") == "hello" and theirs != (PROTOCOL, PROTOCOL_VERSION):
        raise SetupRefusedError(
            f"the client speaks {str(theirs[0])[:80]} version {str(theirs[1])[:20]} "
            f"(package {str(message.get('package'))[:40]}), the server {PROTOCOL} version {PROTOCOL_VERSION} "
            f"(package {package_version()}): install the same version on both sides"
        )


def _arrays(features: ObservationFeatures) -> list[list[Any]]:
    images = [[f"images.{name}", "uint8", list(shape)] for name, shape in features.image_shapes]
    return [["state", "float32", [features.state_dim]], *images]


def _read_features(fields: Fields) -> ObservationFeatures:
    names = tuple(fields.text_of("state_names", name, _MAX_NAME) for name in fields.items("state_names"))
    arrays = fields.items("arrays")
    images = {}
    for array in arrays[1:]:
        name, _, shape = fields.items_of("arrays", array, 3)
        camera = fields.text_of("arrays", name, _MAX_NAME).removeprefix("images.")
        height, width, channels = (
            fields.integer_of("arrays", side, 1, _MAX_SIZE) for side in fields.items_of("arrays", shape, 3)
        )
        images[camera] = (height, width, channels)
    features = ObservationFeatures(names, images)
    if arrays != _arrays(features):
        raise _schema_mismatch("arrays", arrays, _arrays(features))
    return features


def _schema_mismatch(what: str, theirs: object, ours: object) -> SetupRefusedError:
    return SetupRefusedError(f"the client's {what} are {str(theirs)[:1000]}, the server expects {str(ours)[:1000]}")
