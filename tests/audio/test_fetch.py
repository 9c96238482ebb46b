"""Fetching: a real server on this machine, every way it can misbehave, and every URL that must lead nowhere."""

import io
import socket
import ssl
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import soundfile

from higgs_audio import audio as audio_io
from higgs_audio.audio.fetch import ENVIRONMENT, Door, fetch, is_public
from higgs_audio.audio.limits import AudioLimits
from higgs_audio.audio.sources import read_source
from higgs_audio.audio.waveform import Waveform
from higgs_audio.errors import AudioError, OptionError

HERE = AudioLimits(allow_private_urls=True, timeout_seconds=5)
SECRET = b"secret body of the server"


def make_sound(seconds=0.2, format="WAV"):
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(int(seconds * 24000), np.float32), 24000, format=format)
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    """Each path is one behaviour."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        self.server.paths.append(self.path)

    def answer(self, body=b"", status=200, **headers):
        self.send_response(status)
        for name, value in {"Content_Length": len(body), **headers}.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        name, _, rest = self.path[1:].partition("/")
        getattr(self, "get_" + name.partition("?")[0])(rest)

    def get_sound(self, rest):
        self.server.hosts.append(self.headers["Host"])
        self.answer(make_sound())

    def get_chunked(self, rest):
        self.answer(Transfer_Encoding="chunked", Content_Length=None)
        sound = make_sound()
        self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(sound), sound))

    def get_to(self, rest):
        self.answer(SECRET, 302, Location=rest.replace("%2F", "/"))

    def get_loop(self, rest):
        self.answer(b"", 307, Location="/loop")

    def get_missing(self, rest):
        self.answer(SECRET, 404)

    def get_text(self, rest):
        self.answer(SECRET)

    def get_gzip(self, rest):
        self.answer(SECRET, Content_Encoding="gzip")

    def get_silent(self, rest):
        self.server.release.wait(20)

    def get_trickle(self, rest):
        """One byte of the header at a time, and never the last."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        while not self.server.release.wait(0.05):
            self.wfile.write(b"x")

    def get_endless(self, rest):
        self.answer(Content_Length=None, Connection="close")
        while not self.server.release.is_set():
            self.wfile.write(bytes(1 << 16))

    def get_promises(self, rest):
        self.answer(make_sound(), Content_Length=10**12)

    def get_killed(self, rest):
        self.answer(make_sound(), Content_Length=1_000_000)
        self.close_connection = True

    def get_short(self, rest):
        """More than was announced follows."""
        self.answer(make_sound() + SECRET, Content_Length=len(make_sound()))
        self.close_connection = True

    def get_hours(self, rest):
        self.answer(HOURS[rest])

    def handle(self):
        with suppress(OSError):  # the client has had enough
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


def at(*addresses):
    """A resolver that gives these IPv4 addresses for every name."""
    return lambda host, port: [(socket.AF_INET, (address, port)) for address in addresses]


def only_here(address):
    """In these tests this machine stands for the public internet, and nothing else is public."""
    return address == "127.0.0.1"


PUBLIC_HERE = Door(resolve=at("127.0.0.1"), admits=only_here)


# What works.


@pytest.mark.parametrize("path", ["sound", "chunked", "to/%2Fsound", "short", "sound?a=b c"])
def test_a_sound_arrives(server, path):
    assert fetch(f"{server.url}/{path.replace(' ', '%20')}", HERE) == make_sound()


@pytest.mark.parametrize("key", ["audio_url", "url", "path", "audio"])
def test_an_audio_item_may_be_a_url_under_any_key(server, key):
    sound = read_source({key: f"{server.url}/sound"}, 24000, HERE)
    assert (len(sound), sound.sample_rate) == (4800, 24000)


def test_private_addresses_are_opened_by_the_environment_or_the_limits(server, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, "1")
    assert fetch(f"{server.url}/sound") == make_sound()
    with pytest.raises(AudioError, match="public"):
        fetch(f"{server.url}/sound", AudioLimits(allow_private_urls=False))
    monkeypatch.setenv(ENVIRONMENT, "0")
    with pytest.raises(AudioError, match=f"allow_private_urls=True or {ENVIRONMENT}=1"):
        fetch(f"{server.url}/sound")


# Which addresses.


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
def test_every_other_address_is_not(address):
    assert not is_public(address)


@pytest.mark.parametrize(
    "url",
    [
        *("http://127.0.0.1/x", "http://localhost/x", "http://2130706433/x", "http://0x7f.1/x", "http://0177.0.0.1/x"),
        *("http://[::1]/x", "http://[::ffff:127.0.0.1]/x", "http://169.254.169.254/latest/meta-data", "http://0/x"),
        "https://127.0.0.1./x",
    ],
)
def test_no_spelling_of_a_private_address_is_reached(url):
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
def test_urls_that_are_not_plain_are_refused(url):
    with pytest.raises(AudioError):
        fetch(url, HERE, Door(resolve=lambda host, port: pytest.fail(f"{host} was looked up")))


def test_one_private_address_among_the_public_ones_is_one_too_many():
    with pytest.raises(AudioError, match="public"):
        fetch("http://mixed.example/", door=Door(resolve=at("93.184.216.34", "10.0.0.1")))


def test_a_name_that_changes_its_address_is_asked_once_and_the_checked_address_is_connected_to(server):
    """DNS rebinding: the first answer passes the check, the second would be the attacker's target."""
    answers = [at("127.0.0.1"), at("127.0.0.2")]
    asked = []

    def resolve(host, port):
        asked.append(host)
        return answers[len(asked) - 1](host, port)

    url = f"http://rebinding.example:{server.port}/sound"
    assert fetch(url, door=Door(resolve=resolve, admits=only_here)) == make_sound()
    assert asked == ["rebinding.example"]
    assert server.hosts[-1] == f"rebinding.example:{server.port}"


@pytest.mark.parametrize(
    "target", ["http://127.0.0.2:{port}/sound", "http://[::1]/", "http://169.254.169.254/", "//10.0.0.1/"]
)
def test_a_redirect_to_a_private_address_is_not_followed(server, target):
    real = Door(admits=only_here)
    url = f"{server.url}/to/{target.format(port=server.port).replace('/', '%2F')}"
    before = len(server.hosts)
    with pytest.raises(AudioError, match="public"):
        fetch(url, door=real)
    assert len(server.hosts) == before


def test_a_redirect_to_a_file_or_in_circles_ends(server):
    with pytest.raises(AudioError, match="'file' are not fetched"):
        fetch(f"{server.url}/to/file:%2F%2F%2Fetc%2Fpasswd", HERE)
    with pytest.raises(AudioError, match="more than 5 redirects"):
        fetch(f"{server.url}/loop", HERE)


# Time.


@pytest.mark.parametrize("path", ["silent", "trickle"])
def test_a_slow_server_is_left_in_time(server, path):
    began = time.monotonic()
    with pytest.raises(AudioError, match=r"within 0.4 seconds"):
        fetch(f"{server.url}/{path}", AudioLimits(allow_private_urls=True, timeout_seconds=0.4))
    assert time.monotonic() - began < 3


def test_a_slow_resolver_is_left_in_time():
    with pytest.raises(AudioError, match=r"within 0.2 seconds"):
        fetch("http://slow.example/", AudioLimits(timeout_seconds=0.2), Door(resolve=lambda *_: time.sleep(5)))


# Size.


def test_an_endless_body_ends_at_the_limit(server):
    with pytest.raises(AudioError, match="more than 1,000,000 bytes"):
        fetch(f"{server.url}/endless", AudioLimits(allow_private_urls=True, max_bytes=1_000_000))


def test_a_body_that_promises_too_much_is_not_read(server):
    with pytest.raises(AudioError, match="more than 100,000,000 bytes"):
        fetch(f"{server.url}/promises", HERE)


def test_a_body_that_breaks_off_is_no_sound(server):
    with pytest.raises(AudioError, match=r"broke off .* before its end"):
        fetch(f"{server.url}/killed", HERE)


HOURS = {}


@pytest.mark.parametrize(("format", "minutes"), [("FLAC", 60), ("OGG", 3)])
def test_long_silence_in_a_small_file_is_not_decoded(server, format, minutes):
    """An hour takes 144 kB as flac, and would take 345 MB as samples at 24 kHz."""
    HOURS[format] = make_silence(format, minutes)
    assert len(HOURS[format]) < 200_000
    limits = AudioLimits(allow_private_urls=True, max_seconds=10)
    with pytest.raises(AudioError, match="longer than 10 seconds"):
        read_source({"url": f"{server.url}/hours/{format}"}, 24000, limits)


def test_decoding_stops_where_the_limit_is_passed(monkeypatch):
    blocks = []
    whole = soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *args, **kwargs: blocks.append(1) or whole(*args, **kwargs))
    with pytest.raises(AudioError, match="longer than 10 seconds"):
        audio_io.read(make_silence("FLAC", 60), max_seconds=10)
    assert len(blocks) == 2  # of 65,536 samples, 8 seconds each


def make_silence(format, minutes):
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", 8000, 1, format=format) as sound:
        for _ in range(minutes):
            sound.write(np.zeros(60 * 8000, np.int16))
    return buffer.getvalue()


@pytest.mark.parametrize(
    "source",
    [
        {"audio": np.zeros(2400, np.float32), "sampling_rate": 1000},
        {"audio": {"array": np.zeros(2400), "sampling_rate": 1000}},
        {"audio": Waveform(np.zeros(48000, np.float32), 24000)},
        {"audio": make_sound(2)},
        {"audio": io.BytesIO(make_sound(2))},
        {"audio": {"bytes": make_sound(2)}},
    ],
)
def test_the_limit_of_duration_holds_for_every_kind_of_audio(source):
    with pytest.raises(AudioError, match=r"longer than 1 sec|lasts 2.\d seconds"):
        read_source(source, 24000, AudioLimits(max_seconds=1))


def test_the_limit_of_size_holds_for_every_kind_of_audio(tmp_path):
    limits = AudioLimits(max_bytes=3000)
    (tmp_path / "a.wav").write_bytes(make_sound())
    encoded = audio_io.encode(Waveform(np.zeros(4800, np.float32), 24000)).hex()
    for source in (
        {"path": tmp_path / "a.wav"},
        {"url": (tmp_path / "a.wav").as_uri()},
        {"audio": make_sound()},
        {"audio": io.BytesIO(make_sound())},
        {"raw_audio": "A" * 8000},
        {"url": "data:audio/wav;base64," + "A" * 8000},
        {"url": "data:audio/wav," + encoded},
    ):
        with pytest.raises(AudioError, match="more than 3,000 bytes"):
            read_source(source, 24000, limits)


@pytest.mark.parametrize("field", ["max_bytes", "max_seconds", "timeout_seconds"])
def test_limits_of_nothing_are_refused(field):
    with pytest.raises(OptionError, match=field):
        AudioLimits(**{field: 0})


# What is said.


@pytest.mark.parametrize("path", ["missing", "text", "gzip", "to/http:%2F%2F127.0.0.1:1%2F"])
def test_no_message_holds_what_a_server_sent_or_the_keys_of_a_url(server, path):
    with pytest.raises(AudioError) as caught:
        read_source({"url": f"{server.url}/{path}?key=12345"}, 24000, HERE)
    assert "secret" not in str(caught.value)
    assert "12345" not in str(caught.value)


# TLS.


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for voices.example and its key, signed by itself."""
    folder = tmp_path_factory.mktemp("tls")
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -keyout key -out cert"
    names = ["-subj", "/CN=voices.example", "-addext", "subjectAltName=DNS:voices.example"]
    subprocess.run([*command.split(), *names], cwd=folder, check=True, capture_output=True)
    return folder


def test_tls_asks_for_the_name_and_verifies_it_though_an_address_is_connected_to(certificate):
    asked = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert", certificate / "key")
    context.sni_callback = lambda sock, name, _: asked.append(name)
    trusting = ssl.create_default_context(cafile=str(certificate / "cert"))
    door = Door(resolve=at("127.0.0.1"), admits=only_here, context=trusting)
    with serving(context) as server:
        assert fetch(f"https://voices.example:{server.port}/sound", door=door) == make_sound()
        with pytest.raises(AudioError, match="certificate"):
            fetch(f"https://other.example:{server.port}/sound", door=door)
        with pytest.raises(AudioError, match="certificate"):
            fetch(f"https://voices.example:{server.port}/sound", door=PUBLIC_HERE)
    assert asked == ["voices.example", "other.example", "voices.example"]
