"""What a Hub on the loopback interface says when it is read from: repositories, trees, history, proposals, files.

In go requests as the real client makes them; out come answers as it reads them. Nothing is changed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

from support.loopback.state import (
    Answer,
    Hub,
    Logged,
    Pull,
    Refused,
    Repository,
    Request,
    digest_of,
    files_at,
    git_blob,
    is_object,
    pointer,
    repository_of,
    turned,
)

NOW = "2026-01-01T00:00:00.000Z"
VERBS = "revision|tree|refs|commits|discussions|xet-read-token|xet-write-token|auth-check|preupload|commit|branch|tag"
# A name has one or two parts; what follows may quote a slash (a branch's, a pull request's), which is part of it.
API = re.compile(rf"/api/models/((?:[^/]+/)??[^/]+)(?:/({VERBS}|paths-info|settings)(?:/([^/]+)(?:/(.+))?)?)?")
FILE = re.compile(r"/((?:[^/]+/)??[^/]+)/resolve/((?:refs/pr/)?[^/]+)/(.+)")


def read(hub: Hub, request: Request) -> Answer:
    """Raises Refused."""
    if request.path == "/api/whoami-v2":
        return _whoami(hub, request)
    if found := FILE.fullmatch(request.raw):
        name, revision, path = map(unquote, found.groups())
        return _file(hub, request, name, repository_of(hub, request, name), revision, path)
    found = API.fullmatch(request.raw)
    if found is None:
        raise Refused(404, message=f"no such page: {request.path}")
    name, verb, first, rest = (part and unquote(part) for part in found.groups())
    repository = repository_of(hub, request, name)
    answers: dict[str, Callable[[], Answer]] = {
        "revision": lambda: _info(name, repository, first or "main", blobs="blobs" in request.query),
        "tree": lambda: _tree(hub, request, repository, first or "main", rest or ""),
        "refs": lambda: _references(repository, pulls="include_prs" in request.query),
        "commits": lambda: Answer(body=list(_history(repository, first or "main"))),
        "discussions": lambda: _discussion(name, repository, int(first)) if first else _list(name, repository, request),
        "xet-read-token": lambda: _token(hub, request, name, repository, writes=False),
        "xet-write-token": lambda: _token(hub, request, name, repository, writes=True, revision=first or "main"),
        "auth-check": lambda: _check(hub, request, name, writes=first == "write"),
    }
    if (verb or "revision") not in answers:
        raise Refused(404, message=f"no such page: {request.path}")
    return answers[verb or "revision"]()


def _whoami(hub: Hub, request: Request) -> Answer:
    if request.account is None:
        raise Refused(401, message="Invalid username or password.")
    names = next((names for names in hub.accounts.values() if names[0] == request.account), (request.account,))
    orgs = [{"type": "org", "name": name, "fullname": name, "roleInOrg": "write"} for name in names[1:]]
    token = {"type": "access_token", "accessToken": {"displayName": "loopback", "role": "write"}}
    return Answer(body={"type": "user", "id": "1", "name": names[0], "fullname": names[0], "orgs": orgs, "auth": token})


def _check(hub: Hub, request: Request, name: str, *, writes: bool) -> Answer:
    if writes and not hub.owns(request.account, name):
        raise Refused(401 if request.account is None else 403, message="Forbidden")
    return Answer()


# A repository and its files.


def _info(name: str, repository: Repository, revision: str, *, blobs: bool) -> Answer:
    files = files_at(repository, revision)
    siblings = [_sibling(path, data) if blobs else {"rfilename": path} for path, data in files.items()]
    return Answer(
        body={
            "_id": "1",
            "id": name,
            "modelId": name,
            "author": name.partition("/")[0],
            "sha": repository.find(revision),
            "private": repository.closed,
            "gated": "manual" if repository.gated else False,
            "disabled": False,
            "tags": [],
            "createdAt": NOW,
            "lastModified": NOW,
            "siblings": siblings,
        }
    )


def _sibling(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": _blob(path, data)}
    if is_object(path, data):
        entry["lfs"] = {"sha256": digest_of(data), "size": len(data), "pointerSize": len(pointer(data))}
    return entry


def _blob(path: str, data: bytes) -> str:
    return git_blob(pointer(data) if is_object(path, data) else data)


def node(hub: Hub, path: str, data: bytes) -> dict[str, Any]:
    """A file as a tree lists it."""
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": _blob(path, data)}
    if is_object(path, data):
        digest = digest_of(data)
        entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": len(pointer(data))}
        if hub.chunks is not None and digest in hub.hashes:
            entry["xetHash"] = hub.hashes[digest]
    return entry


def folder(path: str) -> dict[str, Any]:
    return {"type": "directory", "path": path, "size": 0, "oid": git_blob(path.encode())}


def _tree(hub: Hub, request: Request, repository: Repository, revision: str, under: str) -> Answer:
    files = files_at(repository, revision)
    deep = request.query.get("recursive", "").lower() == "true"
    expand = request.query.get("expand", "").lower() == "true"
    start = f"{under}/" if under else ""
    inside = {path: data for path, data in files.items() if path.startswith(start)}
    if under and not inside:
        raise Refused(404, "EntryNotFound", f"{under} does not exist on {revision}")
    folders = {
        str(parent)
        for path in inside
        for parent in PurePosixPath(path).parents
        if str(parent) != "." and str(parent).startswith(start)
    }
    found = [*map(folder, sorted(folders)), *(node(hub, path, data) for path, data in inside.items())]
    found = [entry for entry in found if deep or "/" not in entry["path"].removeprefix(start)]
    if expand:
        last = next(iter(_history(repository, revision)))
        found = [{**entry, "lastCommit": {key: last[key] for key in ("id", "title", "date")}} for entry in found]
    return Answer(body=found)


def _pass_the_gate(hub: Hub, request: Request, name: str, repository: Repository) -> None:
    if repository.gated and not (hub.accounts and hub.owns(request.account, name)):
        logged_in = request.account is not None and "Authorization" in request.headers
        raise Refused(403 if logged_in else 401, "GatedRepo", f"Access to model {name} is restricted")


def _file(hub: Hub, request: Request, name: str, repository: Repository, revision: str, path: str) -> Answer:
    _pass_the_gate(hub, request, name, repository)
    commit = repository.find(revision)
    data = files_at(repository, revision).get(path)
    if commit is None or data is None:
        raise Refused(404, "EntryNotFound", "Entry not found", X_Repo_Commit=commit or "")
    large = is_object(path, data)
    digest = digest_of(data) if large else git_blob(data)
    headers = {"ETag": f'"{digest}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
    headers["Content-Type"] = "application/octet-stream"
    if large:
        headers |= {"X-Linked-ETag": f'"{digest}"', "X-Linked-Size": str(len(data))}
        if hub.chunks is not None and digest in hub.hashes:
            route = f"{hub.address}/api/models/{name}/xet-read-token/{commit}"
            headers |= {"X-Xet-Hash": hub.hashes[digest], "X-Xet-Refresh-Route": route}
    if hub.bodies is not None:
        # As the real Hub does: what a file is stands in this answer, its bytes come from a storage server.
        return Answer(status=302, body=b"", headers={**headers, "Location": f"{hub.bodies}/{path}"}, name=path)
    if path in repository.damaged or request.corrupt:
        data = turned(data)
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
    if wanted is None or repository.ignores_ranges:
        return Answer(body=data, headers=headers, name=path)
    begin, end = int(wanted[1]), min(int(wanted[2] or len(data)) + 1, len(data))
    if begin >= len(data):
        raise Refused(416, message="Range not satisfiable", Content_Range=f"bytes */{len(data)}")
    headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(data)}"
    return Answer(status=206, body=data[begin:end], headers=headers, name=path)


def _token(
    hub: Hub, request: Request, name: str, repository: Repository, *, writes: bool, revision: str = "main"
) -> Answer:
    """Where the storage client (hf_xet) is to go. `local://` is its own store on disk: no server is behind it."""
    if hub.chunks is None:
        raise Refused(404, message="this Hub has no such storage")
    if writes:
        may_write(hub, request, name, repository, revision)
    else:
        _pass_the_gate(hub, request, name, repository)
    until = int(time.time()) + 3600
    store = f"local://{hub.chunks}"
    headers = {"X-Xet-Cas-Url": store, "X-Xet-Access-Token": "loopback", "X-Xet-Token-Expiration": str(until)}
    return Answer(body={"casUrl": store, "accessToken": "loopback", "exp": until}, headers=headers)


def may_write(hub: Hub, request: Request, name: str, repository: Repository, revision: str) -> None:
    """See that whoever asks may write to a branch; anyone logged in may propose. Raises Refused."""
    if request.account is None:
        raise Refused(401, message="Invalid username or password.")
    number = re.fullmatch(r"refs/pr/(\d+)", revision)
    pull = repository.pulls.get(int(number[1])) if number else None
    mine = pull is not None and pull.author == request.account
    if not (hub.owns(request.account, name) or request.wants_pull or mine):
        raise Refused(403, message="Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request")


# History, references, proposals.


def _history(repository: Repository, revision: str) -> Iterator[dict[str, Any]]:
    files_at(repository, revision)
    commit = repository.find(revision)
    while commit is not None:
        entry = repository.log.get(commit, Logged(parent=None, title="initial commit", message="", author="somebody"))
        yield {
            "id": commit,
            "title": entry.title,
            "message": entry.message,
            "date": NOW,
            "authors": [{"user": entry.author}],
        }
        commit = entry.parent


def _references(repository: Repository, *, pulls: bool) -> Answer:
    named: dict[str, list[dict[str, str]]] = {"branches": [], "converts": [], "tags": [], "pullRequests": []}
    for name, commit in repository.branches.items():
        is_pull = name.startswith("refs/pr/")
        entry = {"name": name, "ref": name if is_pull else f"refs/heads/{name}", "targetCommit": commit}
        named["pullRequests" if is_pull else "branches"].append(entry)
    for name, commit in repository.tags.items():
        named["tags"].append({"name": name, "ref": f"refs/tags/{name}", "targetCommit": commit})
    return Answer(body=named if pulls else {**named, "pullRequests": []})


def told(name: str, number: int, pull: Pull) -> dict[str, Any]:
    """A pull request as a list of them tells it."""
    return {
        "num": number,
        "title": pull.title,
        "author": {"name": pull.author},
        "createdAt": NOW,
        "status": pull.status,
        "repo": {"name": name, "type": "model"},
        "isPullRequest": True,
    }


def _list(name: str, repository: Repository, request: Request) -> Answer:
    status, author = request.query.get("status"), request.query.get("author")
    found = [
        told(name, number, pull)
        for number, pull in sorted(repository.pulls.items(), reverse=True)
        if request.query.get("type") != "discussion"
        and (status in (None, "all") or pull.is_open == (status == "open"))
        and author in (None, pull.author)
    ]
    return Answer(body={"discussions": found, "count": len(found), "start": 0})


def conflicts(repository: Repository, number: int) -> list[str]:
    """Files that both a pull request and `main` have changed since it began."""
    base, theirs = repository.commits[repository.pulls[number].base], files_at(repository, f"refs/pr/{number}")
    ours = files_at(repository, "main")
    return sorted(
        path
        for path in {*base, *theirs, *ours}
        if base.get(path) != theirs.get(path) and ours.get(path) not in (base.get(path), theirs.get(path))
    )


def _discussion(name: str, repository: Repository, number: int) -> Answer:
    pull = repository.pulls.get(number)
    if pull is None:
        raise Refused(404, message="No such discussion")
    changes = {"base": "refs/heads/main", "mergeCommitId": pull.merged}
    clash = conflicts(repository, number) if pull.is_open else []
    more = {"events": pull.events, "changes": changes, "filesWithConflicts": clash, "diff": ""}
    return Answer(body={**told(name, number, pull), **more})
