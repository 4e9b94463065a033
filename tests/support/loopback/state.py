"""What a Hub on the loopback interface knows: repositories, accounts, objects, and what is to go wrong.

`loopback` serves it, `loopback_reads` and `loopback_writes` answer from it and change it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

NOBODY_ELSE = "somebody"  # who everybody is where there are no accounts


@dataclass(kw_only=True)
class Pull:
    """A pull request, whose branch is `refs/pr/N`: what it says, and what has happened to it.

    Attributes:
        base: the commit that it starts from. status: draft, open, closed or merged. events: as the Hub tells them.
    """

    title: str
    author: str
    base: str
    status: str = "open"
    merged: str | None = None
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_open(self) -> bool:
        return self.status in ("open", "draft")


@dataclass(frozen=True, kw_only=True)
class Logged:
    """What history tells of a commit."""

    parent: str | None
    title: str
    message: str
    author: str


@dataclass(kw_only=True)
class Repository:
    """A model repository. `commits` gives each commit's files, `branches` what a revision means."""

    commits: dict[str, dict[str, bytes]]
    branches: dict[str, str]
    gated: bool = False  # lists its files, gives none but to its owner
    private: bool = False  # does not even say that it exists
    damaged: frozenset[str] = frozenset()  # files that are served with one flipped bit
    ignores_ranges: bool = False
    status: int = 0  # answer everything with this status
    closed: bool = False  # as `private`, but for those who own it
    tags: dict[str, str] = field(default_factory=dict)
    pulls: dict[int, Pull] = field(default_factory=dict)
    ignored: frozenset[str] = frozenset()  # by its .gitignore
    log: dict[str, Logged] = field(default_factory=dict)  # of the commits made here

    def find(self, revision: str) -> str | None:
        """The commit that a branch, a tag, a pull request or a commit's own name means."""
        commit = self.branches.get(revision) or self.tags.get(revision) or revision
        return commit if commit in self.commits else None


@dataclass(kw_only=True)
class Fault:
    """What goes wrong with some requests.

    Attributes:
        method, path: which requests: a method, and what the path matches somewhere.
        at, times: from which of them on (0: the first), and how many.
        kind: `status` answers with `status` and does nothing; `cut` hangs up after `after` bytes (None: half) of the request's body,
            or of the answer's where the request has none; `lost` does what was asked, and hangs up; `slow` waits `seconds` before
            every 64 KiB of either; `corrupt` turns a bit of what is stored, or of the file that is served; `page` does nothing, and
            answers with `body` as if all were well: so does a network that asks to log in first.
        message: what is said with a status.
    """

    method: str
    path: str
    kind: str
    at: int = 0
    times: int = 1
    status: int = 503
    seconds: float = 0.0
    after: int | None = None
    message: str = ""
    body: bytes = b""
    seen: int = 0

    def __post_init__(self) -> None:
        assert self.kind in ("status", "cut", "lost", "slow", "corrupt", "page"), self.kind

    @property
    def was_met(self) -> bool:
        return self.seen > self.at

    def strikes(self, method: str, path: str) -> bool:
        if method != self.method or not re.search(self.path, path):
            return False
        self.seen += 1
        return self.at < self.seen <= self.at + self.times


@dataclass(kw_only=True)
class Hub:
    """A running Hub: its repositories by id, the requests so far, and body bytes by file name.

    Attributes:
        accounts: token -> the account, and other namespaces that it may write to; none: everybody may do everything.
        objects: SHA-256 -> what is stored by it. part: objects above it go up in parts of that size.
        chunks: a folder where the storage client (hf_xet) keeps what it is given; none: this Hub has no such storage. Two processes
            cannot have it at once: the second fails to open it.
        hashes: SHA-256 -> the name by which that storage has it.
        meanwhile: called with every request (`METHOD path`) before it is looked at: what others do between two of them.
        bodies: another server's address, to which whoever gets a file is sent; none: this one gives them.
    """

    address: str
    repositories: dict[str, Repository]
    requests: list[str] = field(default_factory=list)
    served: dict[str, int] = field(default_factory=dict)
    tokens: list[str] = field(default_factory=list)
    accounts: dict[str, tuple[str, ...]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    objects: dict[str, Stored] = field(default_factory=dict)
    parts: dict[tuple[str, int], bytes] = field(default_factory=dict)
    part: int | None = None
    chunks: Path | None = None
    hashes: dict[str, str] = field(default_factory=dict)
    meanwhile: Callable[[str], None] | None = None
    bodies: str | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)

    def owns(self, account: str | None, name: str) -> bool:
        """Whether an account may write to a repository."""
        if not self.accounts:
            return True
        namespaces = [names for names in self.accounts.values() if names[0] == account]
        return any(name.partition("/")[0] in names for names in namespaces)

    def fault(self, method: str, path: str) -> Fault | None:
        """What is to go wrong with a request. Every fault counts it."""
        with self.lock:
            return next(iter([fault for fault in self.faults if fault.strikes(method, path)]), None)

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


# A request and its answer.


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request, read to its end. `account` None: nobody is logged in; `corrupt`: store or serve it with a bit turned."""

    method: str
    target: str
    headers: Message  # by names of either case
    body: bytes = b""
    account: str | None = None
    corrupt: bool = False

    @property
    def raw(self) -> str:
        """The path as it came: what is quoted in it is one part of it."""
        return urlsplit(self.target).path

    @property
    def path(self) -> str:
        return unquote(self.raw)

    @property
    def query(self) -> dict[str, str]:
        return {key: values[0] for key, values in parse_qs(urlsplit(self.target).query).items()}

    @property
    def wants_pull(self) -> bool:
        return self.query.get("create_pr") == "1"

    def json(self) -> dict[str, Any]:
        return json.loads(self.body) if self.body else {}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Status, body (bytes, or what is told as JSON) and headers of an answer, and the name it is counted by."""

    status: int = 200
    body: Any = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    name: str = "api"

    @property
    def data(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


class Refused(Exception):
    """A request that is answered with a refusal."""

    def __init__(self, status: int, code: str = "", message: str = "", **headers: str) -> None:
        super().__init__(message or code)
        given = {"X-Error-Code": code, "X-Error-Message": message or code}
        told = {key.replace("_", "-"): value for key, value in headers.items()} | {k: v for k, v in given.items() if v}
        self.answer = Answer(status=status, body={"error": message or code}, headers=told, name="error")


def repository_of(hub: Hub, request: Request, name: str) -> Repository:
    """A repository, where whoever asks may see it."""
    found = hub.repositories.get(name)
    if found is None or found.private or (found.closed and not hub.owns(request.account, name)):
        raise Refused(404 if request.account is not None else 401, "RepoNotFound", "Repository not found")
    if found.status:
        raise Refused(found.status)
    return found


def files_at(repository: Repository, revision: str) -> dict[str, bytes]:
    commit = repository.find(revision)
    if commit is None:
        raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return repository.commits[commit]


# Files.


class Stored(bytes):
    """A file's bytes that are an object of Git LFS: git has a pointer to them."""

    @cached_property
    def digest(self) -> str:
        return hashlib.sha256(self).hexdigest()


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", "tokenizer.model"))


def is_object(name: str, data: bytes) -> bool:
    """Whether a file is an object: it came as one; in a repository that a test has made, by its name."""
    return isinstance(data, Stored) or (is_large(name) and bool(data))


def digest_of(data: bytes) -> str:
    return data.digest if isinstance(data, Stored) else hashlib.sha256(data).hexdigest()


def pointer(data: bytes) -> bytes:
    """What git holds of a file in LFS."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest_of(data)}\nsize {len(data)}\n".encode()


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def turned(data: bytes) -> bytes:
    """With one flipped bit."""
    return data[:-1] + bytes([data[-1] ^ 1]) if data else data


def one_commit(files: dict[str, bytes], *, commit: str = "a" * 40, branch: str = "main") -> Repository:
    return Repository(commits={commit: files}, branches={branch: commit})


# Commits.


def commit_of(parent: str | None, files: Mapping[str, bytes], message: str) -> str:
    """A name for a commit, by what it holds and comes after."""
    digest = hashlib.sha1(f"{parent}\0{message}".encode(), usedforsecurity=False)
    for name in sorted(files):
        digest.update(f"{name}\0{digest_of(files[name])}".encode())
    return digest.hexdigest()


def add_commit(
    repository: Repository, parent: str, files: dict[str, bytes], title: str, message: str, author: str
) -> str:
    commit = commit_of(parent, files, f"{title}\0{message}")
    repository.commits[commit] = files
    repository.log[commit] = Logged(parent=parent, title=title, message=message, author=author)
    return commit
