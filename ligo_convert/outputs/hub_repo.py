"""A repository of the Hub, and what publishing does to one: looked at, compared, staged, moved, proposed.

In go a `Publication` and commits; out come commits that hold it. A commit that is relied on is named by its own name, never by its
branch's: a branch may move between two requests. All of it goes through the Hub's own client, again where that can help.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import TYPE_CHECKING, Any, TypeVar

from ligo_convert.checkpoints.files import CARD
from ligo_convert.errors import HubUnreachable, PublishRefused, VerificationError, printable, some
from ligo_convert.hub.client import with_retries
from ligo_convert.hub.errors import AGAIN, sanitize, translate_write_errors, unexpected_response
from ligo_convert.io.strict_json import short
from ligo_convert.outputs.bundle import Item, Publication
from ligo_convert.outputs.checksums import HUB_LEFTOVERS, read_sums
from ligo_convert.outputs.layout import CHECKSUMS
from ligo_convert.progress import Progress

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi

    Operation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete


MAIN = "main"

# What a repository holds that nobody has put anything into: nothing is lost with it.
INITIAL = (".gitattributes", CARD)

# The Hub keeps what is larger outside git, and takes nothing larger as text.
_TEXT_BYTES = 10_000_000

_TOLD = 20

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class References:
    """Branches and tags, each with its commit."""

    branches: Mapping[str, str]
    tags: Mapping[str, str]


class HubRepo:
    """A repository by its name. `patient`: requests that fail for the moment are tried again."""

    def __init__(self, repo: str, progress: Progress, *, patient: bool = True) -> None:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

        disable_progress_bars()  # ours are shown
        self.repo, self.progress, self.patient = repo, progress, patient
        self.api: HfApi = HfApi()
        self._account: Mapping[str, Any] | None = None
        self.url = f"{constants.ENDPOINT}/{repo}"

    # What is there.

    def info(self) -> Any:
        """The repository as the Hub has it; None where there is none, or none that this account may see."""
        from huggingface_hub.errors import RepositoryNotFoundError

        def ask() -> Any:
            try:
                return self.api.model_info(self.repo)
            except RepositoryNotFoundError:
                return None

        return self._patiently(ask)

    def references(self) -> References:
        refs = self._patiently(lambda: self.api.list_repo_refs(self.repo))
        return References(
            branches={ref.name: ref.target_commit for ref in refs.branches},
            tags={ref.name: ref.target_commit for ref in refs.tags},
        )

    def commit_of(self, revision: str) -> str:
        """What a branch or a pull request means now."""
        found = self._patiently(lambda: self.api.model_info(self.repo, revision=revision)).sha
        if not isinstance(found, str):
            raise unexpected_response(self.repo, "no commit")
        return found

    def files(self, commit: str) -> dict[str, Any]:
        """Name -> what the Hub says of the file."""
        from huggingface_hub.hf_api import RepoFile

        entries = self._patiently(
            lambda: list(self.api.list_repo_tree(self.repo, recursive=True, revision=commit, expand=False))
        )
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def unclaimed(self, commit: str, files: Mapping[str, Any]) -> list[str]:
        """Files that neither the Hub nor an earlier publication has put there."""
        claimed = set(INITIAL)
        if CHECKSUMS in files and files[CHECKSUMS].lfs is None and files[CHECKSUMS].size <= _TEXT_BYTES:
            with suppress(VerificationError):  # whatever it is, it is none of ours
                claimed |= {CHECKSUMS, *read_sums(self._read(commit, CHECKSUMS))}
        return sorted(set(files) - claimed)

    def _read(self, commit: str, name: str) -> bytes:
        from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        def ask() -> bytes:
            response = get_session().get(hf_hub_url(self.repo, name, revision=commit), headers=build_hf_headers())
            hf_raise_for_status(response)
            return bytes(response.content)

        return self._patiently(ask)

    def holds(self, publication: Publication, commit: str) -> bool:
        return not differences(publication, self.files(commit))

    def require(self, publication: Publication, commit: str, *, revision: str, moved: str | None) -> None:
        """Raise VerificationError where a commit does not hold what was sent, bit for bit."""
        with self.progress.task("comparing with the Hub"):
            found = differences(publication, self.files(commit))
        if found:
            raise VerificationError(
                "the Hub does not hold what was sent",
                where=f"{self.repo} at {revision}",
                found=some(found, between="; "),
                hint=f"{AGAIN}; nobody loads from there yet" if moved is None else f"look at {moved} on the Hub",
            )

    # Who asks.

    def account(self) -> Mapping[str, Any]:
        """The account as the Hub knows it: asked once, since the Hub answers that question seldom."""
        if self._account is None:
            found = self._patiently(self.api.whoami)
            if not isinstance(found, Mapping) or not isinstance(found.get("name"), str):
                raise unexpected_response(self.repo, "no account")
            self._account = found
        return self._account

    def require_namespace(self) -> None:
        """Raise PublishRefused where this account can make no repository of that name."""
        account, where = self.account(), self.repo.partition("/")[0]
        role = ((account.get("auth") or {}).get("accessToken") or {}).get("role")
        if role == "read":
            hint = "log in with a token that may write"
            raise PublishRefused("the token may only read", where=self.repo, hint=hint)
        orgs = {org.get("name"): org.get("roleInOrg") for org in account.get("orgs") or ()}
        mine = where.lower() == account["name"].lower() or orgs.get(where, "read") != "read"
        # What a fine-grained token may do cannot be read from here: the Hub is left to decide.
        if not mine and role != "fineGrained":
            raise PublishRefused(
                "no such repository, and this account can make none there",
                where=self.repo,
                found=f"the account {short(printable(account['name']))}",
                hint="use an account that may write there; --pr proposes to a repository that is there",
            )

    def require_right(self) -> None:
        """Raise PublishRefused where this account may not write to the repository."""
        if "write" not in signature(self.api.auth_check).parameters:
            return  # an older client cannot ask; the first request that writes will tell
        try:
            self._patiently(lambda: self.api.auth_check(self.repo, write=True))
        except HubUnreachable as error:
            # Not every Hub answers this question.
            if error.passing or "HTTP status 404" not in str(error.found):
                raise

    def check_card(self, text: str) -> None:
        """Ask the Hub whether it takes a card's metadata. Raises PublishRefused with what it finds wrong."""
        from huggingface_hub import constants, get_session, hf_raise_for_status
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        def ask() -> None:
            response = get_session().post(
                f"{constants.ENDPOINT}/api/validate-yaml",
                json={"content": text, "repoType": "model"},
                headers=build_hf_headers(),
            )
            if response.status_code == 400:
                errors = response.json()["errors"]
                raise PublishRefused(
                    "the Hub does not take the card",
                    where=f"{self.repo}: {CARD}",
                    found=sanitize("; ".join(str(error["message"]) for error in errors)),
                    hint="where it is the licence, say --license with one that the Hub knows",
                )
            hf_raise_for_status(response)

        self._patiently(ask)

    # What is done.

    def create(self, *, private: bool) -> None:
        # Two may do this at once, and an answer may be lost.
        self._patiently(lambda: self.api.create_repo(self.repo, private=private, exist_ok=True))

    def make_branch(self, name: str, *, commit: str | None = None) -> None:
        self._patiently(lambda: self.api.create_branch(self.repo, branch=name, revision=commit, exist_ok=True))

    def drop_branch(self, name: str) -> None:
        """Remove a staging branch. What it held is on its way to everyone: that it is left over is no failure."""
        from huggingface_hub.errors import RevisionNotFoundError

        def drop() -> None:
            with suppress(RevisionNotFoundError):  # an answer was lost, or another run was faster
                self.api.delete_branch(self.repo, branch=name)

        try:
            self._patiently(drop)
        except (HubUnreachable, PublishRefused) as error:
            self.progress.warn(f"{self.repo}: the branch {name} could not be removed: {error.what}")

    def put_tag(self, tag: str, commit: str) -> None:
        there = self.references().tags
        if there.get(tag, commit) != commit:
            raise PublishRefused(
                "the tag is on another commit, and is not moved", where=f"{self.repo}: {tag}", found=there[tag]
            )
        if tag not in there:
            self._patiently(lambda: self.api.create_tag(self.repo, tag=tag, revision=commit, exist_ok=True))

    def stage(self, publication: Publication, branch: str) -> None:
        """Bring every file to the staging branch, in one commit."""
        additions = self._send(publication, branch)
        parent = self.commit_of(branch)
        operations: list[Operation] = [*additions, *_deletions(publication, self.files(parent))]
        self._commit(publication, branch, operations, f"Grown {publication.family}", parent=parent)

    def move(self, publication: Publication, branch: str, *, head: str, staged: str) -> None:
        """One commit after `head` that makes `branch` what the commit `staged` is. The Hub copies what is large by itself.

        What is text goes there once more, as bytes whose digest is looked at before: where the client copies text, it sends what it
        has just been given, and nobody compares.
        """
        from huggingface_hub import CommitOperationCopy

        there = self.files(staged)
        copies = [name for name in publication.items if there[name].lfs is not None]
        additions = [_addition(item) for name, item in publication.items.items() if name not in copies]
        self._prepare(additions, branch)
        operations: list[Operation] = [
            *(CommitOperationCopy(src_path_in_repo=name, path_in_repo=name, src_revision=staged) for name in copies),
            *additions,
            *_deletions(publication, self.files(head)),
        ]
        self._commit(publication, branch, operations, f"Grown {publication.family}", parent=head)

    def propose(self, publication: Publication, title: str, number: int | None, *, removed: Sequence[str]) -> int:
        """Open a pull request, or go on with one; its number."""
        revision = MAIN if number is None else f"refs/pr/{number}"
        additions = self._send(publication, revision, create_pr=number is None)
        parent = self.commit_of(revision)
        operations: list[Operation] = [*additions, *_deletions(publication, self.files(parent))]
        if number is not None:
            self._commit(publication, revision, operations, title, parent=parent)
            return number

        def opened() -> int:
            again = self.find_proposal(title)  # an answer may have been lost
            if again is not None:
                return again
            made = self.api.create_commit(
                self.repo,
                operations,
                commit_message=title,
                commit_description=_message(publication, removed),
                create_pr=True,
                parent_commit=parent,
            )
            if made.pr_num is None:
                raise HubUnreachable("the Hub opened no pull request", where=self.repo, hint=AGAIN)
            return int(made.pr_num)

        return int(self._patiently(opened))

    def proposal(self, number: int) -> str:
        """Where a pull request is looked at."""
        return f"{self.url}/discussions/{number}"

    def find_proposal(self, title: str) -> int | None:
        """The number of this account's open pull request with this title; None where there is none."""
        author = self.account()["name"]

        def ask() -> list[int]:
            found = self.api.get_repo_discussions(
                self.repo,
                author=author,
                discussion_type="pull_request",
                discussion_status="open",
                repo_type="model",
            )
            return [one.num for one in found if one.is_pull_request and one.title == title and one.author == author]

        numbers: list[int] = self._patiently(ask)
        return min(numbers, default=None)

    def _send(self, publication: Publication, revision: str, *, create_pr: bool = False) -> list[CommitOperationAdd]:
        """Bring the large files to the Hub's storage, where no branch shows them yet. Returns what makes a commit of all."""
        sent: list[CommitOperationAdd] = []
        with self.progress.task("uploading", publication.nbytes, unit="bytes") as task:
            for name, item in publication.items.items():
                task.note(name)
                addition = _addition(item)
                self._prepare([addition], revision, create_pr=create_pr)
                sent.append(addition)
                task.advance(item.nbytes)
        return sent

    def _prepare(self, additions: list[CommitOperationAdd], revision: str, *, create_pr: bool = False) -> None:
        """What a commit needs done before: large files are sent, and the Hub says what it would leave out. Raises PublishRefused."""
        if not additions:
            return
        send = partial(self.api.preupload_lfs_files, self.repo, revision=revision, create_pr=create_pr)
        self._patiently(partial(send, additions, free_memory=False))
        for addition in additions:
            # The client drops such a file from the commit, and says nothing.
            if addition._should_ignore:
                where = f"{self.repo} at {revision}: {addition.path_in_repo}"
                raise PublishRefused("the repository's .gitignore leaves the file out", where=where)

    def _commit(
        self, publication: Publication, revision: str, operations: Sequence[Operation], message: str, *, parent: str
    ) -> None:
        """One commit after `parent`; done where `revision` holds the publication, whether or not its answer came through."""
        from huggingface_hub.errors import HfHubHTTPError

        overtaken = PublishRefused(
            "somebody else moved the branch meanwhile", where=f"{self.repo} at {revision}", hint=AGAIN
        )

        def send() -> None:
            head = self.commit_of(revision)
            if self.holds(publication, head):
                return
            if head != parent:
                raise overtaken
            try:
                self.api.create_commit(
                    self.repo,
                    operations,
                    commit_message=message,
                    commit_description=_message(publication, ()),
                    revision=revision,
                    parent_commit=parent,
                )
            except HfHubHTTPError as error:
                if error.response.status_code not in (409, 412):
                    raise
                if not self.holds(publication, self.commit_of(revision)):
                    raise overtaken from None

        self._patiently(send)

    def _patiently(self, call: Callable[[], T]) -> T:
        """`call`, again where the Hub is busy or out of reach for the moment."""

        def once() -> T:
            with translate_write_errors(self.repo):
                return call()

        def told(error: HubUnreachable) -> None:
            found = f" ({error.found})" if error.found else ""
            self.progress.say(f"{self.repo}: {error.what}{found}; trying again")

        return with_retries(once, told=told) if self.patient else once()


def differences(publication: Publication, files: Mapping[str, Any]) -> list[str]:
    """How files of the Hub are not the publication: a line a file."""
    there = {name: entry for name, entry in files.items() if name not in HUB_LEFTOVERS}
    found = []
    for name in sorted({*there, *publication.items}):
        entry, item = there.get(name), publication.items.get(name)
        if item is None:
            found.append(f"{name}: not part of it")
        elif entry is None:
            found.append(f"{name}: not there")
        elif not _same(entry, item):
            found.append(f"{name}: other bytes")
    return found


def stale(publication: Publication, files: Mapping[str, Any]) -> list[str]:
    """Files that are taken away with what was there: a library that finds two models may load the wrong one."""
    return sorted(name for name in files if name not in publication.items and name not in HUB_LEFTOVERS)


def _deletions(publication: Publication, files: Mapping[str, Any]) -> list[CommitOperationDelete]:
    from huggingface_hub import CommitOperationDelete

    return [CommitOperationDelete(path_in_repo=name, is_folder=False) for name in stale(publication, files)]


def _addition(item: Item) -> CommitOperationAdd:
    """What brings a file there, if it is still the one that was verified. Raises VerificationError.

    Text is held in memory from here on, as it was hashed; of what is larger the Hub's storage takes only what has its digest.
    """
    from huggingface_hub import CommitOperationAdd

    in_memory = isinstance(item.content, bytes) or (item.nbytes <= _TEXT_BYTES and not item.is_weights)
    given = item.read() if in_memory else str(item.content)
    with _reading(item):
        addition = CommitOperationAdd(path_in_repo=item.name, path_or_fileobj=given)
    found = addition.upload_info.sha256.hex()
    if found != item.sha256:
        raise item.changed(found)
    return addition


def _same(entry: Any, item: Item) -> bool:
    """Whether a file of the Hub has the item's bytes, by the digest that the Hub keeps for its kind."""
    if entry.size != item.nbytes:
        return False
    if entry.lfs is not None:
        return bool(entry.lfs.sha256 == item.sha256)
    return bool(entry.blob_id == item.blob())


def _message(publication: Publication, removed: Sequence[str]) -> str:
    text = (
        f"{len(publication.items)} files, {publication.nbytes} bytes; SHA-256 of {CHECKSUMS}: {publication.digest}.\n\n"
        "`ligo-convert verify DIR` checks a downloaded copy."
    )
    if removed:
        names = [f"- `{printable(name).replace('`', '_')}`" for name in removed[:_TOLD]]
        names += [f"- and {len(removed) - _TOLD} more"] if len(removed) > _TOLD else []
        text += "\n\nTaken away, since it is not part of this model:\n" + "\n".join(names)
    return text


@contextmanager
def _reading(item: Item) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise item.unreadable(error) from None
