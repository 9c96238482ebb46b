"""http and https URLs -> bytes, for whoever serves other people's prompts: nothing but public addresses is reached.

A host's name is looked up once, every address that comes back is checked, and the connection goes to one of the
checked addresses, never to the name again: a name that answers differently the second time gains nothing. TLS still
asks for the name and verifies the certificate against it. A redirect is a new URL, checked like the first. The proxy
variables of the environment are not read. Bodies never appear in messages, and neither do queries, which hold keys.
"""

import io
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any, cast
from urllib.parse import quote, urljoin, urlsplit

from higgs_audio.audio.limits import AudioLimits
from higgs_audio.errors import AudioError

ENVIRONMENT = "HIGGS_AUDIO_ALLOW_PRIVATE_URLS"
PORTS = {"http": 80, "https": 443}
BLOCK_BYTES = 1 << 16
MAX_URL = 8192  # characters, as common servers have it
CONNECT_SECONDS = 10.0  # for one of several addresses, so that a dead one leaves time for the next
REDIRECTS = (301, 302, 303, 307, 308)
_HEADERS = {"User-Agent": "higgs-audio", "Accept": "audio/*, */*;q=0.1", "Accept-Encoding": "identity"}
# A name or a bracketed IPv6 address, and a port. No user, no backslash, no second port, no zone, no Unicode digits.
_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?", re.ASCII)
_NAT64 = IPv6Network("64:ff9b::/96")  # IPv4 in the last 32 bits, reached through a translator
# Addresses at which clouds answer their own machines, and which look public, to older Pythons at least.
_HOST_SERVICES = (IPv4Network("168.63.129.16/32"), IPv4Network("192.0.0.0/24"))

Address = tuple[int, tuple[Any, ...]]  # family, and what `socket.connect` takes; its first entry is a numeric address


def resolve(host: str, port: int) -> Sequence[Address]:
    """All addresses of a host, as the system gives them."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]


def is_public(address: str) -> bool:
    """Whether anybody on the internet reaches this numeric address.

    >>> [is_public(address) for address in ("93.184.216.34", "127.0.0.1", "169.254.169.254", "::ffff:8.8.8.8")]
    [True, False, False, False]
    """
    try:
        found = ip_address(address)
    except ValueError:  # a name, or an address with a zone
        return False
    if isinstance(found, IPv6Address):
        if found in _NAT64:
            return is_public(str(IPv4Address(int(found) & 0xFFFFFFFF)))
        if found.ipv4_mapped or found.sixtofour or found.teredo or found.is_site_local:
            return False
    special = found.is_private or found.is_loopback or found.is_link_local or found.is_multicast
    special = (
        special or found.is_reserved or found.is_unspecified or any(found in network for network in _HOST_SERVICES)
    )
    return found.is_global and not special  # shared addresses (100.64.0.0/10) are neither global nor private


@dataclass(frozen=True)
class Door:
    """What stands between a URL and the network; tests put their own resolver and rule here."""

    resolve: Callable[[str, int], Sequence[Address]] = resolve
    admits: Callable[[str], bool] = is_public
    context: ssl.SSLContext = field(default_factory=ssl.create_default_context)


def fetch(url: str, limits: AudioLimits | None = None, door: Door | None = None) -> bytes:
    """The body behind an http or https URL.

    Args:
        url: its host is written in ASCII; no user, no password.
        limits: of size, time, redirects, and whether private addresses may be reached; the defaults when None.
        door: resolver, rule of addresses and TLS context; the system's when None.

    Raises:
        AudioError: another scheme, a malformed URL, an address that is not public, too many redirects, a status other
            than 200, a compressed or broken body, one that is too large, or no end within the time.
    """
    limits, door = limits or AudioLimits(), door or Door()
    deadline = time.monotonic() + limits.timeout_seconds
    for _ in range(limits.max_redirects + 1):
        target = _parse(url)
        try:
            answer = _get(target, limits, door, deadline)
        except TimeoutError as error:
            seconds = f"{limits.timeout_seconds:g} seconds"
            raise AudioError(f"{target} did not arrive within {seconds}; download it and give its path") from error
        except ssl.SSLError as error:
            raise AudioError(f"{target} has no valid certificate ({error.reason}); download it yourself") from error
        except (HTTPException, OSError, UnicodeError) as error:
            raise AudioError(f"{target} cannot be fetched: {_reason(error)}. Check the URL, or try again") from error
        if isinstance(answer, bytes):
            return answer
        url = urljoin(url, answer)
    raise AudioError(f"{target} is the end of more than {limits.max_redirects} redirects; give the URL they lead to")


def _reason(error: BaseException) -> str:
    """What went wrong, in words of this side: an exception of http.client may quote what the server sent."""
    return (getattr(error, "strerror", None) or type(error).__name__) if isinstance(error, OSError) else "it broke off"


@dataclass(frozen=True)
class _Target:
    """A URL, taken apart."""

    scheme: str
    host: str
    port: int
    path: str  # and query

    def __str__(self) -> str:
        return f"'{self.scheme}://{self.host}:{self.port}{self.path.partition('?')[0]:.100}'"


def _parse(url: str) -> _Target:
    if not isinstance(url, str):
        raise AudioError(f"the URL is a {type(url).__name__}; give a string like https://example.org/voice.wav")
    if len(url) > MAX_URL or "\\" in url or re.search(r"[\x00-\x20\x7f]", url):
        raise AudioError(f"a URL of {len(url)} characters is too long, or holds a space, a backslash or a control code")
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise AudioError("the URL is malformed; give one like https://example.org/voice.wav") from error
    if parts.scheme not in PORTS:
        raise AudioError(f"URLs of the scheme {parts.scheme!r:.20} are not fetched; give http or https, or a path")
    match = _AUTHORITY.fullmatch(parts.netloc)
    port = int(match[3] or PORTS[parts.scheme]) if match else 0
    if not match or not 0 < port < 1 << 16:
        raise AudioError("the URL's host is malformed; give a plain name and a port, no user and no password, in ASCII")
    query = f"?{parts.query}" if parts.query else ""
    path = quote((parts.path or "/") + query, safe="/?%:@!$&'()*+,;=~[]-._")
    return _Target(parts.scheme, match[1] or match[2], port, path)


def _get(target: _Target, limits: AudioLimits, door: Door, deadline: float) -> bytes | str:
    """One request: the body, or where it is to be found instead."""
    addresses = _look_up(target, limits, door, deadline)
    with _connect(target, addresses, door, deadline) as sock:
        connection = HTTPConnection(target.host, target.port)
        connection.sock = cast(socket.socket, _Timed(sock, deadline))
        default = target.port == PORTS[target.scheme]
        host = f"[{target.host}]" if ":" in target.host else target.host
        host = host if default else f"{host}:{target.port}"
        connection.request("GET", target.path, headers={"Host": host, "Connection": "close", **_HEADERS})
        with connection.getresponse() as response:
            if response.status in REDIRECTS and response.headers["Location"]:
                return str(response.headers["Location"])
            return _read_body(response, target, limits)


def _look_up(target: _Target, limits: AudioLimits, door: Door, deadline: float) -> Sequence[Address]:
    """The host's addresses, all of them admitted."""
    addresses = _within(lambda: door.resolve(target.host, target.port), deadline)
    allowed = limits.allow_private_urls
    if allowed is None:
        allowed = os.environ.get(ENVIRONMENT, "") == "1"
    if not addresses or not (allowed or all(door.admits(str(address[0])) for _, address in addresses)):
        raise AudioError(
            f"{target} is not at a public address; download it and give its path, or allow such addresses with "
            f"allow_private_urls=True or {ENVIRONMENT}=1"
        )
    return addresses


def _within(work: Callable[[], Sequence[Address]], deadline: float) -> Sequence[Address]:
    """The result of a call that cannot be interrupted, such as the system's resolver, if it comes in time."""
    results: list[Sequence[Address] | BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except (OSError, UnicodeError) as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(_left(deadline))
    if not results:
        raise TimeoutError
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


def _connect(target: _Target, addresses: Sequence[Address], door: Door, deadline: float) -> socket.socket:
    """A connection to the first of the addresses that answers; with TLS, to the host by its name."""
    failure: OSError = OSError()
    for family, address in addresses:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(min(CONNECT_SECONDS, _left(deadline)))
            sock.connect(address)
            sock.settimeout(_left(deadline))
            return door.context.wrap_socket(sock, server_hostname=target.host) if target.scheme == "https" else sock
        except OSError as error:
            sock.close()
            failure = error
    raise failure


def _left(deadline: float) -> float:
    """Seconds until then.

    Raises:
        TimeoutError: it is over.
    """
    if (left := deadline - time.monotonic()) <= 0:
        raise TimeoutError
    return left


class _Reader(io.RawIOBase):
    """What a connected socket receives until a deadline: a server that sends a byte a minute is not waited for."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock, self._deadline = sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(_left(self._deadline))
        return self._sock.recv_into(buffer)


@dataclass(frozen=True)
class _Timed:
    """A connected socket as http.client uses one, every operation of which ends at one deadline."""

    sock: socket.socket
    deadline: float

    def sendall(self, data: bytes) -> None:
        self.sock.settimeout(_left(self.deadline))
        self.sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        """What the answer is read from."""
        assert mode == "rb"
        return io.BufferedReader(_Reader(self.sock, self.deadline))

    def close(self) -> None:
        """Left to the owner of the socket: http.client closes it before the body is read."""


def _read_body(response: HTTPResponse, target: _Target, limits: AudioLimits) -> bytes:
    if response.status != 200:
        raise AudioError(f"{target} answers with the status {response.status}; check the URL")
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise AudioError(f"{target} is sent compressed, which was not asked for; download it and give its path")
    if response.length is not None and response.length > limits.max_bytes:
        raise AudioError(f"{target} has more than {limits.max_bytes:,} bytes; give a smaller file")
    body = bytearray()
    while block := response.read(min(BLOCK_BYTES, limits.max_bytes + 1 - len(body))):
        body += block
        if len(body) > limits.max_bytes:
            raise AudioError(f"{target} has more than {limits.max_bytes:,} bytes; give a smaller file")
    if response.length:  # what Content-Length promised beyond it
        raise AudioError(f"{target} broke off {response.length} bytes before its end; try again")
    return bytes(body)
