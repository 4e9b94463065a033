"""A finished output directory in, a repository of the Hub out that holds it whole or not at all.

Whatever would be refused is refused before anything is made or sent. Everything goes to a branch of its own first, named by what it holds,
so that the same command finds it again after a cut. There every digest that the Hub gives is compared; only then one commit moves the
branch that people load from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ligo_convert.checkpoints.files import CARD
from ligo_convert.errors import HubUnreachable, MachineError, PublishRefused, RecipeError, some
from ligo_convert.hub.client import check_endpoint
from ligo_convert.hub.licenses import license_to_publish
from ligo_convert.hub.names import STAGING, is_reference, is_repository
from ligo_convert.io.strict_json import short
from ligo_convert.outputs.bundle import Publication, pack
from ligo_convert.outputs.hub_repo import MAIN, HubRepo, References, differences, stale
from ligo_convert.progress import Progress


@dataclass(frozen=True, kw_only=True)
class PublishTarget:
    """Where a publication is to go, and what may happen there.

    Attributes:
        repo: `org/name`, made where it is not there. public: readable by everyone; private otherwise.
        branch: what is moved at the end. pull_request: propose it to a repository of somebody else instead.
        tag: put on the commit at the end. replace: files that nobody but their owner vouches for may be taken away.
    """

    repo: str
    public: bool = False
    branch: str = MAIN
    pull_request: bool = False
    tag: str | None = None
    replace: bool = False

    def check(self) -> None:
        """Refuse what can be no name, and what does not go together. Raises RecipeError."""
        if not is_repository(self.repo):
            raise RecipeError("not the name of a repository", where=short(self.repo), expected="org/name")
        for option, name in (("--branch", self.branch), ("--tag", self.tag)):
            if name is not None and not is_reference(name):
                raise RecipeError("not a name that the Hub takes", where=option, found=short(name))
        if self.pull_request and (self.branch != MAIN or self.tag is not None):
            raise RecipeError(
                "a pull request goes to main, and has no tag", where="--pr", hint="leave --branch and --tag out"
            )


@dataclass(frozen=True, kw_only=True)
class PublishResult:
    """What came of it. `commit`: what was compared, and where `revision` is. `changed`: False where all of it was there already.

    `removed`: files that were there and are no longer; of a pull request, those that it takes away.
    """

    publication: Publication
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
            "removed": list(self.removed),
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
    replace: bool = False,
    license: str | None = None,
    progress: Progress | None = None,
) -> PublishResult:
    """Publish an output directory; run again after a cut, it finishes the job.

    Args:
        repo, public, branch, pull_request, tag, replace: as of `PublishTarget`.
        license: as `publication.pack`.

    Raises:
        PublishRefused: no licence, no account, no right to write there, a repository that is public unasked, files of others in the
            way, a tag that is taken.
        HubUnreachable: the Hub cannot be reached, or goes on failing.
        VerificationError: the directory is not whole; or what the Hub holds is not what was sent, and nothing was moved.
        RecipeError: no name of a repository, branch or tag.
    """
    progress = progress or Progress()
    wanted = PublishTarget(repo=repo, public=public, branch=branch, pull_request=pull_request, tag=tag, replace=replace)
    wanted.check()
    check_account(repo)
    return publish_packed(wanted, pack(directory, license=license, progress=progress), progress=progress)


def publish_packed(wanted: PublishTarget, publication: Publication, *, progress: Progress) -> PublishResult:
    """Publish what is packed, by an account that is there. Raises as `publish`."""
    remote = HubRepo(wanted.repo, progress)
    found = _survey(remote, wanted, publication)
    if found.changed:
        remote.check_card(publication.items[CARD].read().decode())
    if not found.exists:
        remote.create(private=not wanted.public)
        found = _survey(remote, wanted, publication)  # somebody else may have made it
    if found.private and wanted.public:
        progress.warn(f"{wanted.repo} is there and stays private; its settings on the Hub make it public")
    return (_propose if wanted.pull_request else _put)(remote, wanted, publication, found)


def plan_publish(wanted: PublishTarget, publication: Publication, *, progress: Progress) -> dict[str, Any]:
    """What `publish` would do, in plain data, with nothing made and nothing sent; null where nobody was asked.

    The Hub is asked where somebody is logged in, and what it would refuse is refused. Raises as `publish`.
    """
    data = {
        "out": str(publication.directory),
        "repo": wanted.repo,
        "revision": None if wanted.pull_request else wanted.branch,  # a pull request has no number yet
        "pull_request": None,
        "private": not wanted.public,
        "tag": wanted.tag,
        **dict.fromkeys(("exists", "changed", "removed")),
        **contents(publication),
    }
    try:
        check_account(wanted.repo)
        remote = HubRepo(wanted.repo, progress, patient=False)
    except (PublishRefused, HubUnreachable) as error:
        progress.warn(f"the Hub was not asked: {error.what}")
        return data
    try:
        found = _survey(remote, wanted, publication)
        if found.changed:
            remote.check_card(publication.items[CARD].read().decode())
        if found.changed and wanted.pull_request:
            number = remote.find_proposal(_title(publication))
            if number is not None:
                data |= {"revision": f"refs/pr/{number}", "pull_request": remote.proposal(number)}
    except HubUnreachable as error:
        progress.warn(f"the Hub could not be asked: {error.what}")
        return data
    told = {"exists": found.exists, "changed": found.changed, "removed": list(found.removed)}
    return {**data, **told, "private": found.private}


def check_beforehand(wanted: PublishTarget, *, license: str | None, progress: Progress) -> None:
    """Refuse what can be known before there is anything to publish; nothing is made. `license`: as somebody stated it.

    A Hub that cannot be reached now may be there when the work is done: that is said, and no more.
    Raises RecipeError, PublishRefused, HubUnreachable (where it is switched off), MachineError.
    """
    wanted.check()
    stated = license and license_to_publish(stated=license, inherited=None, where=wanted.repo)
    check_account(wanted.repo)
    remote = HubRepo(wanted.repo, progress, patient=False)
    try:
        _survey(remote, wanted, None)
        if stated is not None:
            remote.check_card(f"---\nlicense: {stated}\n---\n")
    except HubUnreachable as error:
        progress.warn(f"{wanted.repo}: the Hub could not be asked beforehand: {error.what}")


def check_account(repo: str) -> None:
    """See that there is an account to publish by. Raises PublishRefused, HubUnreachable, MachineError."""
    try:
        # The client takes the address apart as it is imported.
        from huggingface_hub import constants, get_token

        check_endpoint()
    except ValueError:
        raise MachineError("not an address", where="HF_ENDPOINT", hint="use an https address") from None
    if constants.is_offline_mode():
        raise HubUnreachable("publishing needs the Hub, which HF_HUB_OFFLINE switches off", where=repo)
    if get_token() is None:
        raise PublishRefused(
            "nobody is logged in to the Hub", where=repo, hint="run `hf auth login`, or set HF_TOKEN, and run again"
        )


@dataclass(frozen=True, kw_only=True)
class _Found:
    """How things stand on the Hub: `head` is the commit of the branch that is to be moved, None where there is no such branch."""

    exists: bool
    private: bool
    references: References
    head: str | None
    changed: bool
    removed: Sequence[str]


def _survey(remote: HubRepo, wanted: PublishTarget, publication: Publication | None) -> _Found:
    """Look at all that decides whether it can be published, and refuse what cannot. Nothing is made.

    Args:
        publication: None where there is none yet; what depends on it is then left for later.
    """
    info = remote.info()
    if info is None:
        if wanted.pull_request:
            raise PublishRefused(
                "no such repository to propose it to", where=wanted.repo, hint="leave --pr out to make it"
            )
        remote.require_namespace()
        nothing = References(branches={}, tags={})
        return _Found(exists=False, private=not wanted.public, references=nothing, head=None, changed=True, removed=())
    if info.private is False and not wanted.public:
        raise PublishRefused(
            "the repository is readable by everyone, and nobody said that this may be",
            where=wanted.repo,
            hint="say --public (in a recipe publish.public), or name another repository",
        )
    if not wanted.pull_request:
        remote.require_right()
    references = remote.references()
    head = references.branches.get(wanted.branch)
    files = remote.files(head) if head is not None else {}
    changed = head is None or publication is None or bool(differences(publication, files))
    tagged = references.tags.get(wanted.tag) if wanted.tag is not None else None
    if tagged is not None and (tagged != head or (changed and publication is not None)):
        raise PublishRefused(
            "the tag is on another commit, and is not moved",
            where=f"{wanted.repo}: {wanted.tag}",
            found=tagged,
            hint="nothing has been published; name another tag",
        )
    # A pull request is looked at by the owner of what it takes away, and says what that is.
    if head is not None and changed and not wanted.replace and not wanted.pull_request:
        _require_replaceable(remote, wanted, head, files)
    removed = stale(publication, files) if publication is not None and changed else []
    return _Found(
        exists=True, private=bool(info.private), references=references, head=head, changed=changed, removed=removed
    )


def _require_replaceable(remote: HubRepo, wanted: PublishTarget, head: str, files: dict[str, Any]) -> None:
    unclaimed = remote.unclaimed(head, files)
    if unclaimed:
        raise PublishRefused(
            "there are files that no earlier publication left, and they would be taken away or replaced",
            where=f"{wanted.repo} at {wanted.branch}",
            found=some(unclaimed),
            hint="name another repository or branch, or say --replace (in a recipe publish.replace)",
        )


def _put(remote: HubRepo, wanted: PublishTarget, publication: Publication, found: _Found) -> PublishResult:
    """To a branch: over one of its own, compared, and then moved at once."""
    staging = f"ligo-convert-{publication.digest[:16]}"
    commit, head = found.head, found.head
    if found.removed:
        remote.progress.say(f"{remote.repo}: {len(found.removed)} files that are not part of it will be taken away")
    if found.changed or commit is None:
        remote.make_branch(staging)
        staged = remote.commit_of(staging)
        if not remote.holds(publication, staged):
            remote.stage(publication, staging)
            staged = remote.commit_of(staging)
            remote.require(publication, staged, revision=staging, moved=None)
        if head is None:
            remote.make_branch(wanted.branch, commit=staged)
        else:
            remote.move(publication, wanted.branch, head=head, staged=staged)
        commit = remote.commit_of(wanted.branch)
        remote.require(publication, commit, revision=wanted.branch, moved=wanted.branch)
    if found.changed or staging in found.references.branches:
        remote.drop_branch(staging)
    _tell_leftovers(remote, found, staging)
    if wanted.tag is not None:
        remote.put_tag(wanted.tag, commit)
    return PublishResult(
        publication=publication,
        repo=wanted.repo,
        url=remote.url if wanted.branch == MAIN else f"{remote.url}/tree/{wanted.branch}",
        revision=wanted.branch,
        commit=commit,
        private=found.private,
        pull_request=None,
        tag=wanted.tag,
        changed=found.changed,
        removed=found.removed,
    )


def _tell_leftovers(remote: HubRepo, found: _Found, staging: str) -> None:
    """Branches that other publications went over may be what a run is at this moment: they are named, and stay."""
    others = sorted(name for name in found.references.branches if STAGING.fullmatch(name) and name != staging)
    if others:
        remote.progress.warn(
            f"{remote.repo}: left over by a publication that was cut, or in use by one: {some(others)}"
        )


def _title(publication: Publication) -> str:
    """Of a pull request: the same files are proposed once."""
    return f"Grown {publication.family}, {publication.digest[:16]}"


def _propose(remote: HubRepo, wanted: PublishTarget, publication: Publication, found: _Found) -> PublishResult:
    """By a pull request: the one that an earlier call has opened, or a new one; none where it was merged."""
    title = _title(publication)
    number, changed, revision, commit = None, False, MAIN, found.head
    if found.changed or commit is None:
        number = remote.find_proposal(title)
        commit = remote.commit_of(f"refs/pr/{number}") if number is not None else None
        changed = commit is None or not remote.holds(publication, commit)
        if changed or commit is None:
            number = remote.propose(publication, title, number, removed=found.removed)
            commit = remote.commit_of(f"refs/pr/{number}")
            remote.require(publication, commit, revision=f"refs/pr/{number}", moved=f"pull request {number}")
        revision = f"refs/pr/{number}"
    return PublishResult(
        publication=publication,
        repo=wanted.repo,
        url=remote.url,
        revision=revision,
        commit=commit,
        private=found.private,
        pull_request=remote.proposal(number) if number is not None else None,
        tag=None,
        changed=changed,
        removed=found.removed,
    )
