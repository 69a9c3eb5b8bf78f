"""`LinkOptions`: how the two sides of a link trust each other, and which of its dialects they speak."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from async_delta_inference.errors import ConfigError

__all__ = ["DIALECTS", "IMAGE_ENCODINGS", "TOKEN_VARIABLE", "GrpcOptions", "LinkOptions", "TlsOptions"]

DIALECTS = ("auto", "native", "lerobot")
IMAGE_ENCODINGS = ("raw", "png", "jpeg")

TOKEN_VARIABLE = "ASYNC_DELTA_TOKEN"
"""Environment variable that holds the token, where no file does."""

_SHORTEST_TOKEN = 16
_LONGEST_TOKEN = 512


@dataclass(frozen=True)
class GrpcOptions:
    """How ``grpc://`` is spoken, and with which frames and token.

    Args:
        dialect: native: our own protocol, without pickle; lerobot: LeRobot's; auto: a server speaks both, a client
            native where the server does.
        image_encoding: Of a client's frames, in the native dialect: raw, png (the same pixels) or jpeg (not the same).
        token_file: Holds the token that client and server share; without it, `TOKEN_VARIABLE` may.

    Raises:
        ConfigError: A name is unknown.
    """

    dialect: str = "auto"
    """auto, native (our own protocol, no pickle) or lerobot (LeRobot's); auto: native where both sides speak it."""
    image_encoding: str = "raw"
    """Of frames on the way to the server, natively: raw, png (the same pixels) or jpeg (not quite the same)."""
    token_file: Path | None = None
    """File with the token that client and server share; none: that in ASYNC_DELTA_TOKEN, if there is one."""

    def __post_init__(self) -> None:
        for name, known in (("dialect", DIALECTS), ("image_encoding", IMAGE_ENCODINGS)):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(f"unknown --grpc.{name}={value}; known are: {', '.join(known)}")
        if self.image_encoding != "raw" and self.dialect == "lerobot":
            raise ConfigError("--grpc.image_encoding needs our own protocol: leave --grpc.dialect=lerobot out")

    def token(self) -> str | None:
        """The token; None where there is none.

        Raises:
            ConfigError: The file cannot be read, or what it or the variable holds is no token.
        """
        if self.token_file is None:
            origin, text = TOKEN_VARIABLE, os.environ.get(TOKEN_VARIABLE)
            if text is None:
                return None
        else:
            origin = f"--grpc.token_file={self.token_file}"
            try:
                text = self.token_file.read_text()
            except (OSError, ValueError) as exc:
                raise ConfigError(f"{origin} cannot be read: {exc}") from exc
        token = text.strip()
        if not _SHORTEST_TOKEN <= len(token) <= _LONGEST_TOKEN or not token.isascii() or not token.isprintable():
            raise ConfigError(
                f"{origin} must hold a token of {_SHORTEST_TOKEN} to {_LONGEST_TOKEN} printable ASCII characters, such "
                "as: openssl rand -hex 32"
            )
        return token


@dataclass(frozen=True)
class TlsOptions:
    """Certificates, as PEM files. A server needs ``cert`` and ``key``; a client ``ca``, where no public one signed.

    Args:
        cert: Certificate of this side's, with its chain.
        key: That certificate's private key.
        ca: Whom to trust: a client the server's certificate; a server that has it asks clients for certificates, too.

    Raises:
        ConfigError: A certificate without its key, or the other way round.
    """

    cert: Path | None = None
    """PEM file of this side's certificate; a server with it speaks TLS."""
    key: Path | None = None
    """PEM file of the certificate's private key."""
    ca: Path | None = None
    """PEM file of the authority that signed the other side's certificate; a client with it speaks TLS."""

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise ConfigError("--tls.cert and --tls.key belong together")

    @property
    def is_used(self) -> bool:
        """Whether this side speaks TLS."""
        return self.cert is not None or self.ca is not None

    def read(self, name: str) -> bytes | None:
        """The bytes of one of the files; None where it is not named.

        Raises:
            ConfigError: It cannot be read.
        """
        path: Path | None = getattr(self, name)
        if path is None:
            return None
        try:
            return path.read_bytes()
        except OSError as exc:
            raise ConfigError(f"--tls.{name}={path} cannot be read: {exc}") from exc


@dataclass(frozen=True)
class LinkOptions:
    """What both sides of a link may be told of it; a transport takes what concerns it.

    Args:
        grpc: Of ``grpc://``.
        tls: Certificates.
        insecure: Whether a server may listen beyond this machine with neither a token nor TLS.
    """

    grpc: GrpcOptions = field(default_factory=GrpcOptions)
    tls: TlsOptions = field(default_factory=TlsOptions)
    insecure: bool = False
