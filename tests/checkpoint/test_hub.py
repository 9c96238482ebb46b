"""Hub names: the published repository before and after it was rewritten, from a server on this machine."""

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from higgs_audio import HiggsAudioForConditionalGeneration
from higgs_audio.convert import convert

NAME = "bosonai/higgs-audio-v2-generation-3B-base"
OLD, NEW = "1" * 40, "2" * 40  # commits
SHARDS = {f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)}


@dataclass
class Hub:
    """A repository with two commits; what was asked of it; after how many bytes a large file stops, if it does."""

    commits: dict[str, Path]
    asked: list[str] = field(default_factory=list)
    stalls_after: int | None = None
    address: str = ""

    def weights_asked(self, commit: str) -> set[str]:
        """Weight files of a commit that were downloaded."""
        return {path.rsplit("/", 1)[-1] for path in self.asked if f"/{commit}/model" in path and "json" not in path}


class Handler(BaseHTTPRequestHandler):
    """What huggingface_hub asks: which commit a revision is, what is in it, what a file is like, and its bytes."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing on stderr."""

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        path = self.path.partition("?")[0]
        if path.startswith(f"/api/models/{NAME}/tree/"):
            self.list(with_body, self.commit(path.split("/")[6]))
        elif path.startswith(f"/api/models/{NAME}"):
            revision = path.partition("/revision/")[2] or "main"
            self.tell(with_body, self.commit(revision))
        elif path.startswith(f"/{NAME}/resolve/"):
            revision, _, name = path.removeprefix(f"/{NAME}/resolve/").partition("/")
            if with_body:
                self.hub.asked.append(path)
            self.give(with_body, self.commit(revision), name)
        else:
            self.fail("RepoNotFound")

    def commit(self, revision: str) -> str | None:
        names = {"main": NEW if NEW in self.hub.commits else OLD}
        found = names.get(revision, revision)
        return found if found in self.hub.commits else None

    def tell(self, with_body: bool, commit: str | None) -> None:
        if commit is None:
            self.fail("RevisionNotFound")
            return
        files = [path for path in self.hub.commits[commit].rglob("*") if path.is_file()]
        names = [{"rfilename": str(path.relative_to(self.hub.commits[commit]))} for path in files]
        self.send(json.dumps({"id": NAME, "modelId": NAME, "sha": commit, "siblings": names}).encode(), {}, with_body)

    def list(self, with_body: bool, commit: str | None) -> None:
        if commit is None:
            self.fail("RevisionNotFound")
            return
        files = [path for path in self.hub.commits[commit].rglob("*") if path.is_file()]
        names = [(str(path.relative_to(self.hub.commits[commit])), path.stat().st_size) for path in files]
        tree = [{"type": "file", "path": name, "size": size, "oid": name} for name, size in names]
        self.send(json.dumps(tree).encode(), {"Content-Type": "application/json"}, with_body)

    def give(self, with_body: bool, commit: str | None, name: str) -> None:
        if commit is None:
            self.fail("RevisionNotFound")
        elif not (self.hub.commits[commit] / name).is_file():
            self.fail("EntryNotFound")
        else:
            content = (self.hub.commits[commit] / name).read_bytes()
            headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
            self.send(content, headers, with_body, stalls=name.endswith(".safetensors"))

    def send(self, content: bytes, headers: dict[str, str], with_body: bool, stalls: bool = False) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            limit = self.hub.stalls_after if stalls else None
            self.wfile.write(content[:limit])
            if limit is not None:
                self.wfile.flush()
                time.sleep(30)

    def fail(self, code: str) -> None:
        self.send_response(404)
        for name, value in {"X-Error-Code": code, "X-Error-Message": code, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()


@pytest.fixture(scope="module")
def commits(tiny_checkpoint, tmp_path_factory) -> dict[str, Path]:
    """The repository before April 2026, in shards, and after it: a single file, and the old shards beside it."""
    folder = tmp_path_factory.mktemp("hub")
    model = HiggsAudioForConditionalGeneration.from_pretrained(tiny_checkpoint)
    model.save_pretrained(folder / "model")
    shards = {"old": convert(folder / "model", folder / "old", "boson")}
    split(shards["old"])
    new = convert(folder / "model", folder / "new", "transformers")
    for file in shards["old"].glob("model*"):
        (new / file.name).write_bytes(file.read_bytes())
    return {OLD: folder / "old", NEW: new}


def split(folder: Path) -> None:
    """The single file of a folder as three with an index."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"model-{i % 3 + 1:05}-of-00003.safetensors" for i, name in enumerate(sorted(weights))}
    for file in set(places.values()):
        save_file({name: weights[name] for name in weights if places[name] == file}, folder / file)
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


@pytest.fixture
def hub(commits) -> Iterator[Hub]:
    state = Hub(dict(commits))
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": state}))
    server.daemon_threads = True
    state.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


# Several questions in one process, which takes seconds to start.
LOAD = """
import json, sys
from higgs_audio import HiggsAudioForConditionalGeneration
from higgs_audio.errors import CheckpointError
for name, revision, here in json.loads(sys.argv[1]):
    try:
        model = HiggsAudioForConditionalGeneration.from_pretrained(name, revision=revision, local_files_only=here)
        print(json.dumps([model.name_or_path, sum(float(w.double().sum()) for w in model.parameters())]), flush=True)
    except CheckpointError as error:
        print(json.dumps(["error", str(error)]), flush=True)
"""


def command(hub: Hub, cache: Path, *questions: tuple[str, str | None, bool]) -> dict:
    """Name, revision, and whether the network may not be used."""
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {"args": [sys.executable, "-W", "ignore", "-c", LOAD, json.dumps(questions)], "env": environment}


def ask(hub: Hub, cache: Path, *questions: tuple[str, str | None, bool]) -> list[list]:
    result = subprocess.run(**command(hub, cache, *questions), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def total(tiny_checkpoint) -> float:
    model = HiggsAudioForConditionalGeneration.from_pretrained(tiny_checkpoint)
    with torch.no_grad():
        return sum(float(weight.double().sum()) for weight in model.parameters())


def test_the_rewritten_repository_gives_its_single_file_and_an_old_revision_its_shards(hub, total, tmp_path):
    online = ((NAME, None, False), (NAME, OLD, False), (NAME, "v9", False), ("someone/else", None, False))
    nothing, new, old, unknown, elsewhere, *again = ask(
        hub, tmp_path, (NAME, None, True), *online, (NAME, None, True), (NAME, OLD, True)
    )
    assert [new, old, *again] == [[NAME, pytest.approx(total)]] * 4
    assert nothing[0] == "error"
    assert hub.weights_asked(NEW) == {"model.safetensors"}
    assert hub.weights_asked(OLD) == SHARDS
    assert "has no revision 'v9'" in unknown[1]
    assert "neither a folder here nor a repository" in elsewhere[1]


def test_the_repository_before_it_was_rewritten_loads_by_the_same_plain_name(hub, total, tmp_path):
    del hub.commits[NEW]
    assert ask(hub, tmp_path, (NAME, None, False)) == [[NAME, pytest.approx(total)]]
    assert hub.weights_asked(OLD) == SHARDS


def test_a_download_that_was_killed_is_refused_without_a_network_and_finished_with_one(hub, total, tmp_path):
    hub.stalls_after = 10_000
    with subprocess.Popen(**command(hub, tmp_path, (NAME, None, False)), stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 300
        while not hub.weights_asked(NEW) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.5)
        process.kill()
    assert hub.weights_asked(NEW)
    hub.stalls_after = None
    refused, loaded = ask(hub, tmp_path, (NAME, None, True), (NAME, None, False))
    assert refused[0] == "error"
    assert loaded == [NAME, pytest.approx(total)]


def test_a_model_is_pushed_as_it_is_saved(tiny_checkpoint, tmp_path, monkeypatch):
    """Uploading itself is huggingface_hub's; what it is given is looked at."""
    from huggingface_hub import HfApi

    sent: dict[str, set[str]] = {}

    def create_commit(self, repo_id, operations, **_):
        sent[repo_id] = {operation.path_in_repo for operation in operations}

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **_: type("Url", (), {"repo_id": repo_id}))
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    model = HiggsAudioForConditionalGeneration.from_pretrained(tiny_checkpoint)
    model.push_to_hub("someone/tiny")
    model.save_pretrained(tmp_path / "x", push_to_hub=True, repo_id="someone/else")
    assert sent["someone/tiny"] == sent["someone/else"]
    assert {"config.json", "model.safetensors"} <= sent["someone/tiny"]
    assert {path.name for path in (tmp_path / "x").iterdir()} >= {"config.json", "model.safetensors"}
