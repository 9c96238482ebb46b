"""Hub repositories: the published one before and after it was rewritten, served by this machine."""

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
    """A repository with two commits.

    Attributes:
        commits: commit -> folder with its files.
        asked: paths of the downloaded files.
        stalls_after: number of bytes after which the download of weights stalls; None for never.
        address: URL of the server.
    """

    commits: dict[str, Path]
    asked: list[str] = field(default_factory=list)
    stalls_after: int | None = None
    address: str = ""

    def weights_asked(self, commit: str) -> set[str]:
        """Names of the downloaded weight files of a commit."""
        return {path.rsplit("/", 1)[-1] for path in self.asked if f"/{commit}/model" in path and "json" not in path}


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of huggingface_hub: the commit of a revision, its list of files, and their contents."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Prints nothing."""

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
    """The repository before April 2026, in shards, and after it, with a single file beside the old shards."""
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
    """Splits the single weight file of a folder into three with an index."""
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


# Loads several checkpoints in one process, which takes seconds to start.
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


def command(hub: Hub, cache: Path, *checkpoints: tuple[str, str | None, bool]) -> dict:
    """The command that loads checkpoints; each is a name, a revision and a value of `local_files_only`."""
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return {"args": [sys.executable, "-W", "ignore", "-c", LOAD, json.dumps(checkpoints)], "env": environment}


def load(hub: Hub, cache: Path, *checkpoints: tuple[str, str | None, bool]) -> list[list]:
    """For each checkpoint its name and the sum of its weights, or "error" and the message."""
    result = subprocess.run(**command(hub, cache, *checkpoints), capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture(scope="module")
def total(tiny_checkpoint) -> float:
    model = HiggsAudioForConditionalGeneration.from_pretrained(tiny_checkpoint)
    with torch.no_grad():
        return sum(float(weight.double().sum()) for weight in model.parameters())


def test_the_new_revision_downloads_its_single_file_and_an_old_one_its_shards(hub, total, tmp_path):
    online = ((NAME, None, False), (NAME, OLD, False), (NAME, "v9", False), ("someone/else", None, False))
    nothing, new, old, unknown, elsewhere, *again = load(
        hub, tmp_path, (NAME, None, True), *online, (NAME, None, True), (NAME, OLD, True)
    )
    assert [new, old, *again] == [[NAME, pytest.approx(total)]] * 4
    assert nothing[0] == "error"
    assert hub.weights_asked(NEW) == {"model.safetensors"}
    assert hub.weights_asked(OLD) == SHARDS
    assert "has no revision 'v9'" in unknown[1]
    assert "neither a local folder nor a repository" in elsewhere[1]


def test_the_repository_loads_by_name_before_it_was_rewritten(hub, total, tmp_path):
    del hub.commits[NEW]
    assert load(hub, tmp_path, (NAME, None, False)) == [[NAME, pytest.approx(total)]]
    assert hub.weights_asked(OLD) == SHARDS


def test_a_killed_download_is_refused_offline_and_completed_online(hub, total, tmp_path):
    hub.stalls_after = 10_000
    with subprocess.Popen(**command(hub, tmp_path, (NAME, None, False)), stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 300
        while not hub.weights_asked(NEW) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.5)
        process.kill()
    assert hub.weights_asked(NEW)
    hub.stalls_after = None
    refused, loaded = load(hub, tmp_path, (NAME, None, True), (NAME, None, False))
    assert refused[0] == "error"
    assert loaded == [NAME, pytest.approx(total)]


def test_push_to_hub_uploads_the_files_of_save_pretrained(tiny_checkpoint, tmp_path, monkeypatch):
    """Only the arguments that huggingface_hub receives are checked."""
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
