"""Publish a bundle to a repository of the Hugging Face Hub, completely or not at all.

Input: a `Bundle` and the options of `HubDestination`. Output: a `PublishResult`.

Everything that would be refused is refused before the first change. The bundle is first uploaded to a staging branch, whose name is derived
from the bundle's digest, so that the same command finds it again after an interruption. There every digest that the Hub lists is compared.
Only then one commit updates the branch that users load from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ligo_convert.checkpoints.files import CARD
from ligo_convert.errors import HubUnreachable, MachineError, PublishRefused, RecipeError, some
from ligo_convert.hub.client import check_endpoint
from ligo_convert.hub.errors import not_logged_in, offline
from ligo_convert.hub.licenses import license_to_publish
from ligo_convert.hub.names import STAGING, is_reference, is_repository
from ligo_convert.io.strict_json import short
from ligo_convert.outputs.bundle import Bundle
from ligo_convert.outputs.hub_repo import MAIN, HubRepo, References, files_to_delete, list_differences
from ligo_convert.progress import Progress


@dataclass(frozen=True, kw_only=True)
class PublishResult:
    """The result of publishing to the Hub.

    Attributes:
        bundle: the published files.
        repo: `org/name`.
        url: the page of the repository or branch.
        revision: the branch or pull request that contains the bundle.
        commit: the commit of `revision`, compared with the bundle file by file.
        private: whether only members can read the repository.
        pull_request: the page of the pull request; None without one.
        tag: the tag on the commit; None without one.
        changed: False if the repository contained the bundle already.
        removed: files that publishing deleted; for a pull request, files that merging it deletes.
    """

    bundle: Bundle
    repo: str
    url: str
    revision: str
    commit: str
    private: bool
    pull_request: str | None
    tag: str | None
    changed: bool
    removed: Sequence[str]

    def json(self) -> dict[str, Any]:
        """Return the result as `publish --json` prints it."""
        return {
            "out": str(self.bundle.directory),
            "repo": self.repo,
            "url": self.url,
            "revision": self.revision,
            "commit": self.commit,
            "private": self.private,
            "pull_request": self.pull_request,
            "tag": self.tag,
            "changed": self.changed,
            "removed": list(self.removed),
            **self.bundle.contents(),
        }


@dataclass(frozen=True, kw_only=True)
class RepoState:
    """The repository before publishing.

    Attributes:
        exists: whether the repository exists and this account can see it.
        private: whether only members can read it; for a repository to be created, whether only members will.
        references: its branches and tags.
        head: the commit of the branch to update; None if there is no such branch.
        changed: whether publishing would change the branch.
        removed: files of the branch that publishing would delete.
    """

    exists: bool
    private: bool
    references: References
    head: str | None
    changed: bool
    removed: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class HubDestination:
    """A `Destination` on the Hub, with the options of `ligo-convert publish`.

    Attributes:
        repo: `org/name`; created if it does not exist.
        public: allow everyone to read a new repository, and allow publishing to a public one.
        branch: the branch to update.
        pull_request: open a pull request instead of updating a branch.
        tag: tag for the new commit; None for no tag.
        replace: allow deleting and replacing files that no earlier `publish` created.
    """

    repo: str
    public: bool = False
    branch: str = MAIN
    pull_request: bool = False
    tag: str | None = None
    replace: bool = False

    def check_options(self) -> None:
        """Check the names and the combination of options, without a request. Raises RecipeError."""
        if not is_repository(self.repo):
            raise RecipeError("not the name of a repository", where=short(self.repo), expected="org/name")
        for option, name in (("--branch", self.branch), ("--tag", self.tag)):
            if name is not None and not is_reference(name):
                raise RecipeError("the Hub does not accept this name", where=option, found=short(name))
        if self.pull_request and (self.branch != MAIN or self.tag is not None):
            raise RecipeError(
                "a pull request targets main and has no tag", where="--pr", hint="leave out --branch and --tag"
            )

    def check_access(self) -> None:
        """Check that a token and a safe endpoint are configured, without a request.

        Raises:
            PublishRefused: no token.
            HubUnreachable: the client is in offline mode.
            MachineError: the endpoint is not a valid https address.
        """
        try:
            # The client parses the address when it is imported.
            from huggingface_hub import constants, get_token

            check_endpoint()
        except ValueError:
            raise MachineError("not an address", where="HF_ENDPOINT", hint="use an https address") from None
        if constants.is_offline_mode():
            raise offline(self.repo)
        if get_token() is None:
            raise not_logged_in(self.repo)

    def check_beforehand(self, *, license: str | None, progress: Progress) -> None:
        """Ask the Hub, before there is a bundle, for everything that would make publishing fail. Changes nothing.

        If the Hub cannot be reached now, this is only a warning: it may be back when the bundle is complete.

        Args:
            license: the licence that the publisher states; None if the card states it.

        Raises:
            RecipeError, PublishRefused, HubUnreachable (offline mode), MachineError.
        """
        self.check_options()
        stated = license and license_to_publish(stated=license, inherited=None, where=self.repo)
        self.check_access()
        repo = HubRepo(self.repo, progress, retry=False)
        try:
            self._inspect(repo, None)
            if stated is not None:
                repo.check_card(f"---\nlicense: {stated}\n---\n")
        except HubUnreachable as error:
            progress.warn(f"{self.repo}: cannot check the Hub beforehand: {error.what}")

    def plan(self, bundle: Bundle, *, progress: Progress) -> dict[str, Any]:
        """Return what `put` would do, as plain data. Changes nothing. Raises as `put`.

        If no token is configured or the Hub cannot be reached, this is only a warning, and `exists`, `changed` and `removed` are None.
        """
        data = {
            "out": str(bundle.directory),
            "repo": self.repo,
            "revision": None if self.pull_request else self.branch,  # the Hub numbers a pull request when it is opened
            "pull_request": None,
            "private": not self.public,
            "tag": self.tag,
            **dict.fromkeys(("exists", "changed", "removed")),
            **bundle.contents(),
        }
        try:
            self.check_access()
            repo = HubRepo(self.repo, progress, retry=False)
        except (PublishRefused, HubUnreachable) as error:
            progress.warn(f"the Hub was not asked: {error.what}")
            return data
        try:
            state = self._inspect(repo, bundle)
            if state.changed:
                repo.check_card(bundle.files[CARD].read().decode())
            if state.changed and self.pull_request:
                number = repo.find_pull_request(_pull_request_title(bundle))
                if number is not None:
                    data |= {"revision": f"refs/pr/{number}", "pull_request": repo.pull_request_url(number)}
        except HubUnreachable as error:
            progress.warn(f"the Hub cannot be asked: {error.what}")
            return data
        changes = {"exists": state.exists, "changed": state.changed, "removed": list(state.removed)}
        return {**data, **changes, "private": state.private}

    def put(self, bundle: Bundle, *, progress: Progress) -> PublishResult:
        """Publish a bundle. Run again after an interruption, it resumes.

        Raises:
            PublishRefused: no permission, a repository that is public without `public`, foreign files in the way without `replace`, or a
                tag on another commit.
            HubUnreachable: the Hub cannot be reached or keeps failing.
            VerificationError: the files on the Hub differ from the bundle; no branch was updated.
        """
        repo = HubRepo(self.repo, progress)
        state = self._inspect(repo, bundle)
        if state.changed:
            repo.check_card(bundle.files[CARD].read().decode())
        if not state.exists:
            repo.create(private=not self.public)
            state = self._inspect(repo, bundle)  # somebody else may have created it at the same time
        if state.private and self.public:
            progress.warn(f"{self.repo} exists and stays private; to make it public, change its settings on the Hub")
        if self.pull_request:
            return self._put_as_pull_request(repo, bundle, state)
        return self._put_on_branch(repo, bundle, state)

    def _inspect(self, repo: HubRepo, bundle: Bundle | None) -> RepoState:
        """Read the state of the repository and refuse what cannot be published. Changes nothing.

        Args:
            bundle: None if there is none yet; what depends on its files is then not checked.
        """
        info = repo.info()
        if info is None:
            if self.pull_request:
                raise PublishRefused(
                    "no such repository, so there is nothing to open a pull request in",
                    where=self.repo,
                    hint="leave out --pr to create the repository",
                )
            repo.require_can_create()
            references = References(branches={}, tags={})
            return RepoState(
                exists=False, private=not self.public, references=references, head=None, changed=True, removed=()
            )
        if info.private is False and not self.public:
            raise PublishRefused(
                "the repository is public, and publishing to a public repository was not requested",
                where=self.repo,
                hint="pass --public (in a recipe set publish.public), or name another repository",
            )
        if not self.pull_request:
            repo.require_can_write()
        references = repo.references()
        head = references.branches.get(self.branch)
        files = repo.files(head) if head is not None else {}
        changed = head is None or bundle is None or bool(list_differences(bundle, files))
        self._require_free_tag(references, head, moves=changed and bundle is not None)
        # A pull request may delete any file: its description lists them, and the owner decides.
        if head is not None and changed and not self.replace and not self.pull_request:
            self._require_replaceable(repo, head, files)
        removed = files_to_delete(bundle, files) if bundle is not None and changed else []
        return RepoState(
            exists=True, private=bool(info.private), references=references, head=head, changed=changed, removed=removed
        )

    def _require_free_tag(self, references: References, head: str | None, *, moves: bool) -> None:
        """Raise PublishRefused if the tag exists and publishing would have to move it."""
        tagged = references.tags.get(self.tag) if self.tag is not None else None
        if tagged is not None and (tagged != head or moves):
            raise PublishRefused(
                "the tag is on another commit; tags are never moved",
                where=f"{self.repo}: {self.tag}",
                found=tagged,
                hint="nothing has been published; choose another tag",
            )

    def _require_replaceable(self, repo: HubRepo, head: str, files: dict[str, Any]) -> None:
        """Raise PublishRefused if the branch contains files that no earlier `publish` created."""
        foreign = repo.foreign_files(head, files)
        if foreign:
            raise PublishRefused(
                "publishing would delete or replace files that no earlier publish created",
                where=f"{self.repo} at {self.branch}",
                found=some(foreign),
                hint="name another repository or branch, or pass --replace (in a recipe set publish.replace)",
            )

    def _put_on_branch(self, repo: HubRepo, bundle: Bundle, state: RepoState) -> PublishResult:
        """Upload to a staging branch, compare, then update the branch in one commit."""
        staging = f"ligo-convert-{bundle.digest[:16]}"
        commit, head = state.head, state.head
        if state.removed:
            repo.progress.say(f"{repo.repo}: deleting {len(state.removed)} files that are not part of the model")
        if state.changed or commit is None:
            repo.create_branch(staging)
            staged = repo.commit_of(staging)
            if not repo.matches(bundle, staged):
                repo.stage(bundle, staging)
                staged = repo.commit_of(staging)
                repo.require_match(bundle, staged, revision=staging, visible_as=None)
            if head is None:
                repo.create_branch(self.branch, commit=staged)
            else:
                repo.update_branch(bundle, self.branch, head=head, staged=staged)
            commit = repo.commit_of(self.branch)
            repo.require_match(bundle, commit, revision=self.branch, visible_as=self.branch)
        if state.changed or staging in state.references.branches:
            repo.delete_branch(staging)
        _warn_of_other_staging_branches(repo, state, staging)
        if self.tag is not None:
            repo.create_tag(self.tag, commit)
        return PublishResult(
            bundle=bundle,
            repo=self.repo,
            url=repo.url if self.branch == MAIN else f"{repo.url}/tree/{self.branch}",
            revision=self.branch,
            commit=commit,
            private=state.private,
            pull_request=None,
            tag=self.tag,
            changed=state.changed,
            removed=state.removed,
        )

    def _put_as_pull_request(self, repo: HubRepo, bundle: Bundle, state: RepoState) -> PublishResult:
        """Open a pull request, or complete the one that an earlier call opened; open none if the bundle was merged already."""
        title = _pull_request_title(bundle)
        number, changed, revision, commit = None, False, MAIN, state.head
        if state.changed or commit is None:
            number = repo.find_pull_request(title)
            commit = repo.commit_of(f"refs/pr/{number}") if number is not None else None
            changed = commit is None or not repo.matches(bundle, commit)
            if changed or commit is None:
                number = repo.write_pull_request(bundle, title, number, removed=state.removed)
                commit = repo.commit_of(f"refs/pr/{number}")
                visible_as = f"pull request {number}"
                repo.require_match(bundle, commit, revision=f"refs/pr/{number}", visible_as=visible_as)
            revision = f"refs/pr/{number}"
        return PublishResult(
            bundle=bundle,
            repo=self.repo,
            url=repo.url,
            revision=revision,
            commit=commit,
            private=state.private,
            pull_request=repo.pull_request_url(number) if number is not None else None,
            tag=None,
            changed=changed,
            removed=state.removed,
        )


def _warn_of_other_staging_branches(repo: HubRepo, state: RepoState, staging: str) -> None:
    """Name staging branches of other bundles. They stay, because another process may be using them."""
    others = sorted(name for name in state.references.branches if STAGING.fullmatch(name) and name != staging)
    if others:
        repo.progress.warn(
            f"{repo.repo}: staging branches of another publish that is running or was interrupted: {some(others)}"
        )


def _pull_request_title(bundle: Bundle) -> str:
    """Return a title that identifies the bundle, so that it is proposed only once."""
    return f"Grown {bundle.family}, {bundle.digest[:16]}"
