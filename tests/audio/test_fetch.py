"""Tests of downloads: a local server with every kind of faulty response, and every URL that must not be reached."""

import io
import socket
import ssl
import subprocess
import threading
import time
import tracemalloc
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import soundfile

from higgs_audio import audio as audio_io
from higgs_audio.audio.fetch import ALLOW_PRIVATE_URLS_ENV, SSRFGuard, fetch, is_public
from higgs_audio.audio.limits import AudioLimits
from higgs_audio.audio.sources import read_source
from higgs_audio.audio.waveform import Waveform
from higgs_audio.errors import AudioError, OptionError

LOCAL = AudioLimits(allow_private_urls=True, timeout_seconds=5)
SECRET = b"secret body of the server"


def make_audio(seconds=0.2, format="WAV"):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(int(seconds * 24000), np.float32), 24000, format=format)
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Serves one kind of response per path: /name/rest calls `get_name(rest)`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        self.server.paths.append(self.path)

    def respond(self, body=b"", status=200, **headers):
        self.send_response(status)
        for name, value in {"Content_Length": len(body), **headers}.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        name, _, rest = self.path[1:].partition("/")
        getattr(self, "get_" + name.partition("?")[0])(rest)

    def get_audio(self, rest):
        self.server.hosts.append(self.headers["Host"])
        self.respond(make_audio())

    def get_chunked(self, rest):
        self.respond(Transfer_Encoding="chunked", Content_Length=None)
        body = make_audio()
        self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))

    def get_redirect(self, rest):
        self.respond(SECRET, 302, Location=rest.replace("%2F", "/"))

    def get_loop(self, rest):
        self.respond(b"", 307, Location="/loop")

    def get_missing(self, rest):
        self.respond(SECRET, 404)

    def get_text(self, rest):
        self.respond(SECRET)

    def get_gzip(self, rest):
        self.respond(SECRET, Content_Encoding="gzip")

    def get_stalled(self, rest):
        self.server.release.wait(20)

    def get_trickle(self, rest):
        """Sends a header that never ends, one byte at a time."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not self.server.release.wait(0.05):
            self.wfile.write(b"x")

    def get_endless(self, rest):
        self.respond(Content_Length=None, Connection="close")
        while not self.server.release.is_set():
            self.wfile.write(bytes(1 << 16))

    def get_oversized(self, rest):
        self.respond(make_audio(), Content_Length=10**12)

    def get_truncated(self, rest):
        self.respond(make_audio(), Content_Length=1_000_000)
        self.close_connection = True

    def get_longer(self, rest):
        """Sends more bytes than Content-Length says."""
        self.respond(make_audio() + SECRET, Content_Length=len(make_audio()))
        self.close_connection = True

    def get_silence(self, rest):
        self.respond(SILENCE[rest])

    def handle(self):
        with suppress(OSError):  # the client closed the connection
            super().handle()


@pytest.fixture(scope="module")
def server():
    with serving() as server:
        yield server


@contextmanager
def serving(context=None, host="127.0.0.1"):
    server = ThreadingHTTPServer((host, 0), Handler)
    server.daemon_threads, server.release, server.paths, server.hosts = True, threading.Event(), [], []
    server.handle_error = lambda *args: None
    if context:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    server.port = server.server_address[1]
    server.url = f"http://127.0.0.1:{server.port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()


def resolve_to(*addresses):
    """Returns a resolver that resolves every name to these IPv4 addresses."""
    return lambda host, port: [(socket.AF_INET, (address, port)) for address in addresses]


def is_local(address):
    """Checks an address: the local server alone counts as public."""
    return address == "127.0.0.1"


LOCAL_GUARD = SSRFGuard(resolve=resolve_to("127.0.0.1"), is_allowed=is_local)


# Successful downloads.


@pytest.mark.parametrize("path", ["audio", "chunked", "redirect/%2Faudio", "longer", "audio?a=b c"])
def test_the_body_is_returned(server, path):
    assert fetch(f"{server.url}/{path.replace(' ', '%20')}", LOCAL) == make_audio()


@pytest.mark.parametrize("key", ["audio_url", "url", "path", "audio"])
def test_an_audio_item_may_be_a_url_under_any_key(server, key):
    waveform = read_source({key: f"{server.url}/audio"}, 24000, LOCAL)
    assert (len(waveform), waveform.sample_rate) == (4800, 24000)


def test_private_addresses_are_allowed_by_the_environment_or_the_limits(server, monkeypatch):
    monkeypatch.setenv(ALLOW_PRIVATE_URLS_ENV, "1")
    assert fetch(f"{server.url}/audio") == make_audio()
    with pytest.raises(AudioError, match="public"):
        fetch(f"{server.url}/audio", AudioLimits(allow_private_urls=False))
    monkeypatch.setenv(ALLOW_PRIVATE_URLS_ENV, "0")
    with pytest.raises(AudioError, match=f"allow_private_urls=True or {ALLOW_PRIVATE_URLS_ENV}=1"):
        fetch(f"{server.url}/audio")


# Addresses.


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "64:ff9b::5db8:d822"])
def test_addresses_of_the_internet_are_public(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254"),
        *("100.64.0.1", "100.100.100.200", "192.0.0.192", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
        *("168.63.129.16", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1"),
        *("::ffff:127.0.0.1", "::ffff:8.8.8.8", "::7f00:1", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::"),
        *("2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1", "localhost", ""),
    ],
)
def test_other_addresses_are_not_public(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1/x", "http://localhost/x", "http://2130706433/x", "http://0x7f.1/x", "http://0177.0.0.1/x"),
        *("http://[::1]/x", "http://[::ffff:127.0.0.1]/x", "http://169.254.169.254/latest/meta-data", "http://0/x"),
        "https://127.0.0.1./x",
    ],
)
def test_private_addresses_are_rejected_in_every_spelling(url):
    with pytest.raises(AudioError, match=r"public address|cannot be fetched"):
        fetch(url)


@pytest.mark.parametrize(
    "url",
    [
        *("http://example.org\\@127.0.0.1/", "http://example.org@127.0.0.1/", "http://user:key@example.org/"),
        *(
            "http://example.org:80:80/",
            "http://example.org:0/",
            "http://example.org:99999/",
            "http://example.org:８０/",
        ),
        *("http://exa mple.org/", "http://example.org/\r\nX: y", "http:///x", "http:example.org", "http://[::1/"),
        *(
            "http://[fe80::1%25lo]/",
            "http://１２７.0.0.1/",
            "ftp://example.org/a",
            "gopher://x",
            "http://" + "a" * 9000,
        ),
    ],
)
def test_malformed_and_unsupported_urls_are_rejected_before_the_host_is_resolved(url):
    resolved = []
    with pytest.raises(AudioError):
        fetch(url, LOCAL, SSRFGuard(resolve=lambda host, port: resolved.append(host)))
    assert resolved == []


def test_a_host_with_public_and_private_addresses_is_rejected():
    with pytest.raises(AudioError, match="public"):
        fetch("http://mixed.example/", guard=SSRFGuard(resolve=resolve_to("93.184.216.34", "10.0.0.1")))


def test_a_host_is_resolved_once_and_the_checked_address_is_used(server):
    """DNS rebinding: the first address passes the check, the second would be the address that the attacker wants to
    reach."""
    answers = [resolve_to("127.0.0.1"), resolve_to("127.0.0.2")]
    resolved = []

    def resolve(host, port):
        resolved.append(host)
        return answers[len(resolved) - 1](host, port)

    url = f"http://rebinding.example:{server.port}/audio"
    assert fetch(url, guard=SSRFGuard(resolve=resolve, is_allowed=is_local)) == make_audio()
    assert resolved == ["rebinding.example"]
    assert server.hosts[-1] == f"rebinding.example:{server.port}"


@pytest.mark.parametrize(
    "target", ["http://127.0.0.2:{port}/audio", "http://[::1]/", "http://169.254.169.254/", "//10.0.0.1/"]
)
def test_a_redirect_to_a_private_address_is_not_followed(server, target):
    guard = SSRFGuard(is_allowed=is_local)
    url = f"{server.url}/redirect/{target.format(port=server.port).replace('/', '%2F')}"
    before = len(server.hosts)
    with pytest.raises(AudioError, match="public"):
        fetch(url, guard=guard)
    assert len(server.hosts) == before


def test_a_redirect_to_a_file_and_a_redirect_loop_are_rejected(server):
    with pytest.raises(AudioError, match="URL scheme 'file' is not supported"):
        fetch(f"{server.url}/redirect/file:%2F%2F%2Fetc%2Fpasswd", LOCAL)
    with pytest.raises(AudioError, match="more than 5 redirects"):
        fetch(f"{server.url}/loop", LOCAL)


# Time.


@pytest.mark.parametrize("path", ["stalled", "trickle"])
def test_a_slow_server_times_out(server, path):
    began = time.monotonic()
    with pytest.raises(AudioError, match=r"longer than 0.4 seconds"):
        fetch(f"{server.url}/{path}", AudioLimits(allow_private_urls=True, timeout_seconds=0.4))
    assert time.monotonic() - began < 3


def test_a_slow_resolver_times_out():
    with pytest.raises(AudioError, match=r"longer than 0.2 seconds"):
        fetch("http://slow.example/", AudioLimits(timeout_seconds=0.2), SSRFGuard(resolve=lambda *_: time.sleep(5)))


# Size.


def test_an_endless_body_is_rejected_at_the_limit(server):
    with pytest.raises(AudioError, match="more than 1,000,000 bytes"):
        fetch(f"{server.url}/endless", AudioLimits(allow_private_urls=True, max_bytes=1_000_000))


def test_a_body_with_a_too_large_content_length_is_not_read(server):
    with pytest.raises(AudioError, match="more than 100,000,000 bytes"):
        fetch(f"{server.url}/oversized", LOCAL)


def test_a_truncated_body_is_rejected(server):
    with pytest.raises(AudioError, match=r"ended \d+ bytes early"):
        fetch(f"{server.url}/truncated", LOCAL)


SILENCE = {}


@pytest.mark.parametrize(("format", "minutes"), [("FLAC", 60), ("OGG", 3)])
def test_long_silence_in_a_small_file_is_not_decoded(server, format, minutes):
    """An hour takes 144 kB as flac and would take 345 MB as float samples at 24 kHz."""
    SILENCE[format] = make_silence(format, minutes)
    assert len(SILENCE[format]) < 200_000
    limits = AudioLimits(allow_private_urls=True, max_seconds=10)
    with pytest.raises(AudioError, match="longer than 10 seconds"):
        read_source({"url": f"{server.url}/silence/{format}"}, 24000, limits)


def test_decoding_stops_at_the_limit():
    """An hour would take 115 MB as float samples; two blocks of 65,536 samples, 8 seconds each, take 0.5 MB."""
    silence = make_silence("FLAC", 60)
    tracemalloc.start()
    try:
        with pytest.raises(AudioError, match="longer than 10 seconds"):
            audio_io.read(silence, max_seconds=10)
        assert tracemalloc.get_traced_memory()[1] < 1e6
    finally:
        tracemalloc.stop()


def make_silence(format, minutes):
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", 8000, 1, format=format) as file:
        for _ in range(minutes):
            file.write(np.zeros(60 * 8000, np.int16))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "source",
    [
        {"audio": np.zeros(2400, np.float32), "sampling_rate": 1000},
        {"audio": {"array": np.zeros(2400), "sampling_rate": 1000}},
        {"audio": Waveform(np.zeros(48000, np.float32), 24000)},
        {"audio": make_audio(2)},
        {"audio": io.BytesIO(make_audio(2))},
        {"audio": {"bytes": make_audio(2)}},
    ],
)
def test_the_duration_limit_applies_to_every_kind_of_source(source):
    with pytest.raises(AudioError, match=r"longer than 1 sec|lasts 2.\d seconds"):
        read_source(source, 24000, AudioLimits(max_seconds=1))


def test_the_size_limit_applies_to_every_kind_of_source(tmp_path):
    limits = AudioLimits(max_bytes=3000)
    (tmp_path / "a.wav").write_bytes(make_audio())
    encoded = audio_io.encode(Waveform(np.zeros(4800, np.float32), 24000)).hex()
    for source in (
        {"path": tmp_path / "a.wav"},
        {"url": (tmp_path / "a.wav").as_uri()},
        {"audio": make_audio()},
        {"audio": io.BytesIO(make_audio())},
        {"raw_audio": "A" * 8000},
        {"url": "data:audio/wav;base64," + "A" * 8000},
        {"url": "data:audio/wav," + encoded},
    ):
        with pytest.raises(AudioError, match="more than 3,000 bytes"):
            read_source(source, 24000, limits)


@pytest.mark.parametrize("field", ["max_bytes", "max_seconds", "timeout_seconds"])
def test_limits_of_zero_are_rejected(field):
    with pytest.raises(OptionError, match=field):
        AudioLimits(**{field: 0})


# Error messages.


@pytest.mark.parametrize("path", ["missing", "text", "gzip", "redirect/http:%2F%2F127.0.0.1:1%2F"])
def test_messages_contain_neither_the_response_nor_the_query(server, path):
    with pytest.raises(AudioError) as caught:
        read_source({"url": f"{server.url}/{path}?key=12345"}, 24000, LOCAL)
    assert "secret" not in str(caught.value)
    assert "12345" not in str(caught.value)


# TLS.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """Returns a self-signed certificate for voices.example, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -keyout key -out cert"
    names = ["-subj", "/CN=voices.example", "-addext", "subjectAltName=DNS:voices.example"]
    subprocess.run([*command.split(), *names], cwd=folder, check=True, capture_output=True)
    return folder


def test_tls_sends_and_verifies_the_host_name_although_the_connection_is_to_an_address(certificate):
    names = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert", certificate / "key")
    context.sni_callback = lambda sock, name, _: names.append(name)
    trusting = ssl.create_default_context(cafile=str(certificate / "cert"))
    guard = SSRFGuard(resolve=resolve_to("127.0.0.1"), is_allowed=is_local, ssl_context=trusting)
    with serving(context) as server:
        assert fetch(f"https://voices.example:{server.port}/audio", guard=guard) == make_audio()
        with pytest.raises(AudioError, match="certificate"):
            fetch(f"https://other.example:{server.port}/audio", guard=guard)
        with pytest.raises(AudioError, match="certificate"):
            fetch(f"https://voices.example:{server.port}/audio", guard=LOCAL_GUARD)
    assert names == ["voices.example", "other.example", "voices.example"]
