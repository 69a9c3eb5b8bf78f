"""Who may use a server: tokens, certificates, and what a server that speaks only our own protocol never does."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from lerobot.transport import services_pb2
from robot_calls import RobotCalls

from async_delta_inference.errors import ConfigError, PeerUnreachableError, SetupRefusedError
from async_delta_inference.transport import (
    GrpcOptions,
    LinkOptions,
    PolicyNeeds,
    Server,
    TlsOptions,
    TransportOptions,
    connect,
    serve,
)
from async_delta_inference.transport.grpc.server import admission
from async_delta_inference.transport.link_options import TOKEN_VARIABLE
from async_delta_inference.transport.testing import (
    CONTRACT_POLICY,
    WAIT_S,
    ScriptedPolicy,
    contract_observation,
    expect_answer,
)

ANYWHERE = "grpc://127.0.0.1:0"
TOKEN = "0123456789abcdef" * 2


class Attack:
    """The known one: whoever unpickles it runs a command of the sender's."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self._trace}",)


def expect_service(server: Server, options: TransportOptions) -> None:
    with connect(server.uris[0], CONTRACT_POLICY, options) as client:
        client.send_observation(contract_observation(1))
        expect_answer(client.receive_actions(WAIT_S), 1)


def hasty(link: LinkOptions) -> TransportOptions:
    return TransportOptions(connect_timeout_s=2.0, reconnect_timeout_s=0.0, link=link)


# Pickles.


@pytest.mark.parametrize("dialect", ["native", "auto"])
def test_pickle_that_runs_a_command_runs_nothing(tmp_path: Path, dialect: str) -> None:
    trace = tmp_path / "was_run"
    attack = pickle.dumps(Attack(trace))
    pickle.loads(pickle.dumps(Attack(tmp_path / "works")))
    assert (tmp_path / "works").exists()
    policy = ScriptedPolicy()
    policy.ask_for(PolicyNeeds("scripted", action_dim=3))
    with serve(policy, ANYWHERE, link=LinkOptions(GrpcOptions(dialect=dialect))) as server:
        robot = RobotCalls(server.uris[0])
        if dialect == "auto":
            robot.begin()
        codes = []
        for call in (
            lambda: robot.stub.SendPolicyInstructions(services_pb2.PolicySetup(data=attack), timeout=WAIT_S),
            lambda: robot.send_bytes(attack),
        ):
            with pytest.raises(grpc.RpcError) as info:
                call()
            codes.append(info.value.code())
        robot.channel.close()
        assert (set(codes) == {grpc.StatusCode.UNIMPLEMENTED}) == (dialect == "native")
        expect_service(server, TransportOptions())
    assert not trace.exists()


# Tokens.


@pytest.fixture
def token_file(tmp_path: Path) -> Path:
    file = tmp_path / "token"
    file.write_text(TOKEN + "\n")
    return file


@pytest.mark.parametrize("dialect", ["native", "lerobot"])
@pytest.mark.parametrize("given", ["", TOKEN[:-1], TOKEN + "0", TOKEN[:-1] + "0"])
def test_client_without_the_token_gets_no_further(token_file: Path, tmp_path: Path, dialect: str, given: str) -> None:
    policy = ScriptedPolicy()
    other = tmp_path / "other"
    other.write_text(given)
    with serve(policy, ANYWHERE, link=LinkOptions(GrpcOptions(token_file=token_file))) as server:
        wrong = LinkOptions(GrpcOptions(dialect=dialect, token_file=other if given else None))
        with pytest.raises(SetupRefusedError, match="asks for a token"):
            connect(server.uris[0], CONTRACT_POLICY, hasty(wrong))
        assert policy.sessions() == []
        expect_service(server, hasty(LinkOptions(GrpcOptions(dialect=dialect, token_file=token_file))))


def test_robot_has_no_token(token_file: Path) -> None:
    with serve(ScriptedPolicy(), ANYWHERE, link=LinkOptions(GrpcOptions(token_file=token_file))) as server:
        robot = RobotCalls(server.uris[0])
        for call in (robot.begin, lambda: robot.send_bytes(b"x"), robot.ask):
            with pytest.raises(grpc.RpcError) as info:
                call()
            assert info.value.code() is grpc.StatusCode.UNAUTHENTICATED
        robot.channel.close()


def test_token_may_be_in_a_variable(token_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TOKEN_VARIABLE, TOKEN)
    with serve(ScriptedPolicy(), ANYWHERE) as server:
        expect_service(server, hasty(LinkOptions()))
        monkeypatch.delenv(TOKEN_VARIABLE)
        with pytest.raises(SetupRefusedError, match="asks for a token"):
            connect(server.uris[0], CONTRACT_POLICY, hasty(LinkOptions()))
        expect_service(server, hasty(LinkOptions(GrpcOptions(token_file=token_file))))


def test_tokens_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch, token_file: Path) -> None:
    compared = []

    def compare(given: bytes, token: bytes) -> bool:
        compared.append((given, token))
        return given == token

    monkeypatch.setattr(admission.hmac, "compare_digest", compare)
    with serve(ScriptedPolicy(), ANYWHERE, link=LinkOptions(GrpcOptions(token_file=token_file))) as server:
        expect_service(server, hasty(LinkOptions(GrpcOptions(token_file=token_file))))
    assert set(compared) == {(TOKEN.encode(), TOKEN.encode())}


@pytest.mark.parametrize("text", ["", "short", "x" * 1000, "line one of it\nand line two", "ünsäglich" * 4])
def test_what_is_no_token_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "token"
    file.write_text(text)
    with pytest.raises(ConfigError, match="openssl rand -hex 32"):
        GrpcOptions(token_file=file).token()
    with pytest.raises(ConfigError, match="cannot be read"):
        GrpcOptions(token_file=tmp_path / "absent").token()


def test_token_lets_a_server_be_reached_from_other_machines(token_file: Path) -> None:
    link = LinkOptions(GrpcOptions(token_file=token_file))
    with serve(ScriptedPolicy(), "grpc://0.0.0.0:0", link=link) as server:
        port = server.uris[0].rpartition(":")[2]
        with connect(f"grpc://127.0.0.1:{port}", CONTRACT_POLICY, hasty(link)):
            pass


# Certificates.

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two authorities that know nothing of each other; each has signed itself, for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")
    for name in ("server", "stranger"):
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
                *("-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem", "-days", "2"),
                *("-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"),
            ],
            check=True,
            capture_output=True,
        )
    return folder


def tls(folder: Path, name: str, ca: str | None = None) -> TlsOptions:
    return TlsOptions(folder / f"{name}.pem", folder / f"{name}.key", None if ca is None else folder / f"{ca}.pem")


@pytest.fixture
def server(certificates: Path) -> Iterator[Server]:
    with serve(ScriptedPolicy(), ANYWHERE, link=LinkOptions(tls=tls(certificates, "server"))) as server:
        yield server


@needs_openssl
@pytest.mark.parametrize("dialect", ["native", "lerobot"])
def test_client_that_knows_the_authority_is_served(server: Server, certificates: Path, dialect: str) -> None:
    link = LinkOptions(GrpcOptions(dialect=dialect), TlsOptions(ca=certificates / "server.pem"))
    expect_service(server, hasty(link))


@needs_openssl
@pytest.mark.parametrize("ca", [None, "stranger.pem"])
def test_client_does_not_speak_to_a_server_that_it_cannot_trust(
    server: Server, certificates: Path, ca: str | None
) -> None:
    link = LinkOptions(tls=TlsOptions(ca=None if ca is None else certificates / ca))
    with pytest.raises(PeerUnreachableError):
        connect(server.uris[0], CONTRACT_POLICY, hasty(link))


@needs_openssl
def test_server_with_an_authority_asks_clients_for_certificates(certificates: Path) -> None:
    link = LinkOptions(tls=tls(certificates, "server", ca="server"))
    with serve(ScriptedPolicy(), ANYWHERE, link=link) as server:
        expect_service(server, hasty(link))
        for other in (TlsOptions(ca=certificates / "server.pem"), tls(certificates, "stranger", ca="server")):
            with pytest.raises(PeerUnreachableError):
                connect(server.uris[0], CONTRACT_POLICY, hasty(LinkOptions(tls=other)))


@needs_openssl
def test_certificates_let_a_server_be_reached_from_other_machines(certificates: Path) -> None:
    serve(ScriptedPolicy(), "grpc://0.0.0.0:0", link=LinkOptions(tls=tls(certificates, "server"))).stop()


def test_certificates_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="belong together"):
        TlsOptions(cert=tmp_path / "x")
    with pytest.raises(ConfigError, match="cannot be read"):
        serve(ScriptedPolicy(), ANYWHERE, link=LinkOptions(tls=tls(tmp_path, "absent")))
    for name in ("bad.pem", "bad.key"):
        (tmp_path / name).write_text("nonsense")
    with pytest.raises(ConfigError, match="--tls"):
        serve(ScriptedPolicy(), ANYWHERE, link=LinkOptions(tls=tls(tmp_path, "bad")))
    with pytest.raises(ConfigError, match=r"--tls\.cert"):
        serve(ScriptedPolicy(), ANYWHERE, link=LinkOptions(tls=TlsOptions(ca=tmp_path / "bad.pem")))
