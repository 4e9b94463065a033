"""The Hub on the loopback interface, held against the real client: what that sends is understood, what it reads back is true."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationCopy,
    CommitOperationDelete,
    HfApi,
    close_session,
    constants,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.community import DiscussionComment, DiscussionCommit, DiscussionStatusChange
from huggingface_hub.errors import (
    BadRequestError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile, RepoFolder
from huggingface_hub.utils import disable_progress_bars, enable_progress_bars, httpx
from safetensors.numpy import save
from support.loopback import server as loopback
from support.loopback.server import Fault, Hub

# The client's own way to send a file.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
MINE, THEIRS, WRONG = "hf_mine", "hf_theirs", "hf_wrong"
ACCOUNTS = {MINE: ("me", "team"), THEIRS: ("they",)}
REPO = "me/grown"
WEIGHTS = bytes(range(256)) * 40
FILES = {"config.json": b'{"a": 1}', "model.safetensors": WEIGHTS, "ligo/report.md": b"# report\n"}


@pytest.fixture(autouse=True)
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """The client of this process, without its storage client, an account, or a proxy."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    close_session()
    disable_progress_bars()
    yield
    enable_progress_bars()
    close_session()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with loopback.serve(accounts=ACCOUNTS) as running:
        yield running


def api(hub: Hub, token: str | bool = MINE) -> HfApi:
    return HfApi(endpoint=hub.address, token=token)


def add(path: str, data: bytes) -> CommitOperationAdd:
    return CommitOperationAdd(path_in_repo=path, path_or_fileobj=data)


def make(hub: Hub, files: dict[str, bytes] = FILES, repo: str = REPO, **more: Any) -> HfApi:
    """A repository of mine, with files."""
    mine = api(hub)
    mine.create_repo(repo, **more)
    if files:
        mine.create_commit(repo, [add(path, data) for path, data in files.items()], commit_message="grown")
    return mine


def there(hub: Hub, revision: str = "main", repo: str = REPO) -> dict[str, bytes]:
    repository = hub.repositories[repo]
    files = repository.commits[repository.find(revision) or ""]
    return {name: data for name, data in files.items() if name != ".gitattributes"}


def sent(hub: Hub, pattern: str) -> int:
    return sum(re.search(pattern, request) is not None for request in hub.requests)


def status_of(error: pytest.ExceptionInfo[HfHubHTTPError]) -> int:
    return int(error.value.response.status_code)


# --- repositories -----------------------------------------------------------------------------------------------------


def test_a_new_repository_begins_with_one_commit_of_its_attributes(hub: Hub) -> None:
    mine = api(hub)
    url = mine.create_repo("grown", private=True)  # in the namespace of the account
    assert (url.repo_id, str(url)) == (REPO, f"{hub.address}/{REPO}")
    info = mine.model_info(REPO)
    assert (info.private, info.gated, info.disabled) == (True, False, False)
    assert [file.rfilename for file in info.siblings] == [".gitattributes"]
    (first,) = mine.list_repo_commits(REPO)
    assert (first.commit_id, first.title, first.authors) == (info.sha, "initial commit", ["me"])
    refs = mine.list_repo_refs(REPO, include_pull_requests=True)
    assert [(ref.name, ref.ref, ref.target_commit) for ref in refs.branches] == [("main", "refs/heads/main", info.sha)]
    assert (refs.tags, refs.pull_requests, refs.converts) == ([], [], [])


def test_a_repository_is_made_once(hub: Hub) -> None:
    mine = make(hub)
    with pytest.raises(HfHubHTTPError, match="You already created this model repo") as error:
        mine.create_repo(REPO)
    assert status_of(error) == 409
    assert mine.create_repo(REPO, exist_ok=True).repo_id == REPO
    assert there(hub) == FILES
    assert not mine.model_info(REPO).private


def test_settings_change_and_a_repository_goes(hub: Hub) -> None:
    mine = make(hub)
    mine.update_repo_settings(REPO, private=True, gated="manual")
    info = mine.model_info(REPO)
    assert (info.private, info.gated) == (True, "manual")
    mine.delete_repo(REPO)
    assert not mine.repo_exists(REPO)
    with pytest.raises(RepositoryNotFoundError):
        mine.delete_repo(REPO)


def test_an_account_is_told_who_it_is(hub: Hub) -> None:
    said = api(hub).whoami()
    assert (said["type"], said["name"], [org["name"] for org in said["orgs"]]) == ("user", "me", ["team"])
    with pytest.raises(HfHubHTTPError) as error:
        api(hub, WRONG).whoami()
    assert status_of(error) == 401


# --- files ------------------------------------------------------------------------------------------------------------


def test_what_is_uploaded_is_listed_and_comes_back_byte_for_byte(hub: Hub, tmp_path: Path) -> None:
    mine = make(hub)
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    info = mine.model_info(REPO, files_metadata=True)
    siblings = {file.rfilename: file for file in info.siblings}
    assert {name: file.size for name, file in siblings.items() if name in FILES} == {
        k: len(v) for k, v in FILES.items()
    }
    assert siblings["model.safetensors"].lfs.sha256 == digest
    assert siblings["config.json"].blob_id == loopback.git_blob(FILES["config.json"])

    deep = {entry.path: entry for entry in mine.list_repo_tree(REPO, recursive=True, revision=info.sha)}
    assert set(deep) == {*FILES, ".gitattributes", "ligo"}
    weights = deep["model.safetensors"]
    assert isinstance(weights, RepoFile)
    assert isinstance(deep["ligo"], RepoFolder)
    assert (weights.size, weights.lfs.sha256, weights.lfs.size) == (len(WEIGHTS), digest, len(WEIGHTS))
    # What git has of it is a pointer, as git lfs writes one.
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize {len(WEIGHTS)}\n".encode()
    assert (weights.lfs.pointer_size, weights.blob_id) == (len(pointer), loopback.git_blob(pointer))
    assert {entry.path for entry in mine.list_repo_tree(REPO)} == {*FILES, ".gitattributes", "ligo"} - {
        "ligo/report.md"
    }
    (report,) = mine.list_repo_tree(REPO, "ligo", expand=True)
    assert (report.path, report.last_commit.title, report.lfs) == ("ligo/report.md", "grown", None)
    with pytest.raises(EntryNotFoundError):
        list(mine.list_repo_tree(REPO, "nowhere"))
    found = mine.get_paths_info(REPO, ["ligo", "model.safetensors", "nowhere"])
    assert {entry.path: type(entry) for entry in found} == {"ligo": RepoFolder, "model.safetensors": RepoFile}

    for revision in (None, info.sha):
        folder = Path(snapshot_download(REPO, cache_dir=tmp_path, endpoint=hub.address, token=MINE, revision=revision))
        assert folder.name == info.sha
        assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    mine.verify_repo_checksums(REPO, cache_dir=tmp_path)


def test_a_folder_goes_up_in_one_commit_without_what_is_ignored(hub: Hub, tmp_path: Path) -> None:
    for name, data in {**FILES, ".gitignore": b"# mine\n*.log\ntmp/\n", "a.log": b"x", "tmp/b": b"x"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    mine = make(hub, {})
    said = mine.upload_folder(repo_id=REPO, folder_path=tmp_path, commit_message="all", commit_description="of it")
    assert set(there(hub)) == {*FILES, ".gitignore"}
    commits = mine.list_repo_commits(REPO)
    assert [(commit.commit_id, commit.title, commit.message) for commit in commits[:-1]] == [(said.oid, "all", "of it")]
    assert said.commit_url == f"{hub.address}/{REPO}/commit/{said.oid}"
    again = mine.upload_folder(repo_id=REPO, folder_path=tmp_path, ignore_patterns=["*.log", "tmp/*"])
    assert again.oid == said.oid  # nothing has changed, weights and text alike: no commit, and none asked for
    assert sent(hub, "POST .*/commit/main") == 1


def test_an_object_that_is_there_is_not_sent_again(hub: Hub) -> None:
    mine = make(hub)
    mine.create_commit(REPO, [add("copy/model.safetensors", WEIGHTS)], commit_message="copy")
    make(hub, {"other.bin": WEIGHTS}, repo="team/other")
    assert (sent(hub, "objects/batch"), sent(hub, "PUT /objects/")) == (3, 1)
    assert there(hub)["copy/model.safetensors"] == there(hub, repo="team/other")["other.bin"] == WEIGHTS


def test_binary_and_big_files_are_objects_whatever_their_name(hub: Hub) -> None:
    big = b"a" * 10_000_001
    mine = make(hub, {"data": b"\0\1", "text": b"plain", "big.txt": big, "empty.bin": b""})
    tree = {entry.path: entry for entry in mine.list_repo_tree(REPO)}
    assert {name: bool(tree[name].lfs) for name in there(hub)} == {
        "data": True,
        "text": False,
        "big.txt": True,
        "empty.bin": False,
    }
    assert there(hub)["big.txt"] == big


def test_an_object_goes_up_in_parts_where_it_is_large(hub: Hub) -> None:
    hub.part = 4000
    mine = make(hub)
    assert there(hub) == FILES
    assert sent(hub, r"PUT /objects/[0-9a-f]{64}/\d+$") == 3
    hub.part = len(WEIGHTS)
    mine.create_commit(REPO, [add("model.safetensors", WEIGHTS[::-1])], commit_message="at most one part")
    assert sent(hub, r"PUT /objects/[0-9a-f]{64}$") == 1


def test_a_card_with_no_such_licence_is_refused_before_anything_is_sent(hub: Hub) -> None:
    mine = make(hub, {})
    card = b"---\nlicense: no-such-licence\n---\n"
    with pytest.raises(ValueError, match="license"):
        mine.create_commit(REPO, [add("README.md", card), add("a.bin", b"x")], commit_message="card")
    assert there(hub) == {}
    assert not sent(hub, "preupload")


def test_the_header_of_weights_is_read_without_the_weights(hub: Hub) -> None:
    mine = make(hub, {"model.safetensors": save({"w": np.zeros((1000, 300), np.float32)})})
    assert mine.get_safetensors_metadata(REPO).parameter_count == {"F32": 300_000}
    assert hub.served["model.safetensors"] <= 100_001


# --- commits ----------------------------------------------------------------------------------------------------------


def test_a_commit_that_names_no_stored_object_is_refused(hub: Hub) -> None:
    mine = make(hub, {})
    lost = add("model.safetensors", WEIGHTS)
    lost._upload_mode, lost._is_uploaded, lost._should_ignore = "lfs", True, False
    with pytest.raises(BadRequestError, match="LFS pointer pointed to a file that does not exist"):
        mine.create_commit(REPO, [add("config.json", b"{}"), lost], commit_message="half")
    assert there(hub) == {}  # whole or not at all


def test_a_commit_after_somebody_else_s_is_refused(hub: Hub) -> None:
    mine = make(hub)
    before = mine.model_info(REPO).sha
    mine.create_commit(REPO, [add("a", b"1")], commit_message="one", parent_commit=before)
    with pytest.raises(HfHubHTTPError, match="A commit has happened since") as error:
        mine.create_commit(REPO, [add("a", b"2")], commit_message="two", parent_commit=before)
    assert status_of(error) == 412
    assert there(hub)["a"] == b"1"


def test_files_and_folders_are_deleted_and_copied(hub: Hub) -> None:
    mine = make(hub, {**FILES, "old/a": b"a", "old/b/c": b"c", "oldest": b"o"})
    mine.create_commit(
        REPO,
        [
            CommitOperationDelete("old/"),
            CommitOperationDelete("config.json"),
            CommitOperationCopy("model.safetensors", "kept/model.safetensors"),
            CommitOperationCopy("ligo/report.md", "kept/report.md"),
        ],
        commit_message="tidy",
    )
    kept = {"kept/model.safetensors": WEIGHTS, "kept/report.md": FILES["ligo/report.md"], "oldest": b"o"}
    assert there(hub) == {name: data for name, data in FILES.items() if name != "config.json"} | kept
    for gone in ("config.json", "old/"):
        with pytest.raises(EntryNotFoundError):
            mine.create_commit(REPO, [CommitOperationDelete(gone)], commit_message="again")
    for path in ("../a", ".git/config"):
        refused = CommitOperationDelete("oldest")
        refused.path_in_repo = path
        with pytest.raises(BadRequestError, match="Invalid path"):
            mine.create_commit(REPO, [refused], commit_message="out")


def test_the_files_of_a_repository_made_by_hand_are_copied_too(hub: Hub) -> None:
    hub.repositories[REPO] = loopback.one_commit(FILES)
    api(hub).create_commit(REPO, [CommitOperationCopy("model.safetensors", "b.bin")], commit_message="copy")
    assert there(hub) == FILES | {"b.bin": WEIGHTS}
    assert [commit.title for commit in api(hub).list_repo_commits(REPO)] == ["copy", "initial commit"]


# --- branches and tags ------------------------------------------------------------------------------------------------


def test_branches_are_made_moved_and_taken_away(hub: Hub, tmp_path: Path) -> None:
    mine = make(hub)
    head = mine.model_info(REPO).sha
    mine.create_branch(REPO, branch="runs/one")
    with pytest.raises(HfHubHTTPError, match="already exists") as error:
        mine.create_branch(REPO, branch="runs/one")
    assert status_of(error) == 409
    mine.create_branch(REPO, branch="runs/one", exist_ok=True)
    mine.create_commit(REPO, [add("config.json", b"{}")], commit_message="moved", revision="runs/one")
    assert mine.model_info(REPO).sha == head != mine.model_info(REPO, revision="runs/one").sha
    assert [commit.title for commit in mine.list_repo_commits(REPO, revision="runs/one")] == [
        "moved",
        "grown",
        "initial commit",
    ]
    got = hf_hub_download(
        REPO, "config.json", revision="runs/one", cache_dir=tmp_path, endpoint=hub.address, token=MINE
    )
    assert Path(got).read_bytes() == b"{}"
    mine.create_branch(REPO, branch="from", revision=head)
    assert mine.model_info(REPO, revision="from").sha == head
    with pytest.raises(RevisionNotFoundError):
        mine.create_branch(REPO, branch="nowhere", revision="f" * 40)
    mine.delete_branch(REPO, branch="runs/one")
    for name in ("runs/one", "main"):
        with pytest.raises(HfHubHTTPError):
            mine.delete_branch(REPO, branch=name)
    assert [ref.name for ref in mine.list_repo_refs(REPO).branches] == ["main", "from"]
    with pytest.raises(RevisionNotFoundError):
        mine.create_commit(REPO, [add("a", b"1")], commit_message="lost", revision="runs/one")


def test_a_tag_stays_where_it_was_put(hub: Hub, tmp_path: Path) -> None:
    mine = make(hub)
    mine.create_tag(REPO, tag="v1", tag_message="the first")
    with pytest.raises(HfHubHTTPError, match="exists already") as error:
        mine.create_tag(REPO, tag="v1")
    assert status_of(error) == 409
    mine.create_tag(REPO, tag="v1", exist_ok=True)
    mine.create_commit(REPO, [add("config.json", b"{}")], commit_message="moved")
    got = hf_hub_download(REPO, "config.json", revision="v1", cache_dir=tmp_path, endpoint=hub.address, token=MINE)
    assert Path(got).read_bytes() == FILES["config.json"]
    assert [(ref.name, ref.ref) for ref in mine.list_repo_refs(REPO).tags] == [("v1", "refs/tags/v1")]
    with pytest.raises(RevisionNotFoundError):
        mine.create_tag(REPO, tag="v2", revision="f" * 40)
    mine.delete_tag(REPO, tag="v1")
    with pytest.raises(RevisionNotFoundError):
        mine.delete_tag(REPO, tag="v1")


# --- pull requests ----------------------------------------------------------------------------------------------------


def test_anyone_may_propose_and_the_owner_takes_it(hub: Hub) -> None:
    mine, theirs = make(hub), api(hub, THEIRS)
    before = mine.model_info(REPO).sha
    proposed = [add("model.safetensors", WEIGHTS[::-1]), CommitOperationDelete("config.json")]
    said = theirs.create_commit(REPO, proposed, commit_message="better", create_pr=True)
    assert (said.pr_num, said.pr_revision) == (1, "refs/pr/1")
    assert said.pr_url == f"{hub.address}/{REPO}/discussions/1"
    assert there(hub) == FILES
    assert there(hub, "refs/pr/1")["model.safetensors"] == WEIGHTS[::-1]
    theirs.create_commit(REPO, [add("more", b"x")], commit_message="and more", revision="refs/pr/1")

    (listed,) = mine.get_repo_discussions(REPO, discussion_type="pull_request", discussion_status="open")
    assert (listed.num, listed.title, listed.author, listed.status) == (1, "better", "they", "open")
    assert list(mine.get_repo_discussions(REPO, discussion_type="discussion")) == []
    assert list(mine.get_repo_discussions(REPO, author="me")) == []
    details = mine.get_discussion_details(REPO, 1)
    assert (details.git_reference, details.target_branch, details.conflicting_files) == (
        "refs/pr/1",
        "refs/heads/main",
        [],
    )
    assert [event.summary for event in details.events if isinstance(event, DiscussionCommit)] == ["better", "and more"]
    pulls = mine.list_repo_refs(REPO, include_pull_requests=True).pull_requests
    assert [(ref.ref, ref.target_commit) for ref in pulls] == [("refs/pr/1", details.events[-1].oid)]
    assert mine.list_repo_refs(REPO).pull_requests is None

    mine.create_commit(REPO, [add("mine", b"y")], commit_message="meanwhile")
    mine.merge_pull_request(REPO, 1)
    assert there(hub) == {
        "model.safetensors": WEIGHTS[::-1],
        "ligo/report.md": FILES["ligo/report.md"],
        "more": b"x",
        "mine": b"y",
    }
    merged = mine.get_discussion_details(REPO, 1)
    assert (merged.status, merged.merge_commit_oid) == ("merged", mine.model_info(REPO).sha)
    assert [commit.title for commit in mine.list_repo_commits(REPO)][:2] == ["better (#1)", "meanwhile"]
    assert before in [commit.commit_id for commit in mine.list_repo_commits(REPO)]


def test_a_pull_request_is_opened_first_and_filled_later(hub: Hub) -> None:
    mine, theirs = make(hub), api(hub, THEIRS)
    opened = theirs.create_pull_request(REPO, title="later", description="words")
    assert (opened.num, opened.status, opened.git_reference) == (1, "draft", "refs/pr/1")
    (first,) = opened.events
    assert isinstance(first, DiscussionComment)
    assert (first.content, first.author) == ("words", "they")
    assert there(hub, "refs/pr/1") == FILES
    theirs.create_commit(REPO, [add("config.json", b"theirs")], commit_message="x", revision="refs/pr/1")
    mine.create_commit(REPO, [add("config.json", b"mine")], commit_message="y")
    assert mine.get_discussion_details(REPO, 1).conflicting_files == ["config.json"]
    with pytest.raises(HfHubHTTPError, match="cannot be merged"):
        mine.merge_pull_request(REPO, 1)
    assert mine.comment_discussion(REPO, 1, comment="no").content == "no"
    closed = theirs.change_discussion_status(REPO, 1, "closed")
    assert isinstance(closed, DiscussionStatusChange)
    assert closed.new_status == "closed"
    assert [one.num for one in mine.get_repo_discussions(REPO, discussion_status="closed")] == [1]
    assert list(mine.get_repo_discussions(REPO, discussion_status="open")) == []
    with pytest.raises(HfHubHTTPError):
        mine.get_discussion_details(REPO, 2)
    assert there(hub)["config.json"] == b"mine"


# --- who may --------------------------------------------------------------------------------------------------------


def test_only_the_owner_writes_and_those_without_a_token_do_nothing(hub: Hub) -> None:
    mine = make(hub)
    head = mine.model_info(REPO).sha

    def attempts(other: HfApi) -> list[Callable[[], object]]:
        return [
            lambda: other.create_commit(REPO, [add("a", b"1")], commit_message="x"),
            lambda: other.create_commit(REPO, [add("a.bin", WEIGHTS[1:])], commit_message="x"),
            lambda: other.create_branch(REPO, branch="b"),
            lambda: other.create_tag(REPO, tag="t"),
            lambda: other.update_repo_settings(REPO, private=True),
            lambda: other.delete_repo(REPO),
            lambda: other.create_repo("team/theirs"),
            lambda: other.auth_check(REPO, write=True),
        ]

    for token, status in ((THEIRS, 403), (WRONG, 401), (False, 401)):
        for attempt in attempts(api(hub, token)):
            with pytest.raises(HfHubHTTPError) as error:
                attempt()
            assert status_of(error) == status
    with pytest.raises(HfHubHTTPError):
        api(hub, False).create_commit(REPO, [add("a", b"1")], commit_message="x", create_pr=True)
    assert list(hub.repositories) == [REPO]
    assert (hub.repositories[REPO].branches, hub.repositories[REPO].tags) == ({"main": head}, {})
    mine.auth_check(REPO, write=True)
    assert api(hub, False).model_info(REPO).sha == head  # everybody reads


def test_a_proposal_is_its_author_s_and_the_owner_s_to_go_on_with(hub: Hub) -> None:
    mine, theirs = make(hub), api(hub, THEIRS)
    hub.accounts["hf_third"] = ("third",)
    objects = [add("model.safetensors", WEIGHTS[::-1])]
    theirs.create_commit(REPO, objects, commit_message="x", create_pr=True)
    theirs.create_commit(REPO, [add("b.bin", WEIGHTS[1:])], commit_message="y", revision="refs/pr/1")
    mine.create_commit(REPO, [add("c", b"1")], commit_message="z", revision="refs/pr/1")
    with pytest.raises(HfHubHTTPError, match="create_pr=1"):
        api(hub, "hf_third").create_commit(REPO, [add("d", b"1")], commit_message="x", revision="refs/pr/1")
    with pytest.raises(HfHubHTTPError):
        theirs.merge_pull_request(REPO, 1)
    assert set(there(hub, "refs/pr/1")) == {*FILES, "b.bin", "c"}


def test_a_private_repository_is_not_there_for_others(hub: Hub, tmp_path: Path) -> None:
    mine = make(hub, private=True)

    def attempts(other: HfApi) -> list[Callable[[], object]]:
        return [
            lambda: other.model_info(REPO),
            lambda: list(other.list_repo_tree(REPO)),
            lambda: other.create_commit(REPO, [add("a", b"1")], commit_message="x", create_pr=True),
            lambda: list(other.get_repo_discussions(REPO)),
            lambda: other.get_paths_info(REPO, ["config.json"]),
        ]

    for token, status in ((THEIRS, 404), (False, 401)):
        for attempt in attempts(api(hub, token)):
            with pytest.raises(RepositoryNotFoundError) as error:
                attempt()
            assert status_of(error) == status
        with pytest.raises(RepositoryNotFoundError):
            hub_file(hub, "config.json", tmp_path / "theirs", token=token)
        with pytest.raises(HfHubHTTPError) as error:
            api(hub, token).create_repo(REPO)
        assert status_of(error) == (401 if token is False else 403)
    assert hub_file(hub, "config.json", tmp_path / "mine") == FILES["config.json"]
    assert mine.repo_exists(REPO)
    assert not mine.repo_exists("me/nothing")


def test_a_gated_repository_gives_its_files_to_its_owner_alone(hub: Hub, tmp_path: Path) -> None:
    make(hub).update_repo_settings(REPO, gated="auto")
    assert "config.json" in [file.rfilename for file in api(hub, THEIRS).model_info(REPO).siblings]
    for token in (THEIRS, False):
        with pytest.raises(GatedRepoError):
            hub_file(hub, "config.json", tmp_path / "theirs", token=token)
    assert hub_file(hub, "config.json", tmp_path / "mine") == FILES["config.json"]


def hub_file(hub: Hub, name: str, cache: Path, *, token: str | bool = MINE, repo: str = REPO) -> bytes:
    got = hf_hub_download(repo, name, cache_dir=cache, endpoint=hub.address, token=token, etag_timeout=30)
    return Path(got).read_bytes()


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_a_fault_strikes_the_requests_it_names_and_no_others(hub: Hub) -> None:
    mine = make(hub)
    hub.faults = [Fault(method="GET", path=f"/api/models/{REPO}$", kind="status", status=418, at=1, times=2)]
    seen = []
    for _ in range(5):
        try:
            mine.model_info(REPO)
            seen.append(200)
        except HfHubHTTPError as error:
            seen.append(error.response.status_code)
        mine.list_repo_refs(REPO)
    assert seen == [200, 418, 418, 200, 200]


def test_a_commit_that_fails_is_not_made_and_one_whose_answer_is_lost_is(hub: Hub) -> None:
    mine = make(hub, {})
    for kind in ("status", "cut", "lost"):
        hub.faults = [Fault(method="POST", path="/commit/main$", kind=kind)]
        with pytest.raises(HfHubHTTPError if kind == "status" else httpx.TransportError):
            mine.create_commit(REPO, [add(kind, b"x" * 100_000)], commit_message=kind)
    assert set(there(hub)) == {"lost"}


def test_an_upload_that_is_cut_stores_nothing_and_is_tried_again(hub: Hub) -> None:
    data = bytes(range(1, 256)) * 4000
    for after in (None, 0, 70_000):
        hub.objects.clear()
        hub.repositories.clear()
        hub.requests.clear()
        hub.faults = [Fault(method="PUT", path="/objects/", kind="cut", after=after)]
        make(hub, {"model.safetensors": data})
        assert there(hub) == {"model.safetensors": data}
        assert sent(hub, "PUT /objects/") == 2


def test_a_download_that_is_cut_is_tried_again(hub: Hub, tmp_path: Path) -> None:
    data = bytes(range(1, 256)) * 4000
    make(hub, {"model.safetensors": data})
    hub.faults = [Fault(method="GET", path="/resolve/", kind="cut", after=300_000)]
    assert hub_file(hub, "model.safetensors", tmp_path) == data
    assert sent(hub, "GET .*/resolve/") == 2
    assert hub.served["model.safetensors"] == len(data) + 300_000


def test_a_turned_bit_is_stored_and_served_as_it_is(hub: Hub, tmp_path: Path) -> None:
    hub.faults = [
        Fault(method="PUT", path="/objects/", kind="corrupt"),
        Fault(method="POST", path="/commit/", kind="corrupt"),
    ]
    mine = make(hub)
    tree = {entry.path: entry for entry in mine.list_repo_tree(REPO, recursive=True)}
    assert tree["model.safetensors"].lfs.sha256 != hashlib.sha256(WEIGHTS).hexdigest()
    assert tree["config.json"].blob_id != loopback.git_blob(FILES["config.json"])
    assert {name: len(data) for name, data in there(hub).items()} == {name: len(data) for name, data in FILES.items()}
    hub.faults = [Fault(method="GET", path="/resolve/", kind="corrupt")]
    got = hub_file(hub, "ligo/report.md", tmp_path)
    assert (got[:-1], got[-1]) == (there(hub)["ligo/report.md"][:-1], there(hub)["ligo/report.md"][-1] ^ 1)


def test_a_slow_hub_is_slow_both_ways_and_loses_nothing(hub: Hub, tmp_path: Path) -> None:
    data = bytes(200_000)
    slow = [
        Fault(method=method, path="objects/|resolve/", kind="slow", seconds=0.05, times=9) for method in ("PUT", "GET")
    ]
    hub.faults = slow
    before = time.monotonic()
    make(hub, {"model.safetensors": data})
    between = time.monotonic()
    assert hub_file(hub, "model.safetensors", tmp_path) == data
    assert between - before > 4 * 0.05 < time.monotonic() - between
    assert [fault.seen for fault in slow] == [1, 1]


def test_the_hub_goes_away_and_with_it_the_connections_that_are_kept() -> None:
    with loopback.serve(accounts=ACCOUNTS) as running:
        mine = make(running)
    with pytest.raises(httpx.ConnectError):
        mine.model_info(REPO)


# --- the storage client -----------------------------------------------------------------------------------------------

XET = """
import json, os, sys
from pathlib import Path
from huggingface_hub import CommitOperationAdd, HfApi, snapshot_download
folder, repo, cache = sys.argv[1:]
api = HfApi()
api.create_repo(repo)
api.upload_folder(repo_id=repo, folder_path=folder, commit_message="folder")
api.create_commit(repo, [CommitOperationAdd("more.bin", b"more" * 5000)], commit_message="commit")
again = api.upload_folder(repo_id=repo, folder_path=folder, commit_message="nothing new")
theirs = HfApi(token="hf_theirs")
pull = theirs.create_commit(repo, [CommitOperationAdd("pull.bin", b"pull" * 5000)], commit_message="p", create_pr=True)
(Path(folder) / "model.safetensors").write_bytes(b"other" * 5000)
theirs.upload_folder(repo_id=repo, folder_path=folder, commit_message="folder's", create_pr=True)
tree = {one.path: [one.lfs.sha256, one.size, bool(one.xet_hash)] for one in api.list_repo_tree(repo) if getattr(one, "lfs", 0)}
got = Path(snapshot_download(repo, cache_dir=cache))
files = {path.relative_to(got).as_posix(): path.read_bytes().hex() for path in got.rglob("*") if path.is_file()}
print(json.dumps({"tree": tree, "files": files, "pull": pull.pr_num}))
"""


def test_the_storage_client_of_the_hub_uploads_and_downloads(hub: Hub, tmp_path: Path) -> None:
    pytest.importorskip("hf_xet", reason="the Hub's storage client is not to be had for this machine")
    hub.chunks = tmp_path / "chunks"
    hub.chunks.mkdir()
    folder = tmp_path / "folder"
    for name, data in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    xet = {"HF_HUB_DISABLE_XET": "0", "HF_XET_CACHE": str(tmp_path / "xet")}
    said = child(hub, tmp_path, XET, str(folder), REPO, str(tmp_path / "cache"), **xet)
    expected = FILES | {"more.bin": b"more" * 5000}
    assert there(hub) == expected
    assert {name: bytes.fromhex(data) for name, data in said["files"].items() if name in expected} == expected
    large = {name: data for name, data in expected.items() if loopback.is_large(name)}
    assert said["tree"] == {name: [hashlib.sha256(data).hexdigest(), len(data), True] for name, data in large.items()}
    assert not sent(hub, "objects/")
    assert sent(hub, "xet-write-token")
    assert sent(hub, "xet-read-token")
    assert not set(large) & set(hub.served)  # they came from the store
    assert there(hub, "refs/pr/1")["pull.bin"] == b"pull" * 5000
    assert there(hub, "refs/pr/2")["model.safetensors"] == b"other" * 5000
    assert [commit.title for commit in api(hub).list_repo_commits(REPO)] == ["commit", "folder", "initial commit"]
    assert hub_file(hub, "model.safetensors", tmp_path / "plain") == WEIGHTS  # by one who has no such client
    assert hub.served["model.safetensors"] == len(WEIGHTS)


def child(hub: Hub, place: Path, program: str, *arguments: str, **environment: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=hub.environment(place / "home", HF_TOKEN=MINE, HF_HUB_DISABLE_PROGRESS_BARS="1", **environment),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


# --- there and back ---------------------------------------------------------------------------------------------------

TRANSFORMERS = """
import sys
import torch
from huggingface_hub import HfApi
from transformers import AutoModelForCausalLM, GPT2Config
folder, repo = sys.argv[1:]
model = AutoModelForCausalLM.from_config(GPT2Config(vocab_size=31, n_positions=8, n_embd=8, n_head=2, n_layer=1))
model.save_pretrained(folder)
HfApi().create_repo(repo, private=True)
HfApi().upload_folder(repo_id=repo, folder_path=folder)
there, said = AutoModelForCausalLM.from_pretrained(repo, output_loading_info=True)
here = model.state_dict()
same = all(torch.equal(tensor, here[name]) for name, tensor in there.state_dict().items())
model.push_to_hub("me/pushed")
again = AutoModelForCausalLM.from_pretrained("me/pushed").state_dict()
print(int(same and not any(said.values()) and all(torch.equal(again[name], here[name]) for name in here)))
"""
TIMM = """
import sys
import timm
import torch
from huggingface_hub import HfApi
folder, repo = sys.argv[1:]
sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 8, "depth": 1, "num_heads": 2, "num_classes": 3}
model = timm.create_model("vit_tiny_patch16_224", **sizes)
timm.models.save_for_hf(model, folder, model_args=sizes, safe_serialization=True)
HfApi().create_repo(repo)
HfApi().upload_folder(repo_id=repo, folder_path=folder)
there = timm.create_model(f"hf-hub:{repo}", pretrained=True).state_dict()
here = model.state_dict()
print(int(all(torch.equal(there[name], here[name]) for name in here)))
"""


@pytest.mark.parametrize("program", [TRANSFORMERS, TIMM], ids=["transformers", "timm"])
@pytest.mark.slow
def test_a_library_loads_what_was_uploaded(program: str, hub: Hub, tmp_path: Path) -> None:
    assert child(hub, tmp_path, program, str(tmp_path / "model"), REPO) == 1
    assert hub.served["model.safetensors"] >= len(there(hub)["model.safetensors"])


# --- the program ------------------------------------------------------------------------------------------------------


def test_it_runs_as_a_program_until_it_is_ended(tmp_path: Path) -> None:
    command = [sys.executable, loopback.__file__, "--port", "0", "--token", MINE, "--account", "me"]
    with subprocess.Popen([*command, "--store", str(tmp_path / "store")], stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            name, _, address = running.stdout.readline().strip().partition("=")
            assert (name, (tmp_path / "store").is_dir()) == ("HF_ENDPOINT", True)
            mine = HfApi(endpoint=address, token=MINE)
            mine.create_repo(REPO, private=True)
            mine.create_commit(REPO, [add("model.safetensors", WEIGHTS)], commit_message="x")
            assert mine.model_info(REPO).private
            with pytest.raises(HfHubHTTPError):
                HfApi(endpoint=address, token=WRONG).create_repo("me/other")
            assert running.poll() is None
        finally:
            running.terminate()
