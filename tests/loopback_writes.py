"""What a Hub on the loopback interface does when it is written to: `loopback` reads, this writes.

In go requests as the real client makes them; out come answers as the real Hub gives them, and commits in `Repository.commits`.
An object of Git LFS is stored before a commit may name it; a commit is whole or not at all.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from loopback import Hub, Repository

GIT_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
LARGE_FROM = 10_000_000
NOW = "2026-01-01T00:00:00.000Z"


@dataclass(kw_only=True)
class Answer:
    """Status, body and headers of an answer."""

    status: int = 200
    body: Any = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(kw_only=True)
class Pull:
    """A pull request: its title, who opened it, whether it is open."""

    title: str
    author: str
    status: str = "open"


def refused(status: int, code: str = "", message: str = "") -> Answer:
    headers = {"X-Error-Code": code} if code else {}
    return Answer(
        status=status, body={"error": message or code}, headers={**headers, "X-Error-Message": message or code}
    )


def commit_of(parent: str | None, files: Mapping[str, bytes], message: str) -> str:
    """A name for a commit, by what it holds and comes after."""
    digest = hashlib.sha1(f"{parent}\0{message}".encode(), usedforsecurity=False)
    for name in sorted(files):
        digest.update(name.encode() + b"\0" + hashlib.sha256(files[name]).digest())
    return digest.hexdigest()


class Writer:
    """One request that writes. `account` None: nobody is logged in."""

    def __init__(self, hub: Hub, account: str | None) -> None:
        self.hub, self.account = hub, account

    def owns(self, name: str) -> bool:
        return not self.hub.accounts or (
            self.account is not None and name.partition("/")[0] in self.hub.accounts_of(self.account)
        )

    # Repositories and references.

    def create(self, asked: Mapping[str, Any]) -> Answer:
        if self.account is None and self.hub.accounts:
            return refused(401, message="Invalid credentials in Authorization header")
        name = f"{asked.get('organization') or self.account}/{asked['name']}"
        url = f"{self.hub.address}/{name}"
        if name in self.hub.repositories:
            return Answer(status=409, body={"error": "You already created this model repo", "url": url, "id": name})
        if not self.owns(name):
            return refused(403, message="You don't have the rights to create a model under this namespace")
        files = {".gitattributes": GIT_ATTRIBUTES}
        first = commit_of(None, files, name)
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repositories[name] = self.hub.new_repository(commits={first: files}, branches={"main": first})
        self.hub.repositories[name].closed = private
        return Answer(body={"url": url, "name": name, "id": name})

    def branch(self, repository: Repository, name: str, asked: Mapping[str, Any]) -> Answer:
        if name in repository.branches:
            return refused(409, message="Reference already exists")
        if name.startswith("refs/"):
            return refused(400, message="Invalid reference for a branch")
        start = asked.get("startingPoint") or "main"
        repository.branches[name] = repository.branches.get(start, start)
        return Answer()

    def unbranch(self, repository: Repository, name: str) -> Answer:
        if name == "main":
            return refused(403, message="Cannot delete the main branch")
        if repository.branches.pop(name, None) is None:
            return refused(404, "RevisionNotFound")
        return Answer()

    def tag(self, repository: Repository, revision: str, asked: Mapping[str, Any]) -> Answer:
        if asked["tag"] in repository.tags:
            return refused(409, message="Tag already exists")
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            return refused(404, "RevisionNotFound")
        repository.tags[asked["tag"]] = commit
        return Answer()

    # Objects.

    def preupload(self, repository: Repository, revision: str, asked: Mapping[str, Any]) -> Answer:
        there = repository.commits.get(repository.branches.get(revision, revision))
        if there is None:
            return refused(404, "RevisionNotFound")
        files = []
        for file in asked["files"]:
            path = file["path"]
            entry = {"path": path, "shouldIgnore": path in repository.ignored}
            entry["uploadMode"] = "lfs" if self.hub.is_large(path) or file["size"] > LARGE_FROM else "regular"
            if path in there:
                entry["oid"] = self.hub.oid(path, there[path])
            files.append(entry)
        return Answer(body={"files": files})

    def batch(self, name: str, asked: Mapping[str, Any]) -> Answer:
        objects = []
        for one in asked["objects"]:
            entry: dict[str, Any] = {"oid": one["oid"], "size": one["size"]}
            if one["oid"] not in self.hub.objects:
                href = f"{self.hub.address}/objects/{one['oid']}"
                entry["actions"] = {"upload": {"href": href}, "verify": {"href": f"{self.hub.address}/{name}/verify"}}
            objects.append(entry)
        return Answer(body={"transfer": "basic", "objects": objects})

    def store(self, oid: str, data: bytes) -> Answer:
        # As a store of objects does: it takes the bytes, and their name on trust.
        self.hub.objects[oid] = data
        return Answer()

    def verify(self, asked: Mapping[str, Any]) -> Answer:
        found = self.hub.objects.get(asked["oid"])
        return Answer() if found is not None and len(found) == asked["size"] else refused(404, message="no such object")

    # Commits.

    def commit(self, name: str, repository: Repository, revision: str, body: bytes, *, pull: bool) -> Answer:
        lines = [json.loads(line) for line in body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        head = repository.branches.get(revision)
        if head is None:
            return refused(404, "RevisionNotFound")
        if header.get("parentCommit") not in (None, head):
            return refused(412, message="A commit has happened since. Please refresh and try again.")
        files = dict(repository.commits[head])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if self.hub.chunks is not None and any(self.hub.chunks.rglob("*")) and value["oid"] in self.hub.stored:
                    self.hub.objects[value["oid"]] = self.hub.stored[value["oid"]]
                if value["oid"] not in self.hub.objects:
                    return refused(400, message=f"LFS pointer pointed to a file that does not exist: {value['path']}")
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                if files.pop(value["path"], None) is None:
                    return refused(404, "EntryNotFound", "A file with this name doesn't exist")
            elif line["key"] == "deletedFolder":
                files = {
                    path: data for path, data in files.items() if not path.startswith(value["path"].rstrip("/") + "/")
                }
        commit = commit_of(head, files, header["summary"])
        repository.commits[commit] = files
        answer = {"success": True, "commitOid": commit, "commitUrl": f"{self.hub.address}/{name}/commit/{commit}"}
        if pull:
            number = self.open_pull(repository, header["summary"])
            repository.branches[f"refs/pr/{number}"] = commit
            answer["pullRequestUrl"] = f"{self.hub.address}/{name}/discussions/{number}"
        else:
            repository.branches[revision] = commit
        return Answer(body=answer)

    def open_pull(self, repository: Repository, title: str) -> int:
        number = len(repository.pulls) + 1
        repository.pulls[number] = Pull(title=title, author=self.account or "somebody")
        return number


def discussions(name: str, repository: Repository, kind: str | None, status: str | None) -> Answer:
    found = [
        {
            "num": number,
            "title": pull.title,
            "author": {"name": pull.author},
            "createdAt": NOW,
            "status": pull.status,
            "repo": {"name": name, "type": "model"},
            "isPullRequest": True,
        }
        for number, pull in sorted(repository.pulls.items())
        if kind != "discussion" and status in (None, "all", pull.status)
    ]
    return Answer(body={"discussions": found, "count": len(found), "start": 0})


def references(repository: Repository) -> Answer:
    branches = [
        {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit}
        for name, commit in repository.branches.items()
        if not name.startswith("refs/")
    ]
    tags = [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": at} for name, at in repository.tags.items()]
    pulls = [
        {"name": name, "ref": name, "targetCommit": commit}
        for name, commit in repository.branches.items()
        if name.startswith("refs/pr/")
    ]
    return Answer(body={"branches": branches, "converts": [], "tags": tags, "pullRequests": pulls})


def check_card(content: str) -> Answer:
    """What the Hub finds in a card's metadata: enough to refuse what it refuses."""
    front = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    known = re.search(r"^license: ([a-z0-9.+-]+)$", front[1], re.MULTILINE) if front else None
    if front and "license:" in front[1] and (known is None or known[1].startswith("no-such")):
        return Answer(
            status=400, body={"errors": [{"message": '"license" must be one of the known licences'}], "warnings": []}
        )
    return Answer(body={"errors": [], "warnings": []})
