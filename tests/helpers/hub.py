"""A local hub: repositories from which checkpoints are downloaded, and to which they are uploaded."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


@dataclass
class Upload:
    """Files that a client has uploaded to a repository."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)


@dataclass
class Hub:
    """The state of a hub.

    Attributes:
        repositories: name -> commit -> folder with its files; the last commit is the branch main.
        downloads: (repository, commit, name) of each downloaded file.
        lookups: (repository, revision) of each request for the commit of a revision.
        uploads: name of a repository that a client has created -> its contents.
        tokens: the tokens of all requests.
        stalls_after: number of bytes after which the download of weights stalls; None for never.
        address: URL of the server.
    """

    repositories: dict[str, dict[str, Path]]
    downloads: list[tuple[str, str, str]] = field(default_factory=list)
    lookups: list[tuple[str, str]] = field(default_factory=list)
    uploads: dict[str, Upload] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    stalls_after: int | None = None
    address: str = ""

    def weights_of(self, commit: str) -> set[str]:
        """Returns the names of the downloaded weight files of a commit."""
        names = {name for _, other, name in self.downloads if other == commit}
        return {name for name in names if name.endswith((".safetensors", ".pth"))}

    def environment(self, cache: Path) -> dict[str, str]:
        """Returns the environment variables of a process that uses this hub and a cache folder."""
        hub = {"HF_ENDPOINT": self.address, "HF_HOME": str(cache), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        return {**os.environ, **hub, "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_TELEMETRY": "1"}

    def run(self, cache: Path, code: str, *arguments: object) -> list[Any]:
        """Runs a program that uses this hub; returns the JSON values that it prints, one per line. huggingface_hub
        reads its environment on import, so it needs a separate process."""
        command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
        result = subprocess.run(command, env=self.environment(cache), capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return [json.loads(line) for line in result.stdout.splitlines()]


@contextmanager
def serve(repositories: Mapping[str, Mapping[str, Path]] | None = None) -> Iterator[Hub]:
    """Runs a hub in threads of this process."""
    hub = Hub({name: dict(commits) for name, commits in (repositories or {}).items()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()


class Handler(BaseHTTPRequestHandler):
    """Handles the requests of huggingface_hub."""

    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Prints nothing."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        """Sends the commit of a revision, its list of files, or the content of a file."""
        self.record_token()
        parts = self.path.partition("?")[0].strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        name, rest = "/".join(parts[2:4] if is_api else parts[:2]), parts[4:] if is_api else parts[2:]
        if is_api and name in self.hub.uploads:
            self.send_json({"id": name, "sha": "0", "siblings": []})
        elif name not in self.hub.repositories:
            self.fail("EntryNotFound" if name in self.hub.uploads else "RepoNotFound")
        elif (commit := self.commit(name, rest[1] if len(rest) > 1 else "main")) is None:
            self.fail("RevisionNotFound")
        elif is_api and rest[:1] == ["tree"]:
            tree = [
                {"type": "file", "path": file, "size": path.stat().st_size, "oid": file} for file, path in commit[1]
            ]
            self.send_json(tree)
        elif is_api:
            self.hub.lookups.append((name, rest[1] if len(rest) > 1 else "main"))
            self.send_json({"id": name, "sha": commit[0], "siblings": [{"rfilename": file} for file, _ in commit[1]]})
        else:
            self.send_file(name, commit[0], "/".join(rest[2:]))

    def commit(self, name: str, revision: str) -> tuple[str, list[tuple[str, Path]]] | None:
        """Returns the commit of a revision, and its files."""
        commits = self.hub.repositories[name]
        commit = next(reversed(commits)) if revision == "main" else revision
        if commit not in commits:
            return None
        folder = commits[commit]
        return commit, [(str(path.relative_to(folder)), path) for path in folder.rglob("*") if path.is_file()]

    def send_file(self, name: str, commit: str, file: str) -> None:
        if self.command == "GET":
            self.hub.downloads.append((name, commit, file))
        path = self.hub.repositories[name][commit] / file
        if not path.is_file():
            self.fail("EntryNotFound")
            return
        content = path.read_bytes()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        self.send(content, headers, stalls=file.endswith(".safetensors"))

    def do_POST(self) -> None:
        """Creates a repository, or stores the files of a commit, which contains all of them."""
        self.record_token()
        body = self.rfile.read(int(self.headers["Content-Length"]))
        parts = self.path.partition("?")[0].strip("/").split("/")
        name = "/".join(parts[2:4])
        if parts[-1] == "create":
            fields = json.loads(body)
            name = "/".join(filter(None, (fields.get("organization"), fields["name"])))
            self.hub.uploads[name] = Upload(bool(fields.get("private")) or fields.get("visibility") == "private")
            self.send_json({"url": f"{self.hub.address}/{name}", "name": name})
        elif "preupload" in parts:
            paths = [file["path"] for file in json.loads(body)["files"]]
            self.send_json(
                {"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]}
            )
        elif "commit" in parts:
            upload = self.hub.uploads[name]
            for line in map(json.loads, body.decode().splitlines()):
                if line["key"] == "header":
                    upload.messages.append(line["value"]["summary"])
                elif line["key"] == "file":
                    upload.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            commit = {"commitUrl": f"{self.hub.address}/{name}/commit/1", "commitOid": "1", "success": True}
            self.send_json(commit)
        else:  # validation of a model card
            self.send_json({"errors": [], "warnings": []})

    def record_token(self) -> None:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if scheme:
            self.hub.tokens.add(token)

    def send_json(self, value: Any) -> None:
        self.send(json.dumps(value).encode(), {"Content-Type": "application/json"})

    def send(self, content: bytes, headers: dict[str, str], stalls: bool = False) -> None:
        self.send_response(200)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
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
