"""A read-only Hub on the loopback interface, for tests that drive the real client.

In go repositories (files, branches, a few faults); out comes an address for `HF_ENDPOINT`, and a record of every request
and every byte of body that was served. Answers follow what the client reads: `/api/models/...`, its `tree`, and `resolve`
with ETag, `X-Repo-Commit`, `X-Linked-*` and ranges. Large files carry their SHA-256 like files in Git LFS.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass(kw_only=True)
class Repository:
    """A model repository. `commits` gives each commit's files, `branches` what a revision means."""

    commits: dict[str, dict[str, bytes]]
    branches: dict[str, str]
    gated: bool = False  # lists its files, gives none
    private: bool = False  # does not even say that it exists
    damaged: frozenset[str] = frozenset()  # files that are served with one flipped bit
    ignores_ranges: bool = False
    status: int = 0  # answer everything with this status


@dataclass(kw_only=True)
class Hub:
    """A running Hub: its repositories by id, the requests so far, and body bytes by file name."""

    address: str
    repositories: dict[str, Repository]
    requests: list[str] = field(default_factory=list)
    served: dict[str, int] = field(default_factory=dict)
    tokens: list[str] = field(default_factory=list)

    def environment(self, home: Path, **more: str) -> dict[str, str]:
        """The environment of a child process that has this Hub and a cache of its own."""
        inherited = {key: value for key, value in os.environ.items() if not key.upper().endswith("_PROXY")}
        inherited = {key: value for key, value in inherited.items() if not key.startswith(("HF_", "HUGGINGFACE_"))}
        return {
            **inherited,
            "HF_ENDPOINT": self.address,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            **more,
        }


def one_commit(files: dict[str, bytes], *, commit: str = "a" * 40, branch: str = "main") -> Repository:
    return Repository(commits={commit: files}, branches={branch: commit})


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", "tokenizer.model"))


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@contextmanager
def serve(repositories: dict[str, Repository]) -> Iterator[Hub]:
    """Run a Hub while the block lasts."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    hub = Hub(address=f"http://127.0.0.1:{server.server_address[1]}", repositories=repositories)
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub: Hub = self.server.hub  # type: ignore[attr-defined]
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        self.hub.tokens += [self.headers["Authorization"]] if "Authorization" in self.headers else []
        api = re.fullmatch(r"/api/models/(.+?)(?:/(revision|tree)/([^/]+)(?:/.*)?)?", path)
        file = re.fullmatch(r"/(.+?)/resolve/([^/]+)/(.+)", path)
        found = api or file
        repository = self.hub.repositories.get(found[1]) if found else None
        if repository is None or repository.private:
            return self._fail(401, "RepoNotFound")
        if repository.status:
            return self._fail(repository.status, "")
        if api:
            return self._api(repository, api[1], api[2], api[3] or "main")
        assert file is not None
        return self._file(repository, file[2], file[3])

    def _api(self, repository: Repository, name: str, kind: str | None, revision: str) -> None:
        commit = repository.branches.get(revision, revision)
        files = repository.commits.get(commit)
        if files is None:
            return self._fail(404, "RevisionNotFound")
        entries = [self._entry(path, data) for path, data in files.items()]
        if kind == "tree":
            return self._json(
                [{"type": "file", "path": one["rfilename"], "oid": one["blobId"], **one} for one in entries]
            )
        return self._json({"id": name, "sha": commit, "private": False, "tags": [], "siblings": entries})

    def _entry(self, path: str, data: bytes) -> dict[str, object]:
        entry: dict[str, object] = {"rfilename": path, "size": len(data), "blobId": git_blob(data)}
        if is_large(path):
            sha256 = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"sha256": sha256, "oid": sha256, "size": len(data), "pointerSize": 130}
        return entry

    def _file(self, repository: Repository, revision: str, path: str) -> None:
        commit = repository.branches.get(revision, revision)
        if repository.gated:
            return self._fail(403 if "Authorization" in self.headers else 401, "GatedRepo")
        if commit not in repository.commits:
            return self._fail(404, "RevisionNotFound")
        data = repository.commits[commit].get(path)
        if data is None:
            return self._fail(404, "EntryNotFound", commit=commit)
        digest = hashlib.sha256(data).hexdigest() if is_large(path) else git_blob(data)
        headers = {"ETag": f'"{digest}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if is_large(path):
            headers |= {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(data))}
        if path in repository.damaged:
            data = data[:-1] + bytes([data[-1] ^ 1])
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        status = 200
        if wanted and not repository.ignores_ranges:
            begin, end = int(wanted[1]), min(int(wanted[2] or len(data)) + 1, len(data))
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
            status, data = 206, data[begin:end]
        return self._send(status, data, headers, path)

    def _json(self, content: object) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"}, "api")

    def _fail(self, status: int, code: str, commit: str = "") -> None:
        headers = {"X-Error-Code": code} if code else {}
        if commit:
            headers["X-Repo-Commit"] = commit
        self._send(status, b"{}", headers, "error")

    def _send(self, status: int, data: bytes, headers: dict[str, str], name: str) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        try:
            for at in range(0, len(data), 1 << 16):
                part = data[at : at + (1 << 16)]
                self.wfile.write(part)
                self.hub.served[name] = self.hub.served.get(name, 0) + len(part)
        except (BrokenPipeError, ConnectionResetError):
            # The client has what it wanted and hung up.
            self.close_connection = True
