"""Publishing: whole or not at all, by the real client, to a Hub on the loopback interface where things go wrong."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import loopback
import pytest
from checkpoints import HERE
from loopback import Fault
from source_models import DEEPER, write_case, write_checkpoint

from ligo_convert.card import under_license
from ligo_convert.checkpoint_layout import stated_license
from ligo_convert.convert import convert
from ligo_convert.errors import PublishRefused, RecipeError
from ligo_convert.licensing import PERMISSIVE, license_to_publish
from ligo_convert.recipe import load_recipe
from ligo_convert.sums import check_sums

TOKEN, OTHER = "hf_" + "a" * 30, "hf_" + "b" * 30
ACCOUNTS = {TOKEN: ("me", "team"), OTHER: ("somebody",)}
REPO = "me/grown"

# Publishes in a child, whose environment names the Hub, several times if asked, and says what came of each on one line of JSON.
CHILD = """
import json, sys
from pathlib import Path
from ligo_convert import hub, publish
from ligo_convert.errors import LigoError
hub.DELAYS = (0.01,) * len(hub.DELAYS)
said = []
for call in json.loads(sys.argv[1]):
    try:
        said.append(publish.publish(Path(call.pop("directory")), call.pop("repo"), **call).json())
    except LigoError as error:
        said.append({"error": type(error).__name__, "text": str(error), "code": error.exit_code})
print(json.dumps(said))
"""


def grow(place: Path, *, card: str = "", **output: object) -> Path:
    """A finished output of copied layers, which takes no library to make."""
    source = write_checkpoint(place / "source")
    if card:
        (source / "README.md").write_text(card)
    recipe = {
        "version": 1,
        "source": {"model": str(source)},
        "target": {"config": DEEPER["gpt2"]},
        "growth": {"width": "copy", "depth": "stack"},
        "output": {"dir": str(place / "out"), **output},
    }
    (place / "recipe.yaml").write_text(json.dumps(recipe))
    return convert(load_recipe(place / "recipe.yaml")).out


@pytest.fixture(scope="session")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return grow(tmp_path_factory.mktemp("grown"), card="---\nlicense: apache-2.0\n---\n# a\n", max_shard_size="30KB")


@pytest.fixture
def copy(grown: Path, tmp_path: Path) -> Path:
    """The same, to be spoiled."""
    return Path(shutil.copytree(grown, tmp_path / "copy"))


Send = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def send(tmp_path: Path) -> Send:
    def call(hub: loopback.Hub, *calls: Mapping[str, object], token: str = TOKEN, **environment: str) -> Any:
        asked = [{**one, "directory": str(one["directory"])} for one in calls]
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", CHILD, json.dumps(asked)],
            env=hub.environment(tmp_path / "home", PYTHONPATH=HERE, **{"HF_TOKEN": token, **environment}),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return call


def published(hub: loopback.Hub, repo: str = REPO, branch: str = "main") -> dict[str, bytes]:
    """What is on a branch, but for what the Hub itself has put there."""
    repository = hub.repositories[repo]
    files = repository.commits[repository.branches[branch]]
    return {name: data for name, data in files.items() if name != ".gitattributes"}


def on_disk(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def requests(hub: loopback.Hub, what: str) -> int:
    return sum(what in request for request in hub.requests)


def serve(**given: Any) -> Any:
    return loopback.serve(given.pop("repositories", {}), accounts=ACCOUNTS, **given)


# --- what goes there --------------------------------------------------------------------------------------------------


def test_a_directory_goes_there_byte_for_byte_and_main_moves_once(grown: Path, send: Send) -> None:
    with serve() as hub:
        said, again = send(hub, {"directory": grown, "repo": REPO}, {"directory": grown, "repo": REPO})
        assert "error" not in said, said
        assert published(hub) == on_disk(grown)
        assert said["changed"]
        assert said["private"]
        assert said["license"] == "apache-2.0"
        assert said["commit"] == hub.repositories[REPO].branches["main"] == again["commit"]
        assert list(hub.repositories[REPO].branches) == ["main"]  # the branch it went over is gone
        assert hub.repositories[REPO].closed
        assert requests(hub, f"POST /api/models/{REPO}/commit/main") == 1
        assert not again["changed"]
        sizes = {file["name"]: file["bytes"] for file in said["files"]}
        assert sizes == {name: len(data) for name, data in on_disk(grown).items()}


def test_what_is_sent_twice_is_stored_once(grown: Path, send: Send) -> None:
    weights = [name for name in on_disk(grown) if name.endswith(".safetensors")]
    assert len(weights) > 2
    with serve() as hub:
        send(hub, {"directory": grown, "repo": REPO})
        digests = {hashlib.sha256((grown / name).read_bytes()).hexdigest() for name in weights}
        assert requests(hub, "PUT /objects/") == len(digests)


def test_files_of_an_earlier_model_are_taken_away(grown: Path, send: Send) -> None:
    old = {"model.safetensors": b"old", "pytorch_model.bin": b"old", "README.md": b"old", ".gitattributes": b""}
    with serve(repositories={REPO: loopback.one_commit(old, commit="c" * 40)}) as hub:
        hub.repositories[REPO].closed = True
        (said,) = send(hub, {"directory": grown, "repo": REPO})
        assert "error" not in said, said
        assert published(hub) == on_disk(grown)


def test_it_goes_to_another_branch_and_under_a_tag(grown: Path, send: Send) -> None:
    call = {"directory": grown, "repo": REPO}
    with serve() as hub:
        said, moved = send(hub, {**call, "branch": "step-100", "tag": "v1"}, {**call, "license": "mit", "tag": "v1"})
        assert "error" not in said, said
        assert published(hub, branch="step-100") == on_disk(grown)
        assert published(hub) != published(hub, branch="step-100")
        assert hub.repositories[REPO].tags == {"v1": said["commit"]}
        # Another commit asks for the tag: it stays where people know it to be.
        assert moved["code"] == 8
        assert "tag" in moved["text"]


def test_a_stated_licence_is_in_what_is_published_and_a_copy_verifies(grown: Path, send: Send, tmp_path: Path) -> None:
    before = on_disk(grown)
    with serve() as hub:
        (said,) = send(hub, {"directory": grown, "repo": REPO, "license": "mit"})
        assert said["license"] == "mit", said
        there = published(hub)
    assert on_disk(grown) == before
    assert {name for name in there if there[name] != before[name]} == {
        "README.md",
        "ligo/provenance.json",
        "ligo/SHA256SUMS",
    }
    assert stated_license(there["README.md"]) == "mit"
    for name, data in there.items():
        (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "copy" / name).write_bytes(data)
    assert set(check_sums(tmp_path / "copy")) == set(there) - {"ligo/SHA256SUMS"}


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_file_that_nothing_vouches_for_is_not_sent(copy: Path, send: Send) -> None:
    (copy / "notes.txt").write_text("mine")
    with serve() as hub:
        (said,) = send(hub, {"directory": copy, "repo": REPO})
        assert said["code"] == 7
        assert "notes.txt" in said["text"]
        assert not hub.repositories


def test_a_flipped_bit_is_not_sent(copy: Path, send: Send) -> None:
    path = next(copy.glob("*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with serve() as hub:
        (said,) = send(hub, {"directory": copy, "repo": REPO})
        assert said["code"] == 7
        assert path.name in said["text"]
        assert not hub.repositories


@pytest.mark.parametrize(
    ("card", "hint"),
    [("", "states none"), ("---\nlicense: cc-by-nc-4.0\n---\n", "cc-by-nc-4.0")],
    ids=["none", "strict"],
)
def test_without_a_licence_that_holds_nothing_is_sent(card: str, hint: str, send: Send, tmp_path: Path) -> None:
    out = grow(tmp_path, card=card)
    call = {"directory": out, "repo": REPO}
    with serve() as hub:
        said, stated, wrong = send(hub, call, {**call, "license": "cc-by-nc-4.0"}, {**call, "license": "a licence"})
        assert said["code"] == 8
        assert hint in said["text"]
        assert stated["license"] == "cc-by-nc-4.0", stated
        assert wrong["code"] == 2


def test_who_may_not_write_there_is_told_so(grown: Path, send: Send) -> None:
    call = {"directory": grown, "repo": REPO}
    theirs = loopback.one_commit({"README.md": b"x"}, commit="d" * 40)
    with serve(repositories={"somebody/theirs": theirs}) as hub:
        (unknown,) = send(hub, call, token="")
        assert unknown["code"] == 8
        assert "logged in" in unknown["text"]
        missing, public, offered = send(
            hub,
            {**call, "repo": "nobody/model"},
            {**call, "repo": "somebody/theirs"},
            {**call, "repo": "somebody/theirs", "public": True},
        )
        assert missing["code"] == 8
        assert public["code"] == 8
        assert "--public" in public["text"]
        assert offered["code"] == 8
        assert "--pr" in offered["text"]
        assert published(hub, "somebody/theirs") == {"README.md": b"x"}


@pytest.mark.parametrize("repo", ["model", "a/b/c", "me/..", "-x/y", "me/a b"])
def test_what_is_no_name_is_refused_before_anything(repo: str, grown: Path, send: Send) -> None:
    with serve() as hub:
        (said,) = send(hub, {"directory": grown, "repo": repo})
        assert said["code"] == 2
        assert not hub.requests


def test_the_hub_s_own_doubts_are_passed_on(grown: Path, send: Send) -> None:
    with serve() as hub:
        (said,) = send(hub, {"directory": grown, "repo": REPO, "license": "no-such-licence"})
        assert said["code"] == 8
        assert "known licences" in said["text"]
        assert published(hub) == {}


# --- what goes wrong --------------------------------------------------------------------------------------------------

FAULTS = {
    "create fails": Fault(method="POST", path="/api/repos/create", kind="status"),
    "create's answer is lost": Fault(method="POST", path="/api/repos/create", kind="lost"),
    "branch fails": Fault(method="POST", path="/branch/", kind="status"),
    "tree fails": Fault(method="GET", path="/tree/", kind="status", times=2),
    "upload fails": Fault(method="PUT", path="/objects/", kind="status", at=1, times=2),
    "upload is cut": Fault(method="PUT", path="/objects/", kind="cut", times=2),
    "commit fails": Fault(method="POST", path="/commit/", kind="status", times=2),
    "commit is cut": Fault(method="POST", path="/commit/", kind="cut"),
    "commit's answer is lost": Fault(method="POST", path="/commit/", kind="lost"),
    "main's commit fails": Fault(method="POST", path="/commit/main", kind="status", times=3),
    "main's answer is lost": Fault(method="POST", path="/commit/main", kind="lost"),
    "too many requests": Fault(method="POST", path="/preupload/", kind="status", status=429),
    "the branch stays": Fault(method="DELETE", path="/branch/", kind="status", times=9),
}


def again(fault: Fault) -> Fault:
    return Fault(
        method=fault.method, path=fault.path, kind=fault.kind, at=fault.at, times=fault.times, status=fault.status
    )


@pytest.mark.parametrize("name", FAULTS)
def test_what_fails_for_the_moment_is_tried_again(name: str, grown: Path, send: Send) -> None:
    with serve(faults=[again(FAULTS[name])]) as hub:
        (said,) = send(hub, {"directory": grown, "repo": REPO})
        assert "error" not in said, said
        assert published(hub) == on_disk(grown)
        assert requests(hub, "/commit/") <= 6


def test_what_goes_on_failing_leaves_main_as_it_was_and_can_be_gone_on_with(grown: Path, send: Send) -> None:
    call = {"directory": grown, "repo": REPO}
    for path in ("/objects/batch", "/commit/ligo", "/commit/main"):
        with serve() as hub:
            # Of the kind that the client itself does not try again.
            hub.faults = [Fault(method="POST", path=path, kind="status", status=520, times=1000)]
            (failed,) = send(hub, call)
            assert failed["code"] == 4, failed
            assert "520" in failed["text"]
            assert published(hub) == {}
            hub.faults = []
            stored = requests(hub, "PUT /objects/")
            (said,) = send(hub, call)
            assert "error" not in said, said
            assert published(hub) == on_disk(grown)
            assert list(hub.repositories[REPO].branches) == ["main"]
            if path != "/objects/batch":
                assert requests(hub, "PUT /objects/") == stored  # what was there was not sent again


def test_what_the_hub_stored_wrongly_never_gets_to_main(grown: Path, send: Send) -> None:
    call = {"directory": grown, "repo": REPO}
    with serve(faults=[Fault(method="PUT", path="/objects/", kind="corrupt")]) as hub:
        (said,) = send(hub, call)
        assert said["code"] == 7, said
        assert "other bytes" in said["text"]
        assert published(hub) == {}
    # Whatever an earlier run has left on the branch is compared, too.
    with serve() as hub:
        send(hub, call)
        repository = hub.repositories[REPO]
        staged = f"ligo-convert-{hashlib.sha256((grown / 'ligo/SHA256SUMS').read_bytes()).hexdigest()[:16]}"
        first = next(commit for commit, files in repository.commits.items() if set(files) == {".gitattributes"})
        broken = {**repository.commits[repository.branches["main"]], "config.json": b"{}"}
        repository.commits["e" * 40] = broken
        repository.branches |= {"main": first, staged: "e" * 40}
        (said,) = send(hub, call)
        assert "error" not in said, said
        assert published(hub) == on_disk(grown)


def test_a_branch_that_somebody_else_moves_is_not_overrun(grown: Path, send: Send) -> None:
    with serve() as hub:
        hub.faults = [Fault(method="POST", path="/commit/main", kind="status", status=412, times=1000)]
        (said,) = send(hub, {"directory": grown, "repo": REPO})
        assert said["code"] == 8
        assert "somebody else" in said["text"]
        assert published(hub) == {}


# --- proposals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [False, True], ids=["at once", "answer lost"])
def test_a_proposal_is_one_pull_request_however_often_it_is_made(lost: bool, grown: Path, send: Send) -> None:
    theirs = loopback.one_commit({"README.md": b"x", "old.bin": b"y"}, commit="d" * 40)
    call = {"directory": grown, "repo": "somebody/theirs", "pull_request": True}
    faults = [Fault(method="POST", path="/commit/main", kind="lost")] if lost else []
    with serve(repositories={"somebody/theirs": theirs}, faults=faults) as hub:
        said, second = send(hub, call, call)
        assert "error" not in said, said
        assert said["pull_request"].endswith("/discussions/1")
        assert len(hub.repositories["somebody/theirs"].pulls) == 1
        assert published(hub, "somebody/theirs", "refs/pr/1") == on_disk(grown)
        assert published(hub, "somebody/theirs") == {"README.md": b"x", "old.bin": b"y"}
        assert not second["changed"]
        (missing,) = send(hub, {**call, "repo": "somebody/nothing"})
        assert missing["code"] == 8


# --- what is there afterwards -----------------------------------------------------------------------------------------

LOADED = """
import json, sys
import numpy as np
import torch
name, kind, local = sys.argv[1:]
if kind == "timm":
    import timm
    there = timm.create_model(f"hf-hub:{name}", pretrained=True)
    here = timm.create_model(f"local-dir:{local}", pretrained=True)
else:
    from transformers import AutoModelForCausalLM
    there, said = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True)
    assert not any(said.values()), said
    here = AutoModelForCausalLM.from_pretrained(local)
pairs = zip(there.state_dict().items(), here.state_dict().items(), strict=True)
print(json.dumps(all(one[0] == two[0] and torch.equal(one[1], two[1]) for one, two in pairs)))
"""


@pytest.mark.parametrize("kind", ["transformers", "timm"])
def test_people_load_it_by_its_name(kind: str, grown: Path, send: Send, tmp_path: Path) -> None:
    out = grown
    if kind == "timm":
        source = write_case(tmp_path / "source", "cait", own_layout=True)
        recipe = {
            "version": 1,
            "source": {"model": str(source)},
            "target": {"config": {"depth": 4}},
            "growth": {"width": "copy", "depth": "stack"},
            "output": {"dir": str(tmp_path / "out")},
        }
        (tmp_path / "cait.yaml").write_text(json.dumps(recipe))
        out = convert(load_recipe(tmp_path / "cait.yaml")).out
    with serve() as hub:
        (said,) = send(hub, {"directory": out, "repo": REPO, "license": "mit", "public": True})
        assert "error" not in said, said
        done = subprocess.run(
            [sys.executable, "-c", LOADED, REPO, kind, str(out)],
            env=hub.environment(tmp_path / "other-home", PYTHONPATH=HERE),
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        assert json.loads(done.stdout.splitlines()[-1])


def test_the_client_s_own_storage_takes_it_too(grown: Path, send: Send, tmp_path: Path) -> None:
    pytest.importorskip("hf_xet", reason="the Hub's storage client is not to be had for this machine")
    with serve() as hub:
        hub.chunks = tmp_path / "chunks"
        hub.chunks.mkdir()
        (said,) = send(
            hub, {"directory": grown, "repo": REPO}, HF_HUB_DISABLE_XET="0", HF_XET_CACHE=str(tmp_path / "xet")
        )
        assert "error" not in said, said
        assert published(hub) == on_disk(grown)
        assert not requests(hub, "PUT /objects/")
        assert requests(hub, "xet-write-token")


# --- the command ------------------------------------------------------------------------------------------------------


def cli(hub: loopback.Hub, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ligo_convert", *arguments],
        env=hub.environment(home, PYTHONPATH=HERE, HF_TOKEN=TOKEN),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_command_shows_what_goes_and_a_dry_run_sends_nothing(grown: Path, tmp_path: Path) -> None:
    with serve() as hub:
        dry = cli(hub, tmp_path, "publish", str(grown), REPO, "--dry-run", "--json")
        assert dry.returncode == 0, dry.stderr
        assert {file["name"] for file in json.loads(dry.stdout)["files"]} == set(on_disk(grown))
        assert not hub.requests
        done = cli(hub, tmp_path, "publish", str(grown), REPO, "--public", "--tag", "v1")
        assert done.returncode == 0, done.stderr
        assert all(name in done.stderr for name in on_disk(grown))
        assert "everyone" in done.stdout
        assert TOKEN not in done.stdout + done.stderr
        assert not hub.repositories[REPO].closed
        refused = cli(hub, tmp_path, "publish", str(grown), REPO, "--pr", "--tag", "v2")
        assert refused.returncode == 2


def test_a_recipe_is_published_after_it_was_verified(tmp_path: Path) -> None:
    grow(tmp_path)
    recipe = json.loads((tmp_path / "recipe.yaml").read_text())
    (tmp_path / "recipe.yaml").write_text(json.dumps({**recipe, "publish": {"repo": "team/grown", "license": "mit"}}))
    unlicensed = tmp_path / "unlicensed.yaml"
    unlicensed.write_text(json.dumps({**recipe, "publish": {"repo": "team/grown"}, "output": {"dir": "nowhere"}}))
    with serve() as hub:
        done = cli(hub, tmp_path, "run", str(tmp_path / "recipe.yaml"), "--json")
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert not said["changed"]
        assert said["published"]["changed"]
        assert said["published"]["repo"] == "team/grown"
        assert published(hub, "team/grown").keys() == on_disk(tmp_path / "out").keys()
        refused = cli(hub, tmp_path, "run", str(unlicensed))
        assert refused.returncode == 8
        assert "unlicensed.yaml:1:" in refused.stderr
        assert not (tmp_path / "nowhere").exists()


# --- licences ---------------------------------------------------------------------------------------------------------


def test_a_licence_is_inherited_where_it_lets_others_share_and_else_stated() -> None:
    assert license_to_publish(stated=None, inherited="MIT", where="x") == "mit"
    assert license_to_publish(stated="Llama3", inherited="mit", where="x") == "llama3"
    for inherited in (None, "other", "cc-by-nc-4.0", "llama3"):
        assert inherited not in PERMISSIVE
        with pytest.raises(PublishRefused):
            license_to_publish(stated=None, inherited=inherited, where="x")
    with pytest.raises(RecipeError):
        license_to_publish(stated="my own", inherited="mit", where="x")


def test_a_card_says_its_licence_once(grown: Path) -> None:
    card = (grown / "README.md").read_text()
    amended = under_license(card, "cc0-1.0")
    assert stated_license(amended.encode()) == "cc0-1.0"
    assert amended.count("\nlicense: ") == 1
    assert "apache-2.0" not in amended
    assert under_license(amended, "cc0-1.0") == amended
    assert [line for line in amended.splitlines() if line.startswith("## ")] == [
        line for line in card.splitlines() if line.startswith("## ")
    ]
