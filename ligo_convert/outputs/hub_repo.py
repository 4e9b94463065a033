"""Requests to one repository of the Hub, as publishing needs them: inspect, compare, stage, update a branch, open a pull request.

Input: a `Bundle` and commits. Output: commits that contain the bundle.

Commits are always addressed by their hash, since a branch may move between two requests. All requests go through the Hub's own client, with
retries.
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
from ligo_convert.hub.errors import RETRY_UPLOAD, sanitize, translate_errors, unexpected_response
from ligo_convert.io.strict_json import short
from ligo_convert.outputs.bundle import Bundle, BundleFile
from ligo_convert.outputs.checksums import HUB_LEFTOVERS, read_sums
from ligo_convert.outputs.layout import CHECKSUMS
from ligo_convert.progress import Progress

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi

    Operation = CommitOperationAdd | CommitOperationCopy | CommitOperationDelete


MAIN = "main"

# Files that the Hub creates in a new repository; replacing them loses nothing.
INITIAL_FILES = (".gitattributes", CARD)

# The Hub stores larger files outside git and accepts no larger text file.
_TEXT_BYTES = 10_000_000

# File names that a commit message lists at most.
_MAX_LISTED = 20

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class References:
    """Branches and tags of a repository, name -> commit."""

    branches: Mapping[str, str]
    tags: Mapping[str, str]


class HubRepo:
    """A model repository of the Hub.

    Args:
        repo: `org/name`.
        progress: receives messages and progress of uploads.
        retry: whether to retry requests after temporary failures.
    """

    def __init__(self, repo: str, progress: Progress, *, retry: bool = True) -> None:
        from huggingface_hub import HfApi, constants

        self.repo, self.progress, self.retry = repo, progress, retry
        self.api: HfApi = HfApi()
        self._account: Mapping[str, Any] | None = None
        self.url = f"{constants.ENDPOINT}/{repo}"

    # --- read the repository

    def info(self) -> Any:
        """Return the Hub's description of the repository; None if it does not exist or this account cannot see it."""
        from huggingface_hub.errors import RepositoryNotFoundError

        def request() -> Any:
            try:
                return self.api.model_info(self.repo)
            except RepositoryNotFoundError:
                return None

        return self._request(request)

    def references(self) -> References:
        """List the branches and tags."""
        refs = self._request(lambda: self.api.list_repo_refs(self.repo))
        return References(
            branches={ref.name: ref.target_commit for ref in refs.branches},
            tags={ref.name: ref.target_commit for ref in refs.tags},
        )

    def commit_of(self, revision: str) -> str:
        """Return the current commit of a branch, tag or pull request."""
        found = self._request(lambda: self.api.model_info(self.repo, revision=revision)).sha
        if not isinstance(found, str):
            raise unexpected_response(self.repo, "no commit")
        return found

    def files(self, commit: str) -> dict[str, Any]:
        """List the files of a commit: name -> the Hub's description (size, blob id, `lfs`)."""
        from huggingface_hub.hf_api import RepoFile

        entries = self._request(
            lambda: list(self.api.list_repo_tree(self.repo, recursive=True, revision=commit, expand=False))
        )
        return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

    def foreign_files(self, commit: str, files: Mapping[str, Any]) -> list[str]:
        """List the files that neither the Hub nor an earlier `publish` created.

        An earlier `publish` left a SHA256SUMS, which lists its files.
        """
        known = set(INITIAL_FILES)
        if CHECKSUMS in files and files[CHECKSUMS].lfs is None and files[CHECKSUMS].size <= _TEXT_BYTES:
            with suppress(VerificationError):  # somebody else's file of the same name
                known |= {CHECKSUMS, *read_sums(self._read(commit, CHECKSUMS))}
        return sorted(set(files) - known)

    def _read(self, commit: str, name: str) -> bytes:
        from huggingface_hub import get_session, hf_hub_url, hf_raise_for_status
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        def request() -> bytes:
            response = get_session().get(hf_hub_url(self.repo, name, revision=commit), headers=build_hf_headers())
            hf_raise_for_status(response)
            return bytes(response.content)

        return self._request(request)

    def matches(self, bundle: Bundle, commit: str) -> bool:
        """Return True if a commit contains exactly the bundle."""
        return not list_differences(bundle, self.files(commit))

    def require_match(self, bundle: Bundle, commit: str, *, revision: str, visible_as: str | None) -> None:
        """Raise VerificationError if a commit does not contain exactly the bundle.

        Args:
            revision: the branch or pull request of the commit, for the message.
            visible_as: what users see that has already changed; None for a staging branch.
        """
        with self.progress.task("comparing with the Hub"):
            differences = list_differences(bundle, self.files(commit))
        if differences:
            staged = f"{RETRY_UPLOAD}. Nothing that users load has changed"
            raise VerificationError(
                "the files on the Hub differ from the files sent",
                where=f"{self.repo} at {revision}",
                found=some(differences, between="; "),
                hint=staged if visible_as is None else f"check {visible_as} on the Hub",
            )

    # --- check the account

    def account(self) -> Mapping[str, Any]:
        """Return the Hub's description of the account. It is requested once, because the Hub limits the rate of this request."""
        if self._account is None:
            account = self._request(self.api.whoami)
            if not isinstance(account, Mapping) or not isinstance(account.get("name"), str):
                raise unexpected_response(self.repo, "no account")
            self._account = account
        return self._account

    def require_can_create(self) -> None:
        """Raise PublishRefused if this account cannot create the repository."""
        account, namespace = self.account(), self.repo.partition("/")[0]
        role = ((account.get("auth") or {}).get("accessToken") or {}).get("role")
        if role == "read":
            hint = "log in with a token that has write permission"
            raise PublishRefused("the token has read permission only", where=self.repo, hint=hint)
        orgs = {org.get("name"): org.get("roleInOrg") for org in account.get("orgs") or ()}
        can_write = namespace.lower() == account["name"].lower() or orgs.get(namespace, "read") != "read"
        # The permissions of a fine-grained token are not visible here, so the Hub decides.
        if not can_write and role != "fineGrained":
            raise PublishRefused(
                "no such repository, and this account cannot create it",
                where=self.repo,
                found=f"the account {short(printable(account['name']))}",
                hint="use an account that may write there; --pr opens a pull request in an existing repository",
            )

    def require_can_write(self) -> None:
        """Raise PublishRefused if this account may not write to the repository."""
        if "write" not in signature(self.api.auth_check).parameters:
            return  # an older client cannot check this; the first write request fails instead
        try:
            self._request(lambda: self.api.auth_check(self.repo, write=True))
        except HubUnreachable as error:
            # Not every Hub supports this request.
            if error.passing or "HTTP status 404" not in str(error.found):
                raise

    def check_card(self, text: str) -> None:
        """Let the Hub validate the metadata of a card. Raises PublishRefused with the Hub's objections."""
        from huggingface_hub import constants, get_session, hf_raise_for_status
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        def request() -> None:
            response = get_session().post(
                f"{constants.ENDPOINT}/api/validate-yaml",
                json={"content": text, "repoType": "model"},
                headers=build_hf_headers(),
            )
            if response.status_code == 400:
                errors = response.json()["errors"]
                raise PublishRefused(
                    "the Hub does not accept the metadata of the model card",
                    where=f"{self.repo}: {CARD}",
                    found=sanitize("; ".join(str(error["message"]) for error in errors)),
                    hint="if the licence is the problem, pass --license with an identifier that the Hub knows",
                )
            hf_raise_for_status(response)

        self._request(request)

    # --- change the repository

    def create(self, *, private: bool) -> None:
        """Create the repository unless it exists."""
        # exist_ok: another process may create it at the same time, or the response to an earlier attempt was lost.
        self._request(lambda: self.api.create_repo(self.repo, private=private, exist_ok=True))

    def create_branch(self, name: str, *, commit: str | None = None) -> None:
        """Create a branch at `commit` unless it exists; default: at the head of the main branch."""
        self._request(lambda: self.api.create_branch(self.repo, branch=name, revision=commit, exist_ok=True))

    def delete_branch(self, name: str) -> None:
        """Delete a staging branch. A failure is only a warning, because the bundle is published already."""
        from huggingface_hub.errors import RevisionNotFoundError

        def delete() -> None:
            with suppress(
                RevisionNotFoundError
            ):  # the response to an earlier attempt was lost, or another run deleted it
                self.api.delete_branch(self.repo, branch=name)

        try:
            self._request(delete)
        except (HubUnreachable, PublishRefused) as error:
            self.progress.warn(f"{self.repo}: cannot delete the branch {name}: {error.what}")

    def create_tag(self, tag: str, commit: str) -> None:
        """Tag a commit. Raises PublishRefused if the tag exists on another commit."""
        tags = self.references().tags
        if tags.get(tag, commit) != commit:
            raise PublishRefused(
                "the tag is on another commit; tags are never moved", where=f"{self.repo}: {tag}", found=tags[tag]
            )
        if tag not in tags:
            self._request(lambda: self.api.create_tag(self.repo, tag=tag, revision=commit, exist_ok=True))

    def stage(self, bundle: Bundle, branch: str) -> None:
        """Upload every file to the staging branch, in one commit."""
        additions = self._upload(bundle, branch)
        parent = self.commit_of(branch)
        operations: list[Operation] = [*additions, *_deletions(bundle, self.files(parent))]
        self._commit(bundle, branch, operations, f"Grown {bundle.family}", parent=parent)

    def update_branch(self, bundle: Bundle, branch: str, *, head: str, staged: str) -> None:
        """Add one commit after `head` that gives `branch` the files of the commit `staged`.

        The Hub copies large files itself. Text files are uploaded again after a check of their digests: to copy a text file, the client
        would download it and send the result unchecked.
        """
        from huggingface_hub import CommitOperationCopy

        staged_files = self.files(staged)
        copies = [name for name in bundle.files if staged_files[name].lfs is not None]
        additions = [_addition(file) for name, file in bundle.files.items() if name not in copies]
        self._prepare(additions, branch)
        operations: list[Operation] = [
            *(CommitOperationCopy(src_path_in_repo=name, path_in_repo=name, src_revision=staged) for name in copies),
            *additions,
            *_deletions(bundle, self.files(head)),
        ]
        self._commit(bundle, branch, operations, f"Grown {bundle.family}", parent=head)

    def write_pull_request(self, bundle: Bundle, title: str, number: int | None, *, removed: Sequence[str]) -> int:
        """Open a pull request with the bundle, or complete the open one with this number.

        Args:
            removed: files that the pull request deletes; listed in its description.

        Returns:
            The number of the pull request.
        """
        revision = MAIN if number is None else f"refs/pr/{number}"
        additions = self._upload(bundle, revision, create_pr=number is None)
        parent = self.commit_of(revision)
        operations: list[Operation] = [*additions, *_deletions(bundle, self.files(parent))]
        if number is not None:
            self._commit(bundle, revision, operations, title, parent=parent)
            return number

        def open_once() -> int:
            existing = self.find_pull_request(title)  # the response to an earlier attempt may have been lost
            if existing is not None:
                return existing
            commit = self.api.create_commit(
                self.repo,
                operations,
                commit_message=title,
                commit_description=_commit_description(bundle, removed),
                create_pr=True,
                parent_commit=parent,
            )
            if commit.pr_num is None:
                raise HubUnreachable("the Hub opened no pull request", where=self.repo, hint=RETRY_UPLOAD)
            return int(commit.pr_num)

        return int(self._request(open_once))

    def pull_request_url(self, number: int) -> str:
        """Return the address of a pull request's page."""
        return f"{self.url}/discussions/{number}"

    def find_pull_request(self, title: str) -> int | None:
        """Return the number of this account's open pull request with this title; None if there is none."""
        author = self.account()["name"]

        def request() -> list[int]:
            discussions = self.api.get_repo_discussions(
                self.repo,
                author=author,
                discussion_type="pull_request",
                discussion_status="open",
                repo_type="model",
            )
            return [
                discussion.num
                for discussion in discussions
                if discussion.is_pull_request and discussion.title == title and discussion.author == author
            ]

        numbers: list[int] = self._request(request)
        return min(numbers, default=None)

    def _upload(self, bundle: Bundle, revision: str, *, create_pr: bool = False) -> list[CommitOperationAdd]:
        """Upload the large files to the Hub's storage, where no branch shows them yet.

        Returns:
            The operations that add all files in a commit.
        """
        additions: list[CommitOperationAdd] = []
        with self.progress.task("uploading", bundle.nbytes, unit="bytes") as task:
            for name, file in bundle.files.items():
                task.note(name)
                addition = _addition(file)
                self._prepare([addition], revision, create_pr=create_pr)
                additions.append(addition)
                task.advance(file.nbytes)
        return additions

    def _prepare(self, additions: list[CommitOperationAdd], revision: str, *, create_pr: bool = False) -> None:
        """Upload large files before a commit. Raises PublishRefused if the Hub would leave a file out of the commit."""
        if not additions:
            return
        upload = partial(self.api.preupload_lfs_files, self.repo, revision=revision, create_pr=create_pr)
        self._request(partial(upload, additions, free_memory=False))
        for addition in additions:
            # The client silently drops such a file from the commit.
            if addition._should_ignore:
                where = f"{self.repo} at {revision}: {addition.path_in_repo}"
                raise PublishRefused("the repository's .gitignore excludes the file", where=where)

    def _commit(
        self, bundle: Bundle, revision: str, operations: Sequence[Operation], message: str, *, parent: str
    ) -> None:
        """Add one commit after `parent`, unless `revision` contains the bundle already because an earlier response was lost."""
        from huggingface_hub.errors import HfHubHTTPError

        overtaken = PublishRefused(
            "somebody else changed the branch at the same time", where=f"{self.repo} at {revision}", hint=RETRY_UPLOAD
        )

        def send() -> None:
            head = self.commit_of(revision)
            if self.matches(bundle, head):
                return
            if head != parent:
                raise overtaken
            try:
                self.api.create_commit(
                    self.repo,
                    operations,
                    commit_message=message,
                    commit_description=_commit_description(bundle, ()),
                    revision=revision,
                    parent_commit=parent,
                )
            except HfHubHTTPError as error:
                if error.response.status_code not in (409, 412):
                    raise
                if not self.matches(bundle, self.commit_of(revision)):
                    raise overtaken from None

        self._request(send)

    def _request(self, call: Callable[[], T]) -> T:
        """Send a request with translated errors; retry it after temporary failures if `retry` is set."""

        def once() -> T:
            with translate_errors(self.repo, upload=True), _without_bars():
                return call()

        def announce(error: HubUnreachable) -> None:
            found = f" ({error.found})" if error.found else ""
            self.progress.say(f"{self.repo}: {error.what}{found}; trying again")

        return with_retries(once, before_retry=announce) if self.retry else once()


@contextmanager
def _without_bars() -> Iterator[None]:
    """Turn the library's progress bars off for a request: `progress` shows its own. A caller's choice is restored."""
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            enable_progress_bars()


def list_differences(bundle: Bundle, files: Mapping[str, Any]) -> list[str]:
    """List how the files of a commit differ from the bundle, one line a file."""
    remote = {name: entry for name, entry in files.items() if name not in HUB_LEFTOVERS}
    differences = []
    for name in sorted({*remote, *bundle.files}):
        entry, file = remote.get(name), bundle.files.get(name)
        if file is None:
            differences.append(f"{name}: not part of the model")
        elif entry is None:
            differences.append(f"{name}: missing")
        elif not _same_bytes(entry, file):
            differences.append(f"{name}: other bytes")
    return differences


def files_to_delete(bundle: Bundle, files: Mapping[str, Any]) -> list[str]:
    """List the files of a commit that are not in the bundle: a library that finds two models may load the wrong one."""
    return sorted(name for name in files if name not in bundle.files and name not in HUB_LEFTOVERS)


def _deletions(bundle: Bundle, files: Mapping[str, Any]) -> list[CommitOperationDelete]:
    from huggingface_hub import CommitOperationDelete

    return [CommitOperationDelete(path_in_repo=name, is_folder=False) for name in files_to_delete(bundle, files)]


def _addition(file: BundleFile) -> CommitOperationAdd:
    """Return the operation that adds a file to a commit. Raises VerificationError if the file changed since it was verified.

    Small files are kept in memory from here on, exactly as hashed. For large files the Hub's storage itself checks the digest.
    """
    from huggingface_hub import CommitOperationAdd

    in_memory = isinstance(file.content, bytes) or (file.nbytes <= _TEXT_BYTES and not file.is_weights)
    content = file.read() if in_memory else str(file.content)
    with _reading(file):
        addition = CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=content)
    found = addition.upload_info.sha256.hex()
    if found != file.sha256:
        raise file.changed(found)
    return addition


def _same_bytes(entry: Any, file: BundleFile) -> bool:
    """Return True if a file of the Hub has the same bytes: by SHA-256 for large files, by git blob id for others."""
    if entry.size != file.nbytes:
        return False
    if entry.lfs is not None:
        return bool(entry.lfs.sha256 == file.sha256)
    return bool(entry.blob_id == file.blob())


def _commit_description(bundle: Bundle, removed: Sequence[str]) -> str:
    text = (
        f"{len(bundle.files)} files, {bundle.nbytes} bytes; SHA-256 of {CHECKSUMS}: {bundle.digest}.\n\n"
        "`ligo-convert verify DIR` checks a downloaded copy."
    )
    if removed:
        names = [f"- `{printable(name).replace('`', '_')}`" for name in removed[:_MAX_LISTED]]
        names += [f"- and {len(removed) - _MAX_LISTED} more"] if len(removed) > _MAX_LISTED else []
        text += "\n\nDeleted, because it is not part of this model:\n" + "\n".join(names)
    return text


@contextmanager
def _reading(file: BundleFile) -> Iterator[None]:
    """Raise VerificationError if the block cannot read the file."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise file.unreadable(error) from None
