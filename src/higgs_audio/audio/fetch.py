"""Downloads http and https URLs, guarded against server-side request forgery (SSRF): only public addresses are reached.

The host name is resolved once, every returned address is checked, and the socket connects to one of the checked
addresses, so a second DNS answer (DNS rebinding) has no effect. TLS still sends the host name (SNI) and verifies the
certificate against it. Every redirect is checked like the first URL. Proxy environment variables are ignored. Error
messages contain neither response bodies nor query strings, which may hold keys.
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

from higgs_audio.audio.limits import AudioLimits, size_error
from higgs_audio.errors import AudioError

__all__ = ["ALLOW_PRIVATE_URLS_ENV", "Address", "SSRFGuard", "fetch", "is_public"]

ALLOW_PRIVATE_URLS_ENV = "HIGGS_AUDIO_ALLOW_PRIVATE_URLS"
_DEFAULT_PORTS = {"http": 80, "https": 443}
_READ_BYTES = 1 << 16
_MAX_URL_CHARS = 8192  # the limit of common servers
_CONNECT_SECONDS = 10.0  # per address, so that an unreachable one leaves time for the next
_REDIRECT_STATUSES = (301, 302, 303, 307, 308)
_HEADERS = {"User-Agent": "higgs-audio", "Accept": "audio/*, */*;q=0.1", "Accept-Encoding": "identity"}
# A host name or a bracketed IPv6 address, and a port. No user, backslash, second port, zone or Unicode digits.
_AUTHORITY = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::([0-9]{1,5}))?", re.ASCII)
_NAT64 = IPv6Network("64:ff9b::/96")  # an IPv4 address in the last 32 bits, reached through NAT64
# Cloud metadata and host services whose addresses count as public, at least in older versions of Python.
_HOST_SERVICES = (IPv4Network("168.63.129.16/32"), IPv4Network("192.0.0.0/24"))

Address = tuple[int, tuple[Any, ...]]  # socket family, argument of `socket.connect` (a numeric address comes first)


def _resolve(host: str, port: int) -> Sequence[Address]:
    """Resolves a host with the system's resolver and returns all its addresses."""
    entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in entries]


def is_public(address: str) -> bool:
    """Whether a numeric address is globally reachable on the internet.

    >>> [is_public(address) for address in ("93.184.216.34", "127.0.0.1", "169.254.169.254", "::ffff:8.8.8.8")]
    [True, False, False, False]
    """
    try:
        ip = ip_address(address)
    except ValueError:  # a name, or an address with a zone
        return False
    if isinstance(ip, IPv6Address):
        if ip in _NAT64:
            return is_public(str(IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip.ipv4_mapped or ip.sixtofour or ip.teredo or ip.is_site_local:
            return False
    is_special = ip.is_private or ip.is_loopback or ip.is_link_local or ip.is_multicast
    is_special = is_special or ip.is_reserved or ip.is_unspecified or any(ip in network for network in _HOST_SERVICES)
    return ip.is_global and not is_special  # shared addresses (100.64.0.0/10) are neither global nor private


@dataclass(frozen=True)
class SSRFGuard:
    """The name resolution, address check and TLS context of downloads.

    Attributes:
        resolve: host name and port -> all addresses of the host.
        is_allowed: whether a download may connect to a numeric address.
        ssl_context: verifies the certificate of https servers.
    """

    resolve: Callable[[str, int], Sequence[Address]] = _resolve
    is_allowed: Callable[[str], bool] = is_public
    ssl_context: ssl.SSLContext = field(default_factory=ssl.create_default_context)


def fetch(url: str, limits: AudioLimits | None = None, guard: SSRFGuard | None = None) -> bytes:
    """Downloads an http or https URL and returns the response body.

    Args:
        url: with an ASCII host, without user and password.
        limits: size, time, redirects, and whether private addresses are allowed; None for the defaults.
        guard: resolver, address check and TLS context; None for those of the system.

    Raises:
        AudioError: another scheme, a malformed URL, an address that is not public, too many redirects, a status other
            than 200, a compressed, truncated or too large body, or a timeout.
    """
    limits, guard = limits or AudioLimits(), guard or SSRFGuard()
    deadline = time.monotonic() + limits.timeout_seconds
    for _ in range(limits.max_redirects + 1):
        parsed = _parse(url)
        try:
            response = _get(parsed, limits, guard, deadline)
        except TimeoutError as error:
            seconds = f"{limits.timeout_seconds:g} seconds"
            raise AudioError(f"{parsed} took longer than {seconds}; download it and give the path") from error
        except ssl.SSLError as error:
            raise AudioError(
                f"{parsed} has no valid certificate ({error.reason}); download it and give the path"
            ) from error
        except (HTTPException, OSError, UnicodeError) as error:
            raise AudioError(f"{parsed} cannot be fetched: {_reason(error)}. Check the URL, or try again") from error
        if isinstance(response, bytes):
            return response
        url = urljoin(url, response)
    raise AudioError(f"{parsed} is behind more than {limits.max_redirects} redirects; give the URL that they lead to")


def _reason(error: BaseException) -> str:
    """Describes an error without its message: exceptions of http.client may quote what the server sent."""
    if isinstance(error, OSError):
        return getattr(error, "strerror", None) or type(error).__name__
    return "the response is malformed or incomplete"


@dataclass(frozen=True)
class _ParsedURL:
    """The checked parts of a URL; `str()` of it is for error messages and omits the query."""

    scheme: str
    host: str
    port: int
    path: str  # with the query

    def __str__(self) -> str:
        return f"'{self.scheme}://{self.host}:{self.port}{self.path.partition('?')[0]:.100}'"


def _parse(url: str) -> _ParsedURL:
    if not isinstance(url, str):
        raise AudioError(f"the URL is a {type(url).__name__}; give a string like https://example.org/voice.wav")
    if len(url) > _MAX_URL_CHARS or "\\" in url or re.search(r"[\x00-\x20\x7f]", url):
        raise AudioError(
            f"the URL of {len(url)} characters is too long, or contains a space, a backslash or a control character; "
            f"give at most {_MAX_URL_CHARS} characters, percent-encoded"
        )
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise AudioError("the URL is malformed; give one like https://example.org/voice.wav") from error
    if parts.scheme not in _DEFAULT_PORTS:
        raise AudioError(f"the URL scheme {parts.scheme!r:.20} is not supported; give http or https, or a path")
    match = _AUTHORITY.fullmatch(parts.netloc)
    port = int(match[3] or _DEFAULT_PORTS[parts.scheme]) if match else 0
    if not match or not 0 < port < 1 << 16:
        raise AudioError("the URL's host is malformed; give an ASCII name and a port, without user and password")
    query = f"?{parts.query}" if parts.query else ""
    path = quote((parts.path or "/") + query, safe="/?%:@!$&'()*+,;=~[]-._")
    return _ParsedURL(parts.scheme, match[1] or match[2], port, path)


def _get(url: _ParsedURL, limits: AudioLimits, guard: SSRFGuard, deadline: float) -> bytes | str:
    """Sends one request and returns the body, or the URL of a redirect."""
    addresses = _resolve_allowed(url, limits, guard, deadline)
    with _connect(url, addresses, guard, deadline) as sock:
        connection = HTTPConnection(url.host, url.port)
        connection.sock = cast(socket.socket, _DeadlineSocket(sock, deadline))
        headers = {"Host": _host_header(url), "Connection": "close", **_HEADERS}
        connection.request("GET", url.path, headers=headers)
        with connection.getresponse() as response:
            if response.status in _REDIRECT_STATUSES and response.headers["Location"]:
                return str(response.headers["Location"])
            return _read_body(response, url, limits)


def _host_header(url: _ParsedURL) -> str:
    host = f"[{url.host}]" if ":" in url.host else url.host
    return host if url.port == _DEFAULT_PORTS[url.scheme] else f"{host}:{url.port}"


def _resolve_allowed(url: _ParsedURL, limits: AudioLimits, guard: SSRFGuard, deadline: float) -> Sequence[Address]:
    """Resolves the host; every one of its addresses must be allowed."""
    addresses = _call_until(deadline, lambda: guard.resolve(url.host, url.port))
    allow_private = limits.allow_private_urls
    if allow_private is None:
        allow_private = os.environ.get(ALLOW_PRIVATE_URLS_ENV, "") == "1"
    if not addresses or not (allow_private or all(guard.is_allowed(str(address[0])) for _, address in addresses)):
        raise AudioError(
            f"{url} is not at a public address; download it and give the path, or allow private addresses with "
            f"allow_private_urls=True or {ALLOW_PRIVATE_URLS_ENV}=1"
        )
    return addresses


def _call_until(deadline: float, function: Callable[[], Sequence[Address]]) -> Sequence[Address]:
    """Calls a function that cannot be interrupted, such as the system's resolver, in a thread.

    Raises:
        TimeoutError: the function has not returned at the deadline.
        OSError, UnicodeError: raised by the function.
    """
    results: list[Sequence[Address] | BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except (OSError, UnicodeError) as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(_remaining_seconds(deadline))
    if not results:
        raise TimeoutError
    if isinstance(results[0], BaseException):
        raise results[0]
    return results[0]


def _connect(url: _ParsedURL, addresses: Sequence[Address], guard: SSRFGuard, deadline: float) -> socket.socket:
    """Connects to the first address that accepts, with TLS for https: SNI and certificate check use the host name.

    Raises:
        OSError: no address accepts a connection; this is the error of the last address.
    """
    last_error: OSError = OSError()
    for family, address in addresses:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(min(_CONNECT_SECONDS, _remaining_seconds(deadline)))
            sock.connect(address)
            sock.settimeout(_remaining_seconds(deadline))
            return guard.ssl_context.wrap_socket(sock, server_hostname=url.host) if url.scheme == "https" else sock
        except OSError as error:
            sock.close()
            last_error = error
    raise last_error


def _remaining_seconds(deadline: float) -> float:
    """Returns the seconds until `deadline`, a time of `time.monotonic`.

    Raises:
        TimeoutError: the deadline has passed.
    """
    if (remaining := deadline - time.monotonic()) <= 0:
        raise TimeoutError
    return remaining


class _DeadlineReader(io.RawIOBase):
    """Reads a socket until a deadline, so that a server that sends one byte per minute cannot block the download."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock, self._deadline = sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        self._sock.settimeout(_remaining_seconds(self._deadline))
        return self._sock.recv_into(buffer)


@dataclass(frozen=True)
class _DeadlineSocket:
    """The socket methods that http.client calls, with one deadline for all of them together."""

    sock: socket.socket
    deadline: float

    def sendall(self, data: bytes) -> None:
        self.sock.settimeout(_remaining_seconds(self.deadline))
        self.sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        assert mode == "rb"
        return io.BufferedReader(_DeadlineReader(self.sock, self.deadline))

    def close(self) -> None:
        """Does nothing: http.client closes its socket before the body is read; `_get` closes the real one."""


def _read_body(response: HTTPResponse, url: _ParsedURL, limits: AudioLimits) -> bytes:
    """Reads the body of a response in blocks, so that memory never holds more than `limits.max_bytes` of it."""
    if response.status != 200:
        raise AudioError(f"{url} returned HTTP status {response.status}; check the URL")
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise AudioError(
            f"{url} is compressed, although the request does not accept compression; download it and give the path"
        )
    if response.length is not None and response.length > limits.max_bytes:
        raise size_error(url, limits.max_bytes)
    body = bytearray()
    while block := response.read(min(_READ_BYTES, limits.max_bytes + 1 - len(body))):
        body += block
        if len(body) > limits.max_bytes:
            raise size_error(url, limits.max_bytes)
    if response.length:  # bytes of Content-Length that did not arrive
        raise AudioError(f"{url} ended {response.length} bytes early; try again")
    return bytes(body)
