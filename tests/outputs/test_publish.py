"""Publishing: whole or not at all, by the real client, to a Hub on the loopback interface where things go wrong."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from support.checkpoints import HERE
from support.loopback import server as loopback
from support.loopback.server import Fault, Pull
from support.pipelines import NORMALIZE, dense, pooling, write_pipeline
from support.slow import rest_slow
from support.source_models import DEEPER, recipe_text, write_case, write_checkpoint

from ligo_convert.checkpoints.layout import stated_license
from ligo_convert.conversion.convert import convert
from ligo_convert.errors import PublishRefused, RecipeError
from ligo_convert.hub.licenses import PERMISSIVE, license_to_publish
from ligo_convert.outputs.card import under_license
from ligo_convert.outputs.checksums import check_sums
from ligo_convert.recipes.recipe import load_recipe
from ligo_convert.recipes.schema import PublishConfig

TOKEN, OTHER = "hf_" + "a" * 30, "hf_" + "b" * 30
ACCOUNTS = {TOKEN: ("me", "team"), OTHER: ("somebody",)}
REPO = "me/grown"

# Publishes in a child, whose environment names the Hub, several times if asked, and says what came of each on one line of JSON.
CHILD = """
import json, sys
from pathlib import Path
from ligo_convert.hub import client as hub
from ligo_convert.outputs.publish import publish
from ligo_convert.errors import LigoError
hub.DELAYS = (0.01,) * len(hub.DELAYS)
said = []
for call in json.loads(sys.argv[1]):
    try:
        directory, license = Path(call.pop("directory")), call.pop("license", None)
        said.append(publish(directory, "hub", license=license, **call).json())
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


def test_what_was_carried_is_published_in_its_folders_and_nothing_else(send: Send, tmp_path: Path) -> None:
    source = write_pipeline(tmp_path / "source", [pooling(), dense(16, 4), NORMALIZE])
    (source / "LICENSE").write_text("Stored in /home/somebody/model.\n")  # as public as the source
    (source / "modeling_evil.py").write_text("raise SystemExit(1)\n")
    text = recipe_text(
        source,
        {"num_hidden_layers": 3},
        growth={"width": "copy", "depth": "stack"},
        output={"dir": str(tmp_path / "out")},
    )
    (tmp_path / "recipe.yaml").write_text(text)
    out = convert(load_recipe(tmp_path / "recipe.yaml")).out
    with serve() as hub:
        (said,) = send(hub, {"directory": out, "repo": REPO, "license": "mit"})
        assert "error" not in said, said
        there = published(hub)
        # The stated licence stands in the card, the provenance and the sums.
        written = {"README.md", "ligo/provenance.json", "ligo/SHA256SUMS"}
        assert {name: data for name, data in there.items() if name not in written} == {
            name: data for name, data in on_disk(out).items() if name not in written
        }
        assert {"LICENSE", "1_Pooling/config.json", "2_Dense/model.safetensors", "modules.json"} <= set(there)
        assert "modeling_evil.py" not in there


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
        (said,) = send(hub, {"directory": grown, "repo": REPO, "replace": True})
        assert "error" not in said, said
        assert said["removed"] == ["model.safetensors", "pytorch_model.bin"]
        assert published(hub) == on_disk(grown)


@pytest.mark.slow
def test_what_nobody_vouches_for_is_not_taken_away_unasked(grown: Path, send: Send) -> None:
    """Of an earlier publication everything may go; beside it, as where there was none, only what its owner gives up."""
    call = {"directory": grown, "repo": REPO}
    mine = {"README.md": b"x", ".gitattributes": b"", "thesis.pdf": b"z"}
    with serve(repositories={REPO: loopback.one_commit(mine, commit="c" * 40)}) as hub:
        repository = hub.repositories[REPO]
        repository.closed = True
        kept, elsewhere, said = send(hub, call, {**call, "branch": "step-1"}, {**call, "replace": True})
        assert kept["code"] == 8
        assert "thesis.pdf" in kept["text"]
        assert "--replace" in kept["text"]
        assert elsewhere["removed"] == []  # the branch was made for it
        assert set(repository.branches) == {"main", "step-1"}
        assert said["removed"] == ["thesis.pdf"]
        assert published(hub) == published(hub, branch="step-1") == on_disk(grown)
        # Another publication follows one of ours; what has been laid beside it is not ours.
        ours = repository.commits[repository.branches["main"]]
        repository.commits["e" * 40] = {**ours, "plot.png": b"p"}
        (again,) = send(hub, {**call, "license": "mit"})
        assert again["changed"]
        assert again["removed"] == []
        repository.branches["main"] = "e" * 40
        (beside,) = send(hub, call)
        assert beside["code"] == 8
        assert "plot.png" in beside["text"]
        assert "config.json" not in beside["text"]


@pytest.mark.slow
def test_it_goes_to_another_branch_and_under_a_tag(grown: Path, send: Send) -> None:
    call = {"directory": grown, "repo": REPO}
    with serve() as hub:
        said, again = send(hub, *[{**call, "branch": "step-100", "tag": "v1"}] * 2)
        assert "error" not in said, said
        assert not again["changed"]
        assert published(hub, branch="step-100") == on_disk(grown)
        assert published(hub) == {}
        repository = hub.repositories[REPO]
        assert repository.tags == {"v1": said["commit"]} == {"v1": repository.branches["step-100"]}
        # Another commit asks for the tag: it stays where people know it to be, and so does the branch.
        before = dict(repository.branches)
        moved, other = send(hub, {**call, "license": "mit", "branch": "step-100", "tag": "v1"}, {**call, "tag": "v1"})
        for refused in (moved, other):
            assert refused["code"] == 8
            assert "tag" in refused["text"]
        assert repository.branches == before


@pytest.mark.slow
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


def test_what_is_no_name_is_refused_before_anything(grown: Path, send: Send, tmp_path: Path) -> None:
    repositories = (
        "model",
        "a/b/c",
        "me/..",
        "-x/y",
        "me/a b",
        "me/model-",
        "me/model.",
        "me./model",
        "me/" + "x" * 96,
    )
    names = ("HEAD", "v 1", "refs/pr/3", "a//b", "-x", "a..b", "x.lock", "ligo-convert-" + "0" * 16, "f" * 40)
    calls = [{"repo": repo} for repo in repositories]
    calls += [{"repo": REPO, key: name} for name in names for key in ("branch", "tag")]
    with serve() as hub:
        for call, said in zip(calls, send(hub, *({"directory": grown, **call} for call in calls)), strict=True):
            assert said.get("code") == 2, call
            with pytest.raises(ValidationError):
                PublishConfig.model_validate(call)
        assert not hub.requests
    grow(tmp_path)
    recipe = json.loads((tmp_path / "recipe.yaml").read_text())
    (tmp_path / "recipe.yaml").write_text(json.dumps({**recipe, "publish": {"repo": REPO, "tag": "v 1"}}))
    with pytest.raises(RecipeError, match=r"recipe\.yaml:1:"):
        load_recipe(tmp_path / "recipe.yaml")


def test_the_hub_s_own_doubts_are_passed_on(grown: Path, send: Send) -> None:
    with serve() as hub:
        (said,) = send(hub, {"directory": grown, "repo": REPO, "license": "no-such-licence"})
        assert said["code"] == 8
        assert "known licences" in said["text"]
        assert not hub.repositories
        assert not requests(hub, "/objects/")


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
    "the removal's answer is lost": Fault(method="DELETE", path="/branch/", kind="lost"),
    "an upload is slow": Fault(method="PUT", path="/objects/", kind="slow", seconds=0.3, times=9),
    "an answer is slow": Fault(method="GET", path="/tree/", kind="slow", seconds=0.3, times=9),
    "an answer is cut": Fault(method="GET", path="/tree/", kind="cut", after=10),
    "the references are cut": Fault(method="GET", path="/refs", kind="cut", after=0),
    "the card is not looked at": Fault(method="POST", path="/validate-yaml", kind="status"),
}


def again(fault: Fault) -> Fault:
    return replace(fault, seen=0)


@pytest.mark.parametrize("name", FAULTS)
@pytest.mark.slow
def test_what_fails_for_the_moment_is_tried_again(name: str, grown: Path, send: Send) -> None:
    fault = again(FAULTS[name])
    with serve(faults=[fault]) as hub:
        (said,) = send(hub, {"directory": grown, "repo": REPO})
        assert "error" not in said, said
        assert fault.was_met
        assert published(hub) == on_disk(grown)
        assert requests(hub, "/commit/") <= 6


@pytest.mark.slow
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


@pytest.mark.slow
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


def test_what_changes_after_it_was_compared_never_gets_to_main(copy: Path, send: Send) -> None:
    def spoil(request: str) -> None:
        if request.startswith("GET") and requests(hub, "/commit/ligo-convert"):
            (copy / "config.json").write_text('{"model_type": "other"}')

    with serve() as hub:
        hub.meanwhile = spoil
        (said,) = send(hub, {"directory": copy, "repo": REPO})
        assert said["code"] == 7, said
        assert "changed since it was verified" in said["text"]
        assert published(hub) == {}


@pytest.mark.slow
def test_a_file_that_is_gone_is_said_to_be(copy: Path, send: Send) -> None:
    before = {name: (copy / name).read_bytes() for name in ("config.json", "model.safetensors.index.json")}
    for moment, name in (("/branch/", "config.json"), ("/preupload/", "model.safetensors.index.json")):

        def spoil(request: str, moment: str = moment, name: str = name) -> None:
            if moment in request:
                (copy / name).unlink(missing_ok=True)

        with serve() as hub:
            hub.meanwhile = spoil
            (said,) = send(hub, {"directory": copy, "repo": REPO})
            assert said["code"] == 7, said
            assert "can no longer be read" in said["text"]
            assert published(hub) == {}
        (copy / name).write_bytes(before[name])


@pytest.mark.slow
def test_what_a_gitignore_leaves_out_is_not_left_out_in_silence(grown: Path, send: Send) -> None:
    """Of the branch that is to move: the one that everything went over first had no such file."""
    with serve() as hub:
        (said,) = send(hub, {"directory": grown, "repo": REPO, "branch": "step-1"})
        repository = hub.repositories[REPO]
        there = repository.commits[said["commit"]]
        repository.commits["e" * 40] = {**there, "config.json": b"{}", ".gitignore": b"*.json\n"}
        repository.branches["step-1"] = "e" * 40
        (refused,) = send(hub, {"directory": grown, "repo": REPO, "branch": "step-1", "replace": True})
        assert refused["code"] == 8, refused
        assert ".gitignore" in refused["text"]
        assert repository.branches["step-1"] == "e" * 40


@pytest.mark.slow
def test_what_is_reported_and_tagged_is_what_was_compared(grown: Path, send: Send) -> None:
    call = {"directory": grown, "repo": REPO, "tag": "v1"}

    def push(request: str) -> None:
        repository = hub.repositories.get(REPO)
        if request.startswith("DELETE") and repository is not None:
            repository.commits["f" * 40] = {"config.json": b"{}"}
            repository.branches["main"] = "f" * 40

    def remove(request: str) -> None:
        if request.startswith("GET") and requests(hub, "/commit/main"):
            hub.repositories[REPO].branches.pop("main", None)

    with serve() as hub:
        hub.meanwhile = push
        (said,) = send(hub, call)
        repository = hub.repositories[REPO]
        assert repository.branches["main"] == "f" * 40
        assert repository.tags["v1"] == said["commit"] != "f" * 40
        there = repository.commits[said["commit"]]
        assert {name: there[name] for name in on_disk(grown)} == on_disk(grown)
    with serve() as hub:
        hub.meanwhile = remove
        (lost,) = send(hub, call)
        assert lost["code"] == 4, lost
        assert not hub.repositories[REPO].tags


@pytest.mark.slow
def test_a_branch_that_was_left_over_is_removed_by_the_next_run(grown: Path, send: Send, tmp_path: Path) -> None:
    other = f"ligo-convert-{'0' * 16}"
    with serve(faults=[Fault(method="DELETE", path="/branch/", kind="status", times=99)]) as hub:
        send(hub, {"directory": grown, "repo": REPO})
        repository = hub.repositories[REPO]
        assert len(repository.branches) == 2
        hub.faults = []
        repository.branches[other] = repository.branches["main"]
        done = cli(hub, tmp_path, "publish", str(grown), REPO, "--json")
        assert done.returncode == 0, done.stderr
        assert not json.loads(done.stdout)["changed"]
        assert set(repository.branches) == {"main", other}
        assert other in done.stderr


ANSWERS = {
    "a page": (Fault(method="GET", path="/api/", kind="page", body=b"<html>Log in</html>", times=99), 4, "does not come from a Hub"),
    "nothing": (Fault(method="GET", path="/refs", kind="page", body=b"{}", times=99), 4, "does not come from a Hub"),
    "a list": (Fault(method="GET", path="/api/models", kind="page", body=b"[]", times=99), 4, "does not come from a Hub"),
    "no storage left": (
        Fault(method="POST", path="/objects/batch", kind="status", status=403, message="Private storage limit\x1b[2J", times=99),
        8,
        "Private storage limit\\x1b[2J",
    ),
    "a bill": (Fault(method="POST", path="/objects/batch", kind="status", status=402, message="Pay", times=99), 8, "Pay"),
    "a bad token": (Fault(method="GET", path="/whoami", kind="status", status=401, times=99), 8, "token"),
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.slow
def test_an_answer_says_whose_fault_it_is(name: str, grown: Path, send: Send) -> None:
    given, code, text = ANSWERS[name]
    with serve() as hub:
        if name in ("nothing", "a list"):
            send(hub, {"directory": grown, "repo": REPO})
        hub.faults = [again(given)]
        (said,) = send(hub, {"directory": grown, "repo": REPO, "license": "mit"})
        assert hub.faults[0].was_met
        assert said["code"] == code, said
        assert text in said["text"]
        assert code != 8 or "goes on" not in said["text"]


def test_an_endpoint_that_is_no_address_is_said_to_be_none(grown: Path, send: Send) -> None:
    with serve() as hub:
        (said,) = send(hub, {"directory": grown, "repo": REPO}, HF_ENDPOINT="https://[bad")
        assert said["code"] == 5, said
        assert "HF_ENDPOINT" in said["text"]


# --- proposals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lost", [False, True], ids=["at once", "answer lost"])
@pytest.mark.slow
def test_a_proposal_is_one_pull_request_however_often_it_is_made(lost: bool, grown: Path, send: Send) -> None:
    theirs = loopback.one_commit({"README.md": b"x", "old.bin": b"y"}, commit="d" * 40)
    call = {"directory": grown, "repo": "somebody/theirs", "pull_request": True, "public": True}
    faults = [Fault(method="POST", path="/commit/main", kind="lost")] if lost else []
    with serve(repositories={"somebody/theirs": theirs}, faults=faults) as hub:
        said, second = send(hub, call, call)
        assert "error" not in said, said
        assert said["pull_request"].endswith("/discussions/1")
        assert len(hub.repositories["somebody/theirs"].pulls) == 1
        assert published(hub, "somebody/theirs", "refs/pr/1") == on_disk(grown)
        assert published(hub, "somebody/theirs") == {"README.md": b"x", "old.bin": b"y"}
        assert not second["changed"]
        assert said["removed"] == second["removed"] == ["old.bin"]
        assert second["commit"] == hub.repositories["somebody/theirs"].branches["refs/pr/1"]
        assert "old.bin" in hub.repositories["somebody/theirs"].log[said["commit"]].message
        missing, unsaid = send(hub, {**call, "repo": "somebody/nothing"}, {**call, "public": False})
        assert missing["code"] == 8
        assert unsaid["code"] == 8
        assert "--public" in unsaid["text"]


@pytest.mark.slow
def test_a_proposal_is_one_s_own_and_none_is_made_of_what_was_merged(grown: Path, send: Send) -> None:
    call = {"directory": grown, "repo": "somebody/theirs", "pull_request": True, "public": True}
    theirs = loopback.one_commit({"README.md": b"x"}, commit="d" * 40)
    with serve(repositories={"somebody/theirs": theirs}) as hub:
        digest = hashlib.sha256((grown / "ligo/SHA256SUMS").read_bytes()).hexdigest()
        theirs.pulls[1] = Pull(title=f"Grown gpt2, {digest[:16]}", author="somebody", base="d" * 40)
        theirs.branches["refs/pr/1"] = "d" * 40
        (said,) = send(hub, call)
        assert "error" not in said, said
        assert said["revision"] == "refs/pr/2"
        assert theirs.pulls[2].author == "me"
        theirs.branches["main"], theirs.pulls[2].status = theirs.branches["refs/pr/2"], "merged"
        (merged,) = send(hub, call)
        assert "error" not in merged, merged
        assert not merged["changed"]
        assert (merged["revision"], merged["commit"]) == ("main", theirs.branches["main"])
        assert merged["pull_request"] is None
        assert len(theirs.pulls) == 2


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


@pytest.mark.parametrize("kind", rest_slow(["transformers", "timm"], lambda kind: kind == "transformers"))
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


FETCHED = "import sys, huggingface_hub as hub; print(hub.snapshot_download(sys.argv[1]))"


@pytest.mark.slow
def test_a_copy_in_the_client_s_cache_verifies_as_it_lies_there(grown: Path, send: Send, tmp_path: Path) -> None:
    with serve() as hub:
        (said,) = send(hub, {"directory": grown, "repo": REPO})
        assert "error" not in said, said
        environment = hub.environment(tmp_path / "cache", PYTHONPATH=HERE, HF_TOKEN=TOKEN)
        fetched = subprocess.run(
            [sys.executable, "-c", FETCHED, REPO],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
        snapshot = Path(fetched.stdout.strip())
        assert (snapshot / "config.json").is_symlink()
        done = cli(hub, tmp_path, "verify", str(snapshot), "--json")
        assert done.returncode == 0, done.stderr
        # A link to anything but a blob of that cache is still none of the directory's files.
        (tmp_path / "elsewhere").write_bytes((snapshot / "config.json").read_bytes())
        (snapshot / "config.json").unlink()
        (snapshot / "config.json").symlink_to(tmp_path / "elsewhere")
        assert cli(hub, tmp_path, "verify", str(snapshot)).returncode == 7


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


def cli(hub: loopback.Hub, home: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ligo_convert", *arguments],
        env=hub.environment(home, **{"PYTHONPATH": HERE, "HF_TOKEN": TOKEN, **environment}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_the_command_shows_what_goes_and_a_dry_run_sends_nothing(grown: Path, tmp_path: Path) -> None:
    with serve() as hub:
        dry = cli(hub, tmp_path, "publish", str(grown), REPO, "--dry-run", "--json")
        assert dry.returncode == 0, dry.stderr
        said = json.loads(dry.stdout)
        assert {file["name"] for file in said["files"]} == set(on_disk(grown))
        assert (said["exists"], said["changed"], said["removed"], said["private"]) == (False, True, [], True)
        assert not hub.repositories
        assert all(request.startswith("GET") or "validate-yaml" in request for request in hub.requests)
        done = cli(hub, tmp_path, "publish", str(grown), REPO, "--public", "--tag", "v1")
        assert done.returncode == 0, done.stderr
        assert all(name in done.stderr for name in on_disk(grown))
        assert "everyone" in done.stdout
        assert TOKEN not in done.stdout + done.stderr
        assert not hub.repositories[REPO].closed
        logged = cli(hub, tmp_path, "publish", str(grown), REPO, "--public", "--log-format", "json")
        assert logged.returncode == 0, logged.stderr
        assert all(json.loads(line)["event"] for line in logged.stderr.splitlines())
        quiet = cli(hub, tmp_path, "publish", str(grown), REPO, "--public", "--quiet")
        assert (quiet.returncode, quiet.stderr) == (0, "")
        refused = cli(hub, tmp_path, "publish", str(grown), REPO, "--pr", "--tag", "v2")
        assert refused.returncode == 2


@pytest.mark.slow
def test_a_dry_run_says_what_would_be_refused_and_needs_nobody(grown: Path, tmp_path: Path) -> None:
    mine = {"README.md": b"x", "thesis.pdf": b"z"}
    arguments = ("publish", str(grown), REPO, "--dry-run", "--json")
    with serve(repositories={REPO: loopback.one_commit(mine, commit="c" * 40)}) as hub:
        hub.repositories[REPO].closed = True
        assert cli(hub, tmp_path, *arguments).returncode == 8
        listed = cli(hub, tmp_path, *arguments, "--replace")
        assert json.loads(listed.stdout)["removed"] == ["thesis.pdf"], listed.stderr
        hub.faults = [Fault(method="GET", path="/api/", kind="status", status=503, times=999)]
        for environment in ({}, {"HF_TOKEN": ""}, {"HF_HUB_OFFLINE": "1"}):
            alone = cli(hub, tmp_path, *arguments, **environment)
            assert alone.returncode == 0, alone.stderr
            assert json.loads(alone.stdout)["removed"] is None
            assert "asked" in alone.stderr


@pytest.mark.slow
def test_a_proposal_from_the_command(grown: Path, tmp_path: Path) -> None:
    theirs = loopback.one_commit({"README.md": b"x", "old.bin": b"y"}, commit="d" * 40)
    arguments = ("publish", str(grown), "somebody/theirs", "--pr", "--public")
    with serve(repositories={"somebody/theirs": theirs}) as hub:
        dry = cli(hub, tmp_path, *arguments, "--dry-run", "--json")
        said = json.loads(dry.stdout)
        assert said["revision"] is None  # it has no number yet, and is not main
        assert said["removed"] == ["old.bin"]
        assert not theirs.pulls
        done = cli(hub, tmp_path, *arguments)
        assert done.returncode == 0, done.stderr
        assert "/somebody/theirs/discussions/1" in done.stdout
        assert "old.bin" in done.stdout
        assert published(hub, "somebody/theirs", "refs/pr/1") == on_disk(grown)
        assert published(hub, "somebody/theirs") == {"README.md": b"x", "old.bin": b"y"}
        dry = cli(hub, tmp_path, *arguments, "--dry-run", "--json")
        assert json.loads(dry.stdout)["revision"] == "refs/pr/1"


@pytest.mark.slow
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


def test_a_fresh_conversion_is_published(tmp_path: Path) -> None:
    grow(tmp_path, card="---\nlicense: mit\n---\n# a\n")
    shutil.rmtree(tmp_path / "out")
    recipe = json.loads((tmp_path / "recipe.yaml").read_text())
    (tmp_path / "recipe.yaml").write_text(json.dumps({**recipe, "publish": {"repo": "team/grown"}}))
    with serve() as hub:
        done = cli(hub, tmp_path, "run", str(tmp_path / "recipe.yaml"), "--json")
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert said["changed"]
        assert said["published"]["changed"]
        assert published(hub, "team/grown") == on_disk(tmp_path / "out")


@pytest.mark.slow
def test_what_is_known_to_be_refused_is_refused_before_any_work(tmp_path: Path) -> None:
    grow(tmp_path)
    shutil.rmtree(tmp_path / "out")
    recipe = json.loads((tmp_path / "recipe.yaml").read_text())
    theirs = loopback.one_commit({"README.md": b"x"}, commit="d" * 40)
    full = loopback.one_commit({"thesis.pdf": b"x"}, commit="d" * 40)
    cases: tuple[tuple[dict[str, object], dict[str, str], str], ...] = (
        ({"repo": "nobody/grown"}, {}, "cannot create it"),
        ({"repo": "somebody/theirs"}, {}, "--public"),
        ({"repo": "somebody/theirs", "public": True}, {}, "let this account"),
        ({"repo": "team/full", "public": True}, {}, "thesis.pdf"),
        ({"repo": REPO, "license": "no-such-licence"}, {}, "known licences"),
        ({"repo": REPO}, {"HF_TOKEN": "hf_" + "c" * 30}, "token"),
    )
    with serve(repositories={"somebody/theirs": theirs, "team/full": full}) as hub:
        for section, environment, text in cases:
            (tmp_path / "recipe.yaml").write_text(json.dumps({**recipe, "publish": {"license": "mit", **section}}))
            refused = cli(hub, tmp_path, "run", str(tmp_path / "recipe.yaml"), **environment)
            assert refused.returncode == 8, (section, refused.stderr)
            assert text in refused.stderr
            assert not (tmp_path / "out").exists()
        assert set(hub.repositories) == {"somebody/theirs", "team/full"}
        # That the Hub is not there now says nothing about when the work is done.
        (tmp_path / "recipe.yaml").write_text(json.dumps({**recipe, "publish": {"license": "mit", "repo": REPO}}))
        hub.faults = [Fault(method="GET", path="/api/", kind="status", status=501, times=99)]
        unreached = cli(hub, tmp_path, "run", str(tmp_path / "recipe.yaml"))
        assert unreached.returncode == 4, unreached.stderr
        assert "beforehand" in unreached.stderr
        assert (tmp_path / "out").is_dir()


@pytest.mark.slow
def test_every_entry_of_a_batch_is_published(tmp_path: Path) -> None:
    grow(tmp_path, card="---\nlicense: mit\n---\n# a\n")
    entries = [{"name": name, "recipe": "recipe.yaml"} for name in ("one", "two")]
    manifest = {"version": 1, "out": str(tmp_path / "zoo"), "publish": {"repo": "team/{name}"}, "entries": entries}
    (tmp_path / "zoo.yaml").write_text(json.dumps(manifest))
    with serve() as hub:
        done = cli(hub, tmp_path, "batch", str(tmp_path / "zoo.yaml"), "--json")
        assert done.returncode == 0, done.stderr
        for name in ("one", "two"):
            assert published(hub, f"team/{name}") == on_disk(tmp_path / "zoo" / name)


# --- licences ---------------------------------------------------------------------------------------------------------


def test_a_licence_is_inherited_where_it_lets_others_share_and_else_stated() -> None:
    assert license_to_publish(stated=None, inherited="MIT", where="x") == "mit"
    assert license_to_publish(stated="Llama3", inherited="mit", where="x") == "llama3"
    for inherited in (None, "other", "cc-by-nc-4.0", "llama3", "openrail", "openrail++", "bigscience-openrail-m"):
        assert inherited not in PERMISSIVE
        with pytest.raises(PublishRefused):
            license_to_publish(stated=None, inherited=inherited, where="x")
    with pytest.raises(PublishRefused, match="license_name"):
        license_to_publish(stated=None, inherited="other", where="x")
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


def test_the_bars_of_the_library_are_off_for_a_request_alone() -> None:
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from huggingface_hub.utils.tqdm import HF_HUB_DISABLE_PROGRESS_BARS

    from ligo_convert.outputs.hub_repo import HubRepo
    from ligo_convert.progress import Progress

    if HF_HUB_DISABLE_PROGRESS_BARS is True:
        pytest.skip("HF_HUB_DISABLE_PROGRESS_BARS is set, and the library then refuses to turn its bars on")
    repository = HubRepo("org/name", Progress(), retry=False)
    for choose, off in ((enable_progress_bars, False), (disable_progress_bars, True)):
        choose()
        assert repository._request(are_progress_bars_disabled) is True
        assert are_progress_bars_disabled() is off
    enable_progress_bars()
