"""A finished output directory in, a repository of the Hub out that holds it whole or not at all.

Everything goes to a branch of its own first, named by what it holds, so that the same command finds it again after a cut. There every
digest that the Hub gives is compared; only then one commit moves the branch that people load from. All requests go through the Hub's own
client. What it raises comes out as one clear line, after a bounded number of tries where trying again can help.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ligo_convert.errors import HubUnreachable, LigoError, PublishRefused, RecipeError, VerificationError
from ligo_convert.hub import BUSY, check_endpoint, patiently
from ligo_convert.jsoncore import short
from ligo_convert.progress import Progress
from ligo_convert.publication import Item, Publication, pack
from ligo_convert.recipe_sections import is_hub_id
from ligo_convert.sums import HUB_LEFTOVERS

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi

    Operation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete

MAIN = "main"
_AGAIN = "run the same command again: it goes on with what is there"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Published:
    """What came of it. `commit`: where `revision` is now. `changed`: False where all of it was there already."""

    publication: Publication
    repo: str
    url: str
    revision: str
    commit: str
    private: bool
    pull_request: str | None
    tag: str | None
    changed: bool

    def json(self) -> dict[str, Any]:
        """As `publish --json` prints it."""
        return {
            "out": str(self.publication.directory),
            "repo": self.repo,
            "url": self.url,
            "revision": self.revision,
            "commit": self.commit,
            "private": self.private,
            "pull_request": self.pull_request,
            "tag": self.tag,
            "changed": self.changed,
            **contents(self.publication),
        }


def contents(publication: Publication) -> dict[str, Any]:
    """Exactly which files are published, in plain data."""
    items = publication.items.values()
    return {
        "license": publication.license,
        "bytes": publication.nbytes,
        "files": [{"name": item.name, "bytes": item.nbytes, "sha256": item.sha256} for item in items],
    }


def publish(
    directory: Path,
    repo: str,
    *,
    public: bool = False,
    branch: str = MAIN,
    pull_request: bool = False,
    tag: str | None = None,
    license: str | None = None,
    progress: Progress | None = None,
    publication: Publication | None = None,
) -> Published:
    """Publish an output directory; run again after a cut, it finishes the job.

    Args:
        repo: `org/name`, made where it is not there. public: readable by everyone; private otherwise.
        branch: what is moved at the end. pull_request: propose it to a repository of somebody else instead.
        tag: put on the commit at the end. license: as `publication.pack`. publication: of the directory, where it is packed already.

    Raises:
        PublishRefused: no licence, no account, no right to write there, a repository that is public unasked.
        HubUnreachable: the Hub cannot be reached, or goes on failing.
        VerificationError: the directory is not whole; or what the Hub holds is not what was sent, and nothing was moved.
        RecipeError: no name of a repository, branch or tag.
    """
    progress = progress or Progress()
    check_names(repo, branch=branch, pull_request=pull_request, tag=tag)
    check_account(repo)
    publication = publication or pack(directory, license=license, progress=progress)
    remote = _Remote(repo, progress)
    if pull_request:
        return _propose(remote, publication)
    private = remote.prepare(public=public)
    target = remote.heads().get(branch)
    changed = target is None or not remote.holds(publication, branch)
    if changed:
        staged = f"ligo-convert-{publication.digest[:16]}"
        remote.make_branch(staged)
        if not remote.holds(publication, staged):
            remote.upload(publication, staged)
            remote.require(publication, staged, moved=None)
        if target is None:
            remote.make_branch(branch)
        remote.move(publication, branch, staged)
        remote.require(publication, branch, moved=branch)
        remote.drop_branch(staged)
    commit = remote.heads()[branch]
    if tag is not None:
        remote.put_tag(tag, commit)
    return Published(
        publication=publication,
        repo=repo,
        url=remote.url if branch == MAIN else f"{remote.url}/tree/{branch}",
        revision=branch,
        commit=commit,
        private=private,
        pull_request=None,
        tag=tag,
        changed=changed,
    )


def check_names(repo: str, *, branch: str = MAIN, pull_request: bool = False, tag: str | None = None) -> None:
    """Refuse what can be no name, and what does not go together. Raises RecipeError."""
    if not is_hub_id(repo) or "/" not in repo:
        raise RecipeError("not the name of a repository", where=short(repo), expected="org/name")
    for option, name in (("--branch", branch), ("--tag", tag)):
        parts = (name or MAIN).split("/")
        if name is not None and (
            name in ("", "HEAD") or any(not part or part.startswith((".", "-")) or not _plain(part) for part in parts)
        ):
            raise RecipeError("not a name that the Hub takes", where=option, found=short(name))
    if pull_request and (branch != MAIN or tag is not None):
        raise RecipeError(
            "a pull request goes to main, and has no tag", where="--pr", hint="leave --branch and --tag out"
        )


def _plain(part: str) -> bool:
    return part.isascii() and all(character.isalnum() or character in "._-" for character in part) and ".." not in part


def check_account(repo: str) -> None:
    """See that there is an account to publish by. Raises PublishRefused, HubUnreachable, MachineError."""
    from huggingface_hub import constants, get_token

    check_endpoint()
    if constants.is_offline_mode():
        raise HubUnreachable("publishing needs the Hub, which HF_HUB_OFFLINE switches off", where=repo)
    if get_token() is None:
        raise PublishRefused(
            "nobody is logged in to the Hub", where=repo, hint="run `hf auth login`, or set HF_TOKEN, and run again"
        )


def _propose(remote: _Remote, publication: Publication) -> Published:
    """By a pull request: the one that an earlier call has opened, or a new one."""
    info = remote.info()
    if info is None:
        raise PublishRefused("no such repository to propose it to", where=remote.repo, hint="leave --pr out to make it")
    title = f"Grown {publication.family}, {publication.digest[:16]}"
    number = remote.find_proposal(title)
    changed = number is None or not remote.holds(publication, f"refs/pr/{number}")
    if changed:
        number = remote.propose(publication, title, number)
        remote.require(publication, f"refs/pr/{number}", moved=f"pull request {number}")
    revision = f"refs/pr/{number}"
    return Published(
        publication=publication,
        repo=remote.repo,
        url=remote.url,
        revision=revision,
        commit=remote.commit_of(revision),
        private=bool(info.private),
        pull_request=f"{remote.url}/discussions/{number}",
        tag=None,
        changed=changed,
    )


class _Remote:
    """A repository, and what this program does to one."""

    def __init__(self, repo: str, progress: Progress) -> None:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

        disable_progress_bars()  # ours are shown
        self.repo, self.progress = repo, progress
        self.api: HfApi = HfApi()
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

    def heads(self) -> dict[str, str]:
        """Branch -> commit."""
        refs = self._patiently(lambda: self.api.list_repo_refs(self.repo))
        return {ref.name: ref.target_commit for ref in refs.branches}

    def commit_of(self, revision: str) -> str:
        return str(self._patiently(lambda: self.api.model_info(self.repo, revision=revision)).sha)

    def files(self, revision: str) -> dict[str, Any]:
        """Name -> what the Hub says of the file."""
        from huggingface_hub.hf_api import RepoFile

        entries = self._patiently(
            lambda: list(self.api.list_repo_tree(self.repo, recursive=True, revision=revision, expand=False))
        )
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def differences(self, publication: Publication, revision: str) -> list[str]:
        """How what is at `revision` is not the publication: a line a file."""
        there = {name: entry for name, entry in self.files(revision).items() if name not in HUB_LEFTOVERS}
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

    def holds(self, publication: Publication, revision: str) -> bool:
        return not self.differences(publication, revision)

    def require(self, publication: Publication, revision: str, *, moved: str | None) -> None:
        """Raise VerificationError where the Hub does not hold what was sent, bit for bit."""
        with self.progress.task("comparing with the Hub"):
            found = self.differences(publication, revision)
        if found:
            raise VerificationError(
                "the Hub does not hold what was sent",
                where=f"{self.repo} at {revision}",
                found="; ".join(found[:4]) + (f" (and {len(found) - 4} more)" if len(found) > 4 else ""),
                hint=f"{_AGAIN}; nobody loads from there yet" if moved is None else f"look at {moved} on the Hub",
            )

    # What is done.

    def prepare(self, *, public: bool) -> bool:
        """Make the repository where there is none; whether it is private."""
        info = self.info()
        if info is None:
            # Two may do this at once, and an answer may be lost.
            self._patiently(lambda: self.api.create_repo(self.repo, private=not public, exist_ok=True))
            return not public
        if info.private is False and not public:
            raise PublishRefused(
                "the repository is readable by everyone, and nobody said that this may be",
                where=self.repo,
                hint="say --public (in a recipe publish.public), or name another repository",
            )
        if info.private and public:
            self.progress.warn(f"{self.repo} is there and stays private; its settings on the Hub make it public")
        return bool(info.private)

    def make_branch(self, name: str) -> None:
        self._patiently(lambda: self.api.create_branch(self.repo, branch=name, exist_ok=True))

    def drop_branch(self, name: str) -> None:
        """Remove a staging branch. What it held is on its way to everyone: that it is left over is no failure."""
        try:
            self._patiently(lambda: self.api.delete_branch(self.repo, branch=name))
        except (HubUnreachable, PublishRefused) as error:
            self.progress.warn(f"{self.repo}: the branch {name} could not be removed: {error.what}")

    def put_tag(self, tag: str, commit: str) -> None:
        refs = self._patiently(lambda: self.api.list_repo_refs(self.repo))
        there = {ref.name: ref.target_commit for ref in refs.tags}
        if there.get(tag, commit) != commit:
            raise PublishRefused(
                "the tag is on another commit, and is not moved", where=f"{self.repo}: {tag}", found=there[tag]
            )
        if tag not in there:
            self._patiently(lambda: self.api.create_tag(self.repo, tag=tag, revision=commit, exist_ok=True))

    def upload(self, publication: Publication, branch: str) -> None:
        """Bring every file to the staging branch, in one commit."""
        operations = self._send(publication, branch)
        self._commit(publication, branch, lambda: [*operations(), *self._stale(publication, branch)], "Staged")

    def move(self, publication: Publication, branch: str, staged: str) -> None:
        """One commit that makes `branch` what `staged` is. The Hub copies what is large by itself."""
        from huggingface_hub import CommitOperationAdd, CommitOperationCopy

        there = self.files(staged)

        def operations() -> Iterator[Operation]:
            for name, item in publication.items.items():
                if there[name].lfs is not None:
                    yield CommitOperationCopy(src_path_in_repo=name, path_in_repo=name, src_revision=staged)
                else:
                    yield CommitOperationAdd(path_in_repo=name, path_or_fileobj=_given(item))
            yield from self._stale(publication, branch)

        self._commit(publication, branch, lambda: list(operations()), f"Grown {publication.family}")

    def propose(self, publication: Publication, title: str, number: int | None) -> int:
        """Open a pull request, or go on with one; its number."""
        revision = MAIN if number is None else f"refs/pr/{number}"
        operations = self._send(publication, revision, create_pr=number is None)
        if number is not None:
            self._commit(publication, revision, lambda: [*operations(), *self._stale(publication, revision)], title)
            return number

        def opened() -> int:
            again = self.find_proposal(title)  # an answer may have been lost
            if again is not None:
                return again
            made = self.api.create_commit(
                self.repo,
                [*operations(), *self._stale(publication, MAIN)],
                commit_message=title,
                commit_description=_message(publication),
                create_pr=True,
            )
            return int(str(made.pr_num))

        return int(self._patiently(opened))

    def find_proposal(self, title: str) -> int | None:
        """The number of the open pull request with this title; None where there is none."""

        def ask() -> list[int]:
            found = self.api.get_repo_discussions(
                self.repo, discussion_type="pull_request", discussion_status="open", repo_type="model"
            )
            return [one.num for one in found if one.is_pull_request and one.title == title]

        numbers: list[int] = self._patiently(ask)
        return min(numbers, default=None)

    def _stale(self, publication: Publication, revision: str) -> list[Operation]:
        """What takes away the files of an earlier model: a library that finds both may load the wrong one."""
        from huggingface_hub import CommitOperationDelete

        names = [name for name in self.files(revision) if name not in publication.items and name not in HUB_LEFTOVERS]
        return [CommitOperationDelete(path_in_repo=name) for name in names]

    def _send(
        self, publication: Publication, revision: str, *, create_pr: bool = False
    ) -> Callable[[], list[CommitOperationAdd]]:
        """Bring the large files to the Hub's storage, where no branch shows them yet. Returns what makes a commit of all."""
        from huggingface_hub import CommitOperationAdd

        sent: dict[str, CommitOperationAdd] = {}
        with self.progress.task("uploading", publication.nbytes, unit="bytes") as task:
            for name, item in publication.items.items():
                with _reading(item):
                    addition = CommitOperationAdd(path_in_repo=name, path_or_fileobj=_given(item))
                if addition.upload_info.sha256.hex() != item.sha256:
                    raise VerificationError(
                        "the file changed since it was verified",
                        where=publication.directory / name,
                        expected=item.sha256,
                        found=addition.upload_info.sha256.hex(),
                        hint="nothing may write to the directory while it is published",
                    )
                task.note(name)
                send = partial(self.api.preupload_lfs_files, self.repo, revision=revision, create_pr=create_pr)
                self._patiently(partial(send, [addition], free_memory=False))
                if addition._should_ignore:
                    raise PublishRefused(
                        "the repository's .gitignore leaves the file out", where=f"{self.repo}: {name}"
                    )
                sent[name] = addition
                task.advance(item.nbytes)
        return lambda: list(sent.values())

    def _commit(
        self, publication: Publication, revision: str, operations: Callable[[], Sequence[Operation]], message: str
    ) -> None:
        """One commit; done where the Hub holds the publication, whether or not its answer came through."""
        from huggingface_hub.errors import HfHubHTTPError

        def send() -> None:
            parent = self.commit_of(revision)
            if self.holds(publication, revision):
                return
            try:
                self.api.create_commit(
                    self.repo,
                    operations(),
                    commit_message=message,
                    commit_description=_message(publication),
                    revision=revision,
                    parent_commit=parent,
                )
            except HfHubHTTPError as error:
                if error.response.status_code in (409, 412) and not self.holds(publication, revision):
                    raise PublishRefused(
                        "somebody else moved the branch meanwhile", where=f"{self.repo} at {revision}", hint=_AGAIN
                    ) from None
                if error.response.status_code not in (409, 412):
                    raise

        self._patiently(send)

    def _patiently(self, call: Callable[[], T]) -> T:
        """`call`, again where the Hub is busy or out of reach for the moment."""

        def once() -> T:
            with _said_clearly(self.repo):
                return call()

        def told(error: HubUnreachable) -> None:
            found = f" ({error.found})" if error.found else ""
            self.progress.say(f"{self.repo}: {error.what}{found}; trying again")

        return patiently(once, told=told)


def _given(item: Item) -> str | bytes:
    return item.content if isinstance(item.content, bytes) else str(item.content)


def _same(entry: Any, item: Item) -> bool:
    """Whether a file of the Hub has the item's bytes, by the digest that the Hub keeps for its kind."""
    if entry.size != item.nbytes:
        return False
    if entry.lfs is not None:
        return bool(entry.lfs.sha256 == item.sha256)
    return bool(entry.blob_id == item.blob())


def _message(publication: Publication) -> str:
    return (
        f"{len(publication.items)} files, {publication.nbytes} bytes; SHA-256 of ligo/SHA256SUMS: {publication.digest}.\n\n"
        "`ligo-convert verify DIR` checks a downloaded copy."
    )


@contextmanager
def _reading(item: Item) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise VerificationError(
            "the file cannot be read any more", where=item.name, found=error.strerror or type(error).__name__
        ) from None


@contextmanager
def _said_clearly(repo: str) -> Iterator[None]:
    """Turn what the Hub's client raises into one clear line. Its own texts are left out where they hold addresses."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the Hub thinks of a card: nothing to do with whether it takes it
            yield
    except LigoError:
        raise
    except Exception as error:
        clear = _clear(error, repo)
        if clear is None:
            raise
        raise clear from None


def _clear(error: BaseException, repo: str) -> LigoError | None:
    """What an error of the client means; None for one that is no business of the Hub."""
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    account = "use an account that may write there, or propose it with --pr"
    match error:
        case errors.GatedRepoError() | errors.RepositoryNotFoundError():
            return PublishRefused("no such repository, or this account may not see it", where=repo, hint=account)
        case errors.RevisionNotFoundError():
            return HubUnreachable("the Hub lost a branch that was there", where=repo, hint=_AGAIN)
        case errors.BadRequestError():
            found = short(error.server_message or "HTTP status 400")
            return PublishRefused("the Hub refuses the request", where=repo, found=found)
        case errors.HfHubHTTPError():
            status = error.response.status_code
            if status in (401, 403):
                return PublishRefused("the Hub does not let this account do that", where=repo, hint=account)
            found, passing = f"HTTP status {status}", status in BUSY
            what = "the Hub answered with an error"
            return HubUnreachable(what, where=repo, found=found, hint=_AGAIN, passing=passing)
        case httpx.HTTPError() | httpx.InvalidURL() | ConnectionError() | TimeoutError():
            hint = f"check the network, HF_ENDPOINT and the proxy settings; {_AGAIN}"
            found = type(error).__name__
            return HubUnreachable("the Hub cannot be reached", where=repo, found=found, hint=hint, passing=True)
        case errors.OfflineModeIsEnabled():
            return HubUnreachable("publishing needs the Hub, which HF_HUB_OFFLINE switches off", where=repo)
        case RuntimeError():
            # So the client wraps what happens in an upload; the storage client (hf_xet) raises nothing more special itself.
            inner = _clear(error.__cause__, repo) if error.__cause__ is not None else None
            found = short(str(error))
            return inner or HubUnreachable("the upload failed", where=repo, found=found, hint=_AGAIN, passing=True)
        case ValueError():
            # The Hub reads a card's metadata before it takes it, and says what it finds wrong.
            return PublishRefused("the Hub refuses it", where=repo, found=short(str(error)))
    return None
