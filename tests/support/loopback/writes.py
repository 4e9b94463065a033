"""What a Hub on the loopback interface does when it is written to: `loopback_reads` reads, this writes.

In go requests as the real client makes them; out come answers as the real Hub gives them, and commits in `Repository.commits`.
An object of Git LFS is stored before a commit may name it; a commit is whole or not at all.
"""

from __future__ import annotations

import base64
import fnmatch
import json
import re
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote

from support.loopback.pulls import Proposals
from support.loopback.reads import API, folder, may_write, node
from support.loopback.state import (
    NOBODY_ELSE,
    Answer,
    Hub,
    Logged,
    Refused,
    Repository,
    Request,
    Stored,
    add_commit,
    commit_of,
    digest_of,
    files_at,
    git_blob,
    is_large,
    is_object,
    repository_of,
    turned,
)
from support.loopback.xet import read_files, stored_files

GIT_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n*.bin filter=lfs diff=lfs merge=lfs -text\n"
LARGE_FROM = 10_000_000
BATCH = re.compile(r"/((?:[^/]+/)??[^/]+)\.git/info/lfs/objects/batch")
NO_RIGHTS = "You don't have the rights to create a model under the namespace"


def write(hub: Hub, request: Request) -> Answer:
    """Raises Refused."""
    return Writer(hub, request).answer()


class Writer:
    """One request that writes."""

    def __init__(self, hub: Hub, request: Request) -> None:
        self.hub, self.request, self.account = hub, request, request.account

    def answer(self) -> Answer:
        path = self.request.path
        routes: dict[str, Callable[[], Answer]] = {
            "POST /api/repos/create": self._create,
            "DELETE /api/repos/delete": self._delete,
            "POST /api/validate-yaml": lambda: check_card(self.request.json()["content"]),
        }
        if route := routes.get(f"{self.request.method} {path}"):
            return route()
        if found := re.fullmatch(r"/objects/([0-9a-f]{64})(?:/(\d+))?", path):
            return self._store(found[1], int(found[2])) if found[2] else self._object(found[1])
        if path == "/objects/verify":
            return self._verify()
        if found := BATCH.fullmatch(path):
            return self._batch(found[1], repository_of(self.hub, self.request, found[1]))
        return self._of_repository()

    def _of_repository(self) -> Answer:
        found = API.fullmatch(self.request.raw)
        if found is None:
            raise Refused(404, message=f"no such page: {self.request.path}")
        name, verb, first, rest = (part and unquote(part) for part in found.groups())
        repository, method = repository_of(self.hub, self.request, name), self.request.method
        if f"{method} {verb}" == "POST paths-info":
            return self._paths(repository, first)
        if f"{method} {verb}" == "POST discussions":
            return Proposals(self.hub, self.request).answer(name, repository, first, rest)
        may_write(self.hub, self.request, name, repository, first or "main")
        answers: dict[str, Callable[[], Answer]] = {
            "POST preupload": lambda: self._preupload(repository, first),
            "POST commit": lambda: self._commit(name, repository, first),
            "POST branch": lambda: self._branch(repository, first),
            "DELETE branch": lambda: self._unbranch(repository, first),
            "POST tag": lambda: self._tag(repository, first),
            "DELETE tag": lambda: self._untag(repository, first),
            "PUT settings": lambda: self._settings(repository),
        }
        if verb not in ("preupload", "commit") and not self.hub.owns(self.account, name):
            raise Refused(403, message="Forbidden")
        if f"{method} {verb}" not in answers:
            raise Refused(404, message=f"no such page: {self.request.path}")
        return answers[f"{method} {verb}"]()

    # Repositories and references.

    def _create(self) -> Answer:
        asked = self.request.json()
        if self.account is None:
            raise Refused(401, message="Invalid username or password.")
        if asked.get("type") not in (None, "model"):
            raise Refused(400, message="this Hub has models only")
        name = f"{asked.get('organization') or self.account}/{asked['name']}"
        url = f"{self.hub.address}/{name}"
        if not self.hub.owns(self.account, name):
            raise Refused(403, message=f'{NO_RIGHTS} "{name.partition("/")[0]}"')
        if name in self.hub.repositories:
            message = "You already created this model repo"
            return Answer(status=409, body={"error": message, "url": url}, headers={"X-Error-Message": message})
        files = {".gitattributes": GIT_ATTRIBUTES}
        first = commit_of(None, files, name)
        repository = Repository(commits={first: files}, branches={"main": first}, closed=_is_private(asked))
        repository.log[first] = Logged(parent=None, title="initial commit", message="", author=self.account)
        self.hub.repositories[name] = repository
        return Answer(body={"url": url, "name": name, "id": name})

    def _delete(self) -> Answer:
        asked = self.request.json()
        name = f"{asked.get('organization') or self.account}/{asked['name']}"
        repository_of(self.hub, self.request, name)
        if self.account is None or not self.hub.owns(self.account, name):
            raise Refused(401 if self.account is None else 403, message="Forbidden")
        del self.hub.repositories[name]
        return Answer()

    def _settings(self, repository: Repository) -> Answer:
        asked = self.request.json()
        if "visibility" in asked or "private" in asked:
            repository.closed = _is_private(asked)
        if "gated" in asked:
            repository.gated = asked["gated"] is not False
        return Answer()

    def _branch(self, repository: Repository, name: str) -> Answer:
        if name in repository.branches:
            raise Refused(409, message=f"Reference already exists: {name}")
        if name.startswith("refs/"):
            raise Refused(400, message=f"Invalid reference for a branch: {name}")
        start = self.request.json().get("startingPoint") or "main"
        files_at(repository, start)
        repository.branches[name] = repository.find(start) or ""
        return Answer()

    def _unbranch(self, repository: Repository, name: str) -> Answer:
        if name == "main":
            raise Refused(403, message="Cannot delete the main branch")
        if repository.branches.pop(name, None) is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {name}")
        return Answer()

    def _tag(self, repository: Repository, revision: str) -> Answer:
        name = self.request.json()["tag"]
        files_at(repository, revision)
        if name in repository.tags:
            raise Refused(409, message=f"Tag reference exists already: {name}")
        repository.tags[name] = repository.find(revision) or ""
        return Answer()

    def _untag(self, repository: Repository, name: str) -> Answer:
        if repository.tags.pop(name, None) is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {name}")
        return Answer()

    # Objects.

    def _preupload(self, repository: Repository, revision: str) -> Answer:
        there = files_at(repository, revision)
        asked = self.request.json()
        rules = asked.get("gitIgnore") or there.get(".gitignore", b"").decode()
        files = []
        for file in asked["files"]:
            path = file["path"]
            entry = {"path": path, "shouldIgnore": path in repository.ignored or _is_ignored(path, rules)}
            binary = b"\0" in base64.b64decode(file.get("sample", ""))
            large = is_large(path) or binary or file["size"] > LARGE_FROM
            entry["uploadMode"] = "lfs" if large else "regular"
            if path in there:
                data = there[path]
                entry["oid"] = digest_of(data) if is_object(path, data) else git_blob(data)
            files.append(entry)
        return Answer(body={"files": files})

    def _batch(self, name: str, repository: Repository) -> Answer:
        asked = self.request.json()
        # A branch is named unless the objects are for a pull request, which anyone may open.
        named = asked.get("ref", {}).get("name")
        if self.account is None:
            raise Refused(401, message="Invalid username or password.")
        if named is not None:
            may_write(self.hub, self.request, name, repository, named)
        self._find_made(repository)
        in_parts = self.hub.part is not None and "multipart" in asked.get("transfers", [])
        objects = [
            {"oid": one["oid"], "size": one["size"], **self._actions(one["oid"], one["size"], in_parts=in_parts)}
            for one in asked["objects"]
        ]
        return Answer(body={"transfer": "multipart" if in_parts else "basic", "objects": objects})

    def _actions(self, oid: str, size: int, *, in_parts: bool) -> dict[str, Any]:
        if oid in self.hub.objects:
            return {}
        upload: dict[str, Any] = {"href": f"{self.hub.address}/objects/{oid}"}
        if in_parts and self.hub.part is not None and size > self.hub.part:
            count = -(-size // self.hub.part)
            header = {str(number): f"{upload['href']}/{number}" for number in range(1, count + 1)}
            upload["header"] = {"chunk_size": str(self.hub.part), **header}
        return {"actions": {"upload": upload, "verify": {"href": f"{self.hub.address}/objects/verify"}}}

    def _store(self, oid: str, number: int) -> Answer:
        self.hub.parts[oid, number] = turned(self.request.body) if self.request.corrupt else self.request.body
        return Answer(headers={"ETag": f'"{digest_of(self.request.body)[:32]}"'})

    def _object(self, oid: str) -> Answer:
        # As a store of objects does, it takes the bytes, and their name on trust.
        data = self.request.body
        if self.request.method == "POST":
            numbers = [part["partNumber"] for part in self.request.json()["parts"]]
            if any((oid, number) not in self.hub.parts for number in numbers):
                raise Refused(400, message="a part is missing")
            data = b"".join(self.hub.parts.pop((oid, number)) for number in sorted(numbers))
        self.hub.objects[oid] = Stored(turned(data) if self.request.corrupt else data)
        return Answer()

    def _verify(self) -> Answer:
        asked = self.request.json()
        found = self.hub.objects.get(asked["oid"])
        if found is None or len(found) != asked["size"]:
            raise Refused(404, message="no such object")
        return Answer()

    def _find_made(self, repository: Repository) -> None:
        """Take over the objects of commits that a test has made by hand."""
        for commit, files in repository.commits.items():
            for path, data in files.items() if commit not in repository.log else ():
                if is_object(path, data):
                    self.hub.objects.setdefault(digest_of(data), Stored(data))

    def _find_chunked(self, wanted: set[str]) -> None:
        """Take over from the storage client's store what a commit names."""
        if self.hub.chunks is None or not wanted:
            return
        there = {digest: file for digest, file in stored_files(self.hub.chunks).items() if digest in wanted}
        for digest, data in read_files(self.hub.chunks, there).items() if there else ():
            self.hub.objects[digest] = Stored(turned(data) if self.request.corrupt else data)
            self.hub.hashes[digest] = there[digest].hash

    # Commits.

    def _commit(self, name: str, repository: Repository, revision: str) -> Answer:
        lines = [line for line in self.request.body.splitlines() if line.strip()]
        told_of = [json.loads(line) for line in lines]
        header = next(line["value"] for line in told_of if line["key"] == "header")
        head = repository.branches.get(revision)
        if head is None:
            raise Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if header.get("parentCommit") not in (None, head):
            raise Refused(412, message="A commit has happened since. Please refresh and try again.")
        objects = {line["value"]["oid"] for line in told_of if line["key"] == "lfsFile"}
        self._find_made(repository)
        self._find_chunked(objects - set(self.hub.objects))
        files = dict(repository.commits[head])
        for line in told_of:
            if line["key"] != "header":
                self._apply(files, line["key"], line["value"])
        commit = add_commit(
            repository, head, files, header["summary"], header.get("description", ""), self.account or NOBODY_ELSE
        )
        answer = {"success": True, "commitOid": commit, "commitUrl": f"{self.hub.address}/{name}/commit/{commit}"}
        pulls = Proposals(self.hub, self.request)
        if self.request.wants_pull:
            number = pulls.open(repository, header["summary"], base=head, status="open")
            repository.branches[f"refs/pr/{number}"] = commit
            answer["pullRequestUrl"] = f"{self.hub.address}/{name}/discussions/{number}"
            revision = f"refs/pr/{number}"
        else:
            repository.branches[revision] = commit
        if found := re.fullmatch(r"refs/pr/(\d+)", revision):
            pulls.tell(repository.pulls[int(found[1])], "commit", subject=header["summary"], oid=commit)
        return Answer(body=answer)

    def _apply(self, files: dict[str, bytes], key: str, value: dict[str, Any]) -> None:
        path = value["path"]
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or ".git" in parts:
            raise Refused(400, message=f"Invalid path: {path}")
        if key == "file":
            data = base64.b64decode(value["content"])
            files[path] = turned(data) if self.request.corrupt else data
        elif key == "lfsFile":
            found = self.hub.objects.get(value["oid"])
            if found is None or value.get("size", len(found)) != len(found):
                raise Refused(400, message=f"LFS pointer pointed to a file that does not exist: {path}")
            files[path] = found
        elif key in ("deletedFile", "deletedFolder"):
            whole = path.rstrip("/") + "/"
            gone = [one for one in files if (one.startswith(whole) if key == "deletedFolder" else one == path)]
            if not gone:
                raise Refused(404, "EntryNotFound", "A file with this name doesn't exist")
            for one in gone:
                del files[one]
        else:
            raise Refused(400, message=f"unknown operation: {key}")

    def _paths(self, repository: Repository, revision: str) -> Answer:
        files = files_at(repository, revision)
        asked = parse_qs(self.request.body.decode()).get("paths", [])
        found = [node(self.hub, path, files[path]) for path in asked if path in files]
        found += [folder(path) for path in asked if any(one.startswith(f"{path}/") for one in files)]
        return Answer(body=found)


def _is_private(asked: Mapping[str, Any]) -> bool:
    return asked.get("visibility") == "private" or bool(asked.get("private"))


def _is_ignored(path: str, rules: str) -> bool:
    """By the plain rules of a .gitignore: names, globs and folders; no exceptions."""
    names = [path, *map(str, PurePosixPath(path).parents), *PurePosixPath(path).parts]
    plain = [rule.strip().strip("/") for rule in rules.splitlines() if rule.strip() and not rule.startswith("#")]
    return any(fnmatch.fnmatch(name, rule) for name in names for rule in plain)


def check_card(content: str) -> Answer:
    """What the Hub finds in a card's metadata: enough to refuse what it refuses."""
    front = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    known = re.search(r"^license: ([a-z0-9.+-]+)$", front[1], re.MULTILINE) if front else None
    if front and "license:" in front[1] and (known is None or known[1].startswith("no-such")):
        return Answer(
            status=400, body={"errors": [{"message": '"license" must be one of the known licences'}], "warnings": []}
        )
    return Answer(body={"errors": [], "warnings": []})
