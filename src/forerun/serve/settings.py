"""What an operator decides about a server, checked where it is built."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from forerun.errors import OptionError


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """Where a server listens, whom it lets in and how long anything may take.

    `name` is what the model is called in the API. `key_hashes` are SHA-256 digests of API keys;
    without any, nobody but this machine may connect. `default_tokens` is how much a chat answer may
    have when its request does not say. `request_s` bounds a request from its arrival to its last
    token, `body_s` the arrival of its body, `drain_s` what running requests get after SIGTERM.
    `allows_faults`: the page may let the drafter fail, to show what happens then.

    Raises:
        OptionError: a value outside its range, or an open address without a key.
    """

    name: str
    host: str = "127.0.0.1"
    port: int = 8000
    key_hashes: tuple[bytes, ...] = ()
    max_body_bytes: int = 4 << 20
    default_tokens: int = 2048
    request_s: float = 600.0
    body_s: float = 30.0
    ping_s: float = 15.0
    drain_s: float = 30.0
    retry_s: float = 1.0
    allows_faults: bool = False

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > 200 or not self.name.isprintable():
            raise OptionError(
                "the model's name must have 1 to 200 printable characters: give another --name"
            )
        if not 0 <= self.port <= 65535:
            raise OptionError(f"port must be in [0, 65535], found {self.port}")
        for name in ("request_s", "body_s", "ping_s", "drain_s"):
            if not 0.0 < getattr(self, name) <= 86400.0:
                raise OptionError(f"{name} must be in (0, 86400], found {getattr(self, name)}")
        if not self.is_local and not self.key_hashes:
            raise OptionError(
                f"host {self.host} can be reached from other machines, and there is no API key:"
                " give --api-key-file FILE, or listen on 127.0.0.1"
            )

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)


def host_of(text: str) -> str:
    """A host as sockets take it; an IPv6 address may stand in brackets, as in a URL.

    Raises:
        OptionError: brackets or colons, and no IPv6 address.
    """
    if not set(text) & set("[]:"):
        return text
    host = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    try:
        ipaddress.IPv6Address(host)
    except ValueError as error:
        raise OptionError(
            f"--host {text} is neither a name nor an address: write one of the two, like 127.0.0.1"
            " or ::1, and the port with --port"
        ) from error
    return host


def authority_of(host: str, port: int) -> str:
    """Host and port as they stand in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether a host's name or address can only mean this machine."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
