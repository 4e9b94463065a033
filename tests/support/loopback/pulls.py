"""Pull requests on a Hub on the loopback interface: opened, talked about, closed, merged.

In go requests to a repository's discussions; out come answers and events as the real client reads them. The branch of pull request
N is `refs/pr/N`.
"""

from __future__ import annotations

from typing import Any

from support.loopback.reads import NOW, conflicts, told
from support.loopback.state import NOBODY_ELSE, Answer, Hub, Pull, Refused, Repository, Request, add_commit, files_at


class Proposals:
    """One request that has to do with a pull request."""

    def __init__(self, hub: Hub, request: Request) -> None:
        self.hub, self.request, self.account = hub, request, request.account
        self.author = request.account or NOBODY_ELSE

    def open(self, repository: Repository, title: str, *, base: str, status: str) -> int:
        number = len(repository.pulls) + 1
        repository.pulls[number] = Pull(title=title, author=self.author, base=base, status=status)
        return number

    def tell(self, pull: Pull, kind: str, **data: Any) -> dict[str, Any]:
        event = {
            "id": f"{len(pull.events) + 1:024x}",
            "type": kind,
            "createdAt": NOW,
            "author": {"name": self.author},
            "data": data,
        }
        pull.events.append(event)
        return event

    def _say(self, pull: Pull, words: str) -> dict[str, Any]:
        latest = {"raw": words, "html": words, "updatedAt": NOW, "author": {"name": self.author}}
        return self.tell(pull, "comment", edited=False, hidden=False, history=[], latest=latest)

    def answer(self, name: str, repository: Repository, number: str | None, what: str | None) -> Answer:
        asked = self.request.json()
        if self.account is None:
            raise Refused(401, message="Invalid username or password.")
        if number is None:
            if not asked.get("pullRequest"):
                raise Refused(400, message="this Hub has pull requests only")
            base = repository.branches["main"]
            opened = self.open(repository, asked["title"], base=base, status="draft")
            repository.branches[f"refs/pr/{opened}"] = base
            self._say(repository.pulls[opened], asked["description"])
            return Answer(body=told(name, opened, repository.pulls[opened]))
        pull = repository.pulls.get(int(number))
        if pull is None:
            raise Refused(404, message="No such discussion")
        if what == "comment":
            return Answer(body={"newMessage": self._say(pull, asked["comment"])})
        if not (self.hub.owns(self.account, name) or (what == "status" and pull.author == self.account)):
            raise Refused(403, message="Forbidden")
        if what == "status":
            pull.status = asked["status"]
            return Answer(body={"newStatus": self.tell(pull, "status-change", status=pull.status)})
        if what == "merge":
            return self._merge(repository, int(number), pull)
        raise Refused(404, message=f"no such page: {self.request.path}")

    def _merge(self, repository: Repository, number: int, pull: Pull) -> Answer:
        if not pull.is_open or conflicts(repository, number):
            raise Refused(409, message="This pull request cannot be merged")
        base, theirs = repository.commits[pull.base], files_at(repository, f"refs/pr/{number}")
        files = dict(files_at(repository, "main"))
        for path in {*base, *theirs}:
            if path not in theirs:
                files.pop(path, None)
            elif base.get(path) != theirs[path]:
                files[path] = theirs[path]
        head = repository.branches["main"]
        pull.merged = add_commit(repository, head, files, f"{pull.title} (#{number})", "", self.author)
        repository.branches["main"] = pull.merged
        pull.status = "merged"
        self.tell(pull, "status-change", status="merged")
        return Answer()
