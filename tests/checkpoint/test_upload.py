"""Uploads of a processor, received by a local server that implements the hub's protocol."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from higgs_audio.errors import OptionError
from higgs_audio.prompt.processor import HiggsAudioProcessor


class Handler(BaseHTTPRequestHandler):
    """Creates a repository, requests every file inside the commit, and stores the files."""

    def log_message(self, *args):
        pass

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        address = f"http://{self.headers['Host']}"
        if self.path.endswith("/create"):
            answer = {"url": f"{address}/org/voice", "name": "org/voice"}
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            answer = {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]}
        else:
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            answer = {"commitUrl": f"{address}/org/voice/commit/1", "commitOid": "1", "success": True}
        self.reply(answer)

    def do_GET(self):
        self.reply({"id": "org/voice", "sha": "0", "siblings": []})

    def reply(self, answer):
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def hub(monkeypatch):
    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.files = {}
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("how", ["push_to_hub", "save_pretrained"])
def test_an_uploaded_processor_can_be_loaded(tiny_checkpoint, tmp_path, hub, how):
    processor = HiggsAudioProcessor.from_pretrained(tiny_checkpoint)
    if how == "push_to_hub":
        assert processor.push_to_hub("org/voice", token="t", commit_message="A voice").endswith("/org/voice/commit/1")
    else:
        processor.save_pretrained(tmp_path / "saved", push_to_hub=True, repo_id="org/voice")
    for name, content in hub.files.items():
        path = tmp_path / "loaded" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    loaded = HiggsAudioProcessor.from_pretrained(tmp_path / "loaded")
    assert loaded.config == processor.config
    assert loaded.audio_tokenizer is not None
    assert loaded.tokenizer.get_vocab() == processor.tokenizer.get_vocab()


def test_an_unknown_upload_option_is_refused_by_name(tiny_checkpoint):
    with pytest.raises(OptionError, match="did you mean 'private'"):
        HiggsAudioProcessor.from_pretrained(tiny_checkpoint).push_to_hub("org/voice", privat=True)
