"""A Hub on the loopback interface, for tests that drive the real client; run as a program, for people who try things out.

In go repositories (files, branches, faults); out comes an address for `HF_ENDPOINT`, and a record of every request
and every byte of body that was served. Answers follow what the client reads: `/api/models/...`, its `tree`, and `resolve`
with ETag, `X-Repo-Commit`, `X-Linked-*` and ranges. Large files carry their SHA-256 like files in Git LFS. What is written goes
through `loopback_writes`.

    python tests/loopback.py --port 8080 --token hf_x --account me
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from loopback_writes import Answer, Pull, Writer, check_card, discussions, references


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
    closed: bool = False  # as `private`, but for those who own it
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[int, Pull] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()  # by its .gitignore


@dataclass(kw_only=True)
class Fault:
    """What goes wrong with some requests.

    Attributes:
        method, path: which requests: a method, and what the path matches somewhere. at, times: from which of them on, and how many.
        kind: `status` answers with `status`; `cut` hangs up before anything is done, half of the body read; `lost` does what was asked,
            and hangs up; `slow` waits `seconds` first; `corrupt` turns a bit of what is stored or served.
    """

    method: str
    path: str
    kind: str
    at: int = 0
    times: int = 1
    status: int = 503
    seconds: float = 0.0
    seen: int = 0

    def strikes(self, method: str, path: str) -> bool:
        if method != self.method or not re.search(self.path, path):
            return False
        self.seen += 1
        return self.at < self.seen <= self.at + self.times


@dataclass(kw_only=True)
class Hub:
    """A running Hub: its repositories by id, the requests so far, and body bytes by file name."""

    address: str
    repositories: dict[str, Repository]
    requests: list[str] = field(default_factory=list)
    served: dict[str, int] = field(default_factory=dict)
    tokens: list[str] = field(default_factory=list)
    accounts: dict[str, tuple[str, ...]] = field(
        default_factory=dict
    )  # token -> the account, and namespaces it may write to
    objects: dict[str, bytes] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    # A folder where the storage client (hf_xet) puts what it is given, and what that is: a commit names it by SHA-256 alone, and the
    # client's store on disk does not give it back by that.
    chunks: Path | None = None
    stored: dict[str, bytes] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def accounts_of(self, account: str) -> tuple[str, ...]:
        return next((names for names in self.accounts.values() if names[0] == account), (account,))

    def new_repository(self, **given: Any) -> Repository:
        return Repository(**given)

    def is_large(self, name: str) -> bool:
        return is_large(name)

    def oid(self, name: str, data: bytes) -> str:
        return git_blob(pointer(data)) if is_large(name) else git_blob(data)

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


def pointer(data: bytes) -> bytes:
    """What git holds of a file in LFS."""
    digest = hashlib.sha256(data).hexdigest()
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(data)}\n".encode()


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@contextmanager
def serve(
    repositories: dict[str, Repository],
    *,
    accounts: dict[str, tuple[str, ...]] | None = None,
    faults: list[Fault] | None = None,
    port: int = 0,
) -> Iterator[Hub]:
    """Run a Hub while the block lasts. Without accounts everybody may do everything."""
    server = ThreadingHTTPServer(("127.0.0.1", port), _Handler)
    server.daemon_threads = True
    hub = Hub(
        address=f"http://127.0.0.1:{server.server_address[1]}",
        repositories=repositories,
        accounts=accounts or {},
        faults=faults or [],
    )
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
    hub: Hub
    corrupt = False

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self._begin()
        fault = self._fault(path)
        if fault is not None and fault.kind != "corrupt":
            return self._fail_as(fault)
        self.corrupt = fault is not None
        account = self._account()
        if path == "/api/whoami-v2":
            if account is None:
                return self._fail(401, "")
            return self._json({"type": "user", "name": account, "orgs": []})
        if self.hub.chunks is not None and re.fullmatch(r"/api/models/.+/xet-write-token/.+", path):
            until = int(time.time()) + 3600
            store = f"local://{self.hub.chunks}"
            headers = {"X-Xet-Cas-Url": store, "X-Xet-Access-Token": "t", "X-Xet-Token-Expiration": str(until)}
            return self._answer(Answer(body={"casUrl": store, "accessToken": "t", "exp": until}, headers=headers))
        refs = re.fullmatch(r"/api/models/(.+?)/(refs|discussions)", path)
        if refs and (found := self._seen(refs[1])) is not None:
            query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
            if refs[2] == "refs":
                return self._answer(references(found))
            return self._answer(discussions(refs[1], found, query.get("type"), query.get("status")))
        # A branch's name may hold a slash, which comes quoted.
        raw = urlsplit(self.path).path
        api = re.fullmatch(r"/api/models/(.+?)(?:/(revision|tree)/([^/]+)(?:/.*)?)?", raw)
        path = unquote(raw)
        file = re.fullmatch(r"/(.+?)/resolve/((?:refs/pr/)?[^/]+)/(.+)", path)
        found = api or file
        repository = self._seen(found[1]) if found else None
        if repository is None:
            return self._fail(404 if account is not None else 401, "RepoNotFound")
        if repository.status:
            return self._fail(repository.status, "")
        if api:
            return self._api(repository, api[1], api[2], unquote(api[3] or "main"))
        assert file is not None
        return self._file(repository, file[2], file[3])

    # What is written.

    def do_POST(self) -> None:
        self._write()

    def do_PUT(self) -> None:
        self._write()

    def do_DELETE(self) -> None:
        self._write()

    def _write(self) -> None:
        path = self._begin()
        fault, size = self._fault(path), int(self.headers.get("Content-Length") or 0)
        if fault is not None and fault.kind == "cut":
            self.rfile.read(size // 2)
            self.close_connection = True
            return None
        body = self.rfile.read(size) if size else self._chunks()
        if fault is not None and fault.kind in ("status", "slow"):
            return self._fail_as(fault)
        if fault is not None and fault.kind == "corrupt":
            body = body[:-1] + bytes([body[-1] ^ 1])
        answer = self._written(urlsplit(self.path).path, body)
        if fault is not None and fault.kind == "lost":
            self.close_connection = True
            return None
        return self._answer(answer)

    def _written(self, path: str, body: bytes) -> Answer:
        account = self._account()
        writer = Writer(self.hub, account)
        is_json = self.headers.get("Content-Type", "").startswith(("application/json", "application/vnd.git-lfs"))
        asked = json.loads(body) if is_json and body else {}
        if path == "/api/repos/create":
            return writer.create(asked)
        if path == "/api/validate-yaml":
            return check_card(asked["content"])
        if found := re.fullmatch(r"/objects/([0-9a-f]{64})", path):
            return writer.store(found[1], body)
        if found := re.fullmatch(r"/(.+)/verify", path):
            return writer.verify(asked)
        if found := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            return writer.batch(found[1], asked)
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch|tag|paths-info)/([^/]+)", path)
        repository = self._seen(found[1]) if found else None
        if found is None or repository is None:
            return Answer(status=404 if account is not None else 401, headers={"X-Error-Code": "RepoNotFound"})
        name, what, revision = found[1], found[2], unquote(found[3])
        pull = "create_pr=1" in urlsplit(self.path).query
        if what == "paths-info":
            return self._paths(repository, revision, body)
        if not writer.owns(name) and not (account is not None and (pull or revision.startswith("refs/pr/"))):
            return Answer(status=403 if account is not None else 401, headers={"X-Error-Message": "Forbidden"})
        with self.hub.lock:
            if what == "preupload":
                return writer.preupload(repository, revision, asked)
            if what == "commit":
                return writer.commit(name, repository, revision, body, pull=pull)
            if what == "branch":
                is_new = self.command == "POST"
                return writer.branch(repository, revision, asked) if is_new else writer.unbranch(repository, revision)
            return writer.tag(repository, revision, asked)

    def _paths(self, repository: Repository, revision: str, body: bytes) -> Answer:
        files = repository.commits.get(repository.branches.get(revision, revision))
        if files is None:
            return Answer(status=404, headers={"X-Error-Code": "RevisionNotFound"})
        asked = json.loads(body)["paths"] if body.startswith(b"{") else parse_qs(body.decode()).get("paths", [])
        entries = [self._entry(path, files[path]) for path in asked if path in files]
        return Answer(body=[self._node(one) for one in entries])

    def _chunks(self) -> bytes:
        """A body that comes in chunks, as the client sends what it reads from a file."""
        body = bytearray()
        while self.headers.get("Transfer-Encoding") == "chunked":
            size = int(self.rfile.readline().split(b";")[0], 16)
            body += self.rfile.read(size)
            self.rfile.readline()
            if not size:
                break
        return bytes(body)

    # Who asks, and what goes wrong.

    def _begin(self) -> str:
        self.hub = self.server.hub  # type: ignore[attr-defined]
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        self.hub.tokens += [self.headers["Authorization"]] if "Authorization" in self.headers else []
        return path

    def _account(self) -> str | None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not self.hub.accounts:
            return "somebody"
        return self.hub.accounts[token][0] if token in self.hub.accounts else None

    def _seen(self, name: str) -> Repository | None:
        """A repository, where whoever asks may see it."""
        repository = self.hub.repositories.get(name)
        if repository is None or repository.private:
            return None
        return None if repository.closed and not Writer(self.hub, self._account()).owns(name) else repository

    def _fault(self, path: str) -> Fault | None:
        with self.hub.lock:
            return next((fault for fault in self.hub.faults if fault.strikes(self.command, path)), None)

    def _fail_as(self, fault: Fault) -> None:
        if fault.kind == "slow":
            time.sleep(fault.seconds)
        if fault.kind == "status":
            return self._fail(fault.status, "")
        self.close_connection = True
        return None

    def _answer(self, answer: Answer) -> None:
        headers = {"Content-Type": "application/json", **answer.headers}
        self._send(answer.status, json.dumps(answer.body).encode(), headers, "api")

    def _api(self, repository: Repository, name: str, kind: str | None, revision: str) -> None:
        commit = repository.branches.get(revision, revision)
        files = repository.commits.get(commit)
        if files is None:
            return self._fail(404, "RevisionNotFound")
        entries = [self._entry(path, data) for path, data in files.items()]
        if kind == "tree":
            return self._json([self._node(one) for one in entries])
        return self._json({"id": name, "sha": commit, "private": repository.closed, "tags": [], "siblings": entries})

    def _node(self, entry: dict[str, object]) -> dict[str, object]:
        """An entry as a tree lists it."""
        return {"type": "file", "path": entry["rfilename"], "oid": entry["blobId"], **entry}

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
        if path in repository.damaged or self.corrupt:
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description="A Hub on the loopback interface, empty at first, that forgets when it ends."
    )
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--token", help="Of the only account; default: everybody may do everything.")
    parser.add_argument("--account", default="somebody", help="Its name, and that of its namespace.")
    asked = parser.parse_args()
    accounts = {asked.token: (asked.account,)} if asked.token else {}
    with serve({}, accounts=accounts, port=asked.port) as hub:
        print(f"HF_ENDPOINT={hub.address}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()


if __name__ == "__main__":
    main()
