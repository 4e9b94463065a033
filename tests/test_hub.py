"""The Hub: what is asked is pinned, checked and kept; the client is the real one, the Hub is on the loopback interface."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import loopback
import numpy as np
import pytest
from checkpoints import CONFIG, FIRST, HERE, SECOND, TENSORS, Tree, checkpoint, sharded
from safetensors.numpy import save

# Opens a source in a child, whose environment names the Hub, and says what came of it on one line of JSON.
CHILD = """
import json, sys
from pathlib import Path
from ligo_convert.errors import LigoError
from ligo_convert.source import open_source
model, revision, weights, base = sys.argv[1:]
said = {}
try:
    with open_source(model, revision=revision, base=Path(base), weights=weights == "weights") as source:
        said |= {"revision": source.revision, "label": source.label, "license": source.license}
        said |= {"tensors": {name: list(one.spec.shape) for name, one in source.tensors.items()}}
        said |= {"warnings": source.warnings, "config": source.config, "tokenizer": source.tokenizer_files}
        if weights == "weights":
            said["digests"] = source.digest()
            said["bytes"] = {name: source.read(name).hex() for name in source.tensors}
            source.recheck()
except LigoError as error:
    said |= {"error": type(error).__name__, "text": str(error), "code": error.exit_code}
print(json.dumps(said))
"""
ID = "org/small"
COMMIT = "a" * 40


def ask(
    hub: loopback.Hub, home: Path, model: str = ID, revision: str = "main", *, weights: bool = True, **environment: str
) -> dict[str, object]:
    return child(hub, home, CHILD, model, revision, "weights" if weights else "plan", str(home), **environment)


def child(hub: loopback.Hub, home: Path, program: str, *arguments: str, **environment: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, *arguments],
        env=hub.environment(home, PYTHONPATH=HERE, **environment),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said: dict[str, object] = json.loads(done.stdout)
    return said


def fails(said: dict[str, object], error: str, *words: str) -> None:
    assert said.get("error") == error, said
    for word in words:
        assert word in str(said["text"]), said["text"]
    assert "http" not in str(said["text"]).replace("https", "")


def shapes() -> dict[str, list[int]]:
    return {name: list(array.shape) for name, array in TENSORS.items()}


@pytest.mark.parametrize("tree", [checkpoint(), sharded()], ids=["single", "sharded"])
def test_a_branch_of_the_hub_is_pinned_fetched_and_checked(tmp_path: Path, tree: Tree) -> None:
    junk = {"pytorch_model.bin": b"\x80\x04.", "flax_model.msgpack": b"x", "evil.py": b"raise SystemExit(1)"}
    with loopback.serve({ID: loopback.one_commit(tree | junk)}) as hub:
        said = ask(hub, tmp_path / "home", HF_TOKEN="hf_secret_of_this_test")
        assert "error" not in said, said
        assert (said["revision"], said["label"], said["license"]) == (COMMIT, ID, "mit")
        assert (said["config"], said["tokenizer"], said["warnings"]) == (CONFIG, ["tokenizer.json"], [])
        assert said["tensors"] == shapes()
        assert said["bytes"] == {name: array.tobytes().hex() for name, array in TENSORS.items()}
        assert said["digests"] == {name: hashlib.sha256(tree[name]).hexdigest() for name in tree if name != "README.md"}
        assert not set(junk) & set(hub.served)  # only what is needed
        assert not any("/resolve/main/" in request for request in hub.requests)  # pinned to the commit
        before = dict(hub.served)
        assert ask(hub, tmp_path / "home") == said
        assert {name: hub.served[name] for name in tree} == {name: before[name] for name in tree}  # from the cache
        assert ask(hub, tmp_path / "home", revision=COMMIT) == said
    assert "hf_secret_of_this_test" not in json.dumps(said)


def big() -> Tree:
    return checkpoint(model__safetensors=save({"wte.weight": np.zeros((1 << 20, 2), np.float32)}))


@pytest.mark.parametrize("ignores_ranges", [False, True])
def test_planning_reads_headers_and_no_weights(tmp_path: Path, ignores_ranges: bool) -> None:
    tree = big()
    repository = loopback.one_commit(tree)
    repository.ignores_ranges = ignores_ranges
    with loopback.serve({ID: repository}) as hub:
        said = ask(hub, tmp_path / "home", weights=False)
        assert said.get("tensors") == {"wte.weight": [1 << 20, 2]}, said
        assert said["revision"] == COMMIT
        # A server that ignores the range fills the socket's buffers before it notices that nobody reads on.
        assert hub.served["model.safetensors"] <= (
            len(tree["model.safetensors"]) - (1 << 20) if ignores_ranges else 1 << 16
        )
        assert not list((tmp_path / "home").rglob("model.safetensors"))
        assert ask(hub, tmp_path / "home")["tensors"] == said["tensors"]
        before = hub.served["model.safetensors"]
        assert ask(hub, tmp_path / "home", weights=False)["tensors"] == said["tensors"]  # now from the cache
        assert hub.served["model.safetensors"] == before


def test_planning_over_shards_and_long_headers(tmp_path: Path) -> None:
    many = {f"layer.{number}.weight": np.full(1, number, np.float32) for number in range(2000)}
    tree = checkpoint(model__safetensors=None)
    tree |= {FIRST: save(many), SECOND: save({"last": np.zeros(3)})}
    index = {"weight_map": dict.fromkeys(many, FIRST) | {"last": SECOND}}
    tree["model.safetensors.index.json"] = json.dumps(index).encode()
    assert int.from_bytes(tree[FIRST][:8], "little") > 1 << 16
    with loopback.serve({ID: loopback.one_commit(tree)}) as hub:
        said = ask(hub, tmp_path / "home", weights=False)
    assert said["tensors"] == {name: [1] for name in many} | {"last": [3]}


def test_planning_refuses_a_bad_header_without_a_download(tmp_path: Path) -> None:
    bad = checkpoint(model__safetensors=b"\x80\x04" + bytes(500_000))
    with loopback.serve({ID: loopback.one_commit(bad)}) as hub:
        fails(ask(hub, tmp_path / "home", weights=False), "SourceError", f"{ID}/model.safetensors", "Python pickle")
        assert hub.served["model.safetensors"] <= 1 << 16


def test_a_flipped_bit_on_the_way_is_found(tmp_path: Path) -> None:
    for name in ("model.safetensors", "tokenizer.json"):
        repository = loopback.one_commit(checkpoint())
        repository.damaged = frozenset({name})
        with loopback.serve({ID: repository}) as hub:
            said = ask(hub, tmp_path / name)
        data = checkpoint()[name]
        digest = hashlib.sha256(data).hexdigest() if loopback.is_large(name) else loopback.git_blob(data)
        fails(said, "SourceChanged", f"{ID}/{name}: the file is not the one on the Hub", digest)


def test_a_side_file_that_is_too_large_is_not_downloaded(tmp_path: Path) -> None:
    for name, size in (("config.json", 5 << 20), ("generation_config.json", 5 << 20)):
        tree = checkpoint() | {name: b" " * size}
        with loopback.serve({ID: loopback.one_commit(tree)}) as hub:
            said = ask(hub, tmp_path / name, weights=False)
            fails(said, "SourceError", f"{ID}/{name}: the file is too large", f"{size} bytes")
            assert name not in hub.served


def test_a_moved_branch_gives_the_new_commit(tmp_path: Path) -> None:
    repository = loopback.one_commit(checkpoint())
    repository.commits["b" * 40] = checkpoint(config__json=b'{"model_type": "bert"}')
    with loopback.serve({ID: repository}) as hub:
        assert ask(hub, tmp_path / "home")["revision"] == COMMIT
        repository.branches["main"] = "b" * 40
        said = ask(hub, tmp_path / "home")
        assert (said["revision"], said["config"]) == ("b" * 40, {"model_type": "bert"})
        assert ask(hub, tmp_path / "home", revision=COMMIT)["config"] == CONFIG


def test_what_the_hub_refuses_is_one_clear_line(tmp_path: Path) -> None:
    repositories = {
        ID: loopback.one_commit(checkpoint()),
        "org/gated": loopback.one_commit(checkpoint()),
        "org/private": loopback.one_commit(checkpoint()),
        "org/down": loopback.one_commit(checkpoint()),
        "org/forbidden": loopback.one_commit(checkpoint()),
        "org/pickle": loopback.one_commit(checkpoint(model__safetensors=None) | {"pytorch_model.bin": b"x"}),
    }
    repositories["org/gated"].gated = True
    repositories["org/private"].private = True
    repositories["org/down"].status = 500
    repositories["org/forbidden"].status = 403
    home = tmp_path / "home"
    with loopback.serve(repositories) as hub:
        fails(
            ask(hub, home, "org/nothing"),
            "SourceChanged",
            "org/nothing: no such repository on the Hub, or it is private",
        )
        fails(ask(hub, home, "org/private"), "SourceChanged", "no such repository", "hf auth login")
        fails(ask(hub, home, "org/gated"), "SourceChanged", "org/gated: the repository is gated", "hf auth login")
        fails(ask(hub, home, "org/gated", HF_TOKEN="hf_x"), "SourceChanged", "the repository is gated")
        fails(ask(hub, home, revision="v9"), "SourceChanged", f"{ID}: no such revision", "v9")
        fails(ask(hub, home, revision="c" * 40), "SourceChanged", "no such revision", "c" * 40)
        fails(ask(hub, home, "org/down"), "SourceChanged", "org/down: the Hub cannot be reached")
        fails(ask(hub, home, "org/forbidden"), "SourceChanged", "the Hub refuses access", "HTTP status 403")
        fails(ask(hub, home, "org/pickle"), "SourceError", "org/pickle: no safetensors weights, only pytorch_model.bin")
        fails(ask(hub, home, HF_ENDPOINT="http://hub.example"), "MachineError", "HF_ENDPOINT", "not https")


def test_the_cache_serves_where_the_hub_is_out_of_reach(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with loopback.serve({ID: loopback.one_commit(sharded())}) as hub:
        nothing = ask(hub, home, HF_HUB_OFFLINE="1")
        fails(nothing, "SourceChanged", f"{ID}: the Hub cannot be reached", "HF_HUB_OFFLINE", "cache does not hold")
        assert hub.requests == []
        planned = ask(hub, home, weights=False)
        partial = ask(hub, home, weights=False, HF_HUB_OFFLINE="1")
        fails(partial, "SourceChanged", f"{ID}/{FIRST}: the file is not in the cache", "hf download")
        fails(ask(hub, home, HF_HUB_OFFLINE="1"), "SourceChanged", "cache does not hold")
        online = ask(hub, home)
        count = len(hub.requests)
        offline = ask(hub, home, HF_HUB_OFFLINE="1")
        assert offline == online
        assert ask(hub, home, revision=COMMIT, HF_HUB_OFFLINE="1") == online
        assert ask(hub, home, weights=False, HF_HUB_OFFLINE="1")["tensors"] == planned["tensors"]
        assert len(hub.requests) == count
        fails(ask(hub, home, revision="v9", HF_HUB_OFFLINE="1"), "SourceChanged", "cache does not hold", "v9")
    unreached = ask(hub, home)  # the server is gone
    assert unreached["digests"] == online["digests"]
    assert unreached["warnings"] == [f"{ID}: the Hub could not be reached; commit {COMMIT} is read from the cache"]
    fails(ask(hub, home, "org/other"), "SourceChanged", "org/other: the Hub cannot be reached")


def test_a_damaged_cache_is_found_without_the_hub(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with loopback.serve({ID: loopback.one_commit(checkpoint())}) as hub:
        ask(hub, home)
        blob = next(home.rglob("model.safetensors")).resolve()
        data = bytearray(blob.read_bytes())
        data[-1] ^= 1
        blob.chmod(0o644)
        blob.write_bytes(data)
        fails(ask(hub, home, HF_HUB_OFFLINE="1"), "SourceChanged", f"{ID}/model.safetensors: the file is not the one")
        fails(ask(hub, home), "SourceChanged", f"{ID}/model.safetensors", f"hf download {ID} model.safetensors")


def test_a_token_goes_to_the_endpoint_alone(tmp_path: Path) -> None:
    with loopback.serve({ID: loopback.one_commit(checkpoint())}) as hub:
        ask(hub, tmp_path / "home", weights=False, HF_TOKEN="hf_secret_of_this_test")
        assert set(hub.tokens) == {"Bearer hf_secret_of_this_test"}


# Fetches a tokenizer in a child, and says on one line of JSON where it is, with what, and what came of it.
TOKENIZER_CHILD = """
import json, sys
from pathlib import Path
from ligo_convert.errors import LigoError
from ligo_convert.hub import fetch_tokenizer
said = {}
try:
    folder = fetch_tokenizer(sys.argv[1], revision=sys.argv[2])
    said |= {"commit": folder.name, "files": {path.name: path.read_text() for path in folder.iterdir()}}
except LigoError as error:
    said |= {"error": type(error).__name__, "text": str(error), "code": error.exit_code}
print(json.dumps(said))
"""


def ask_tokenizer(
    hub: loopback.Hub, home: Path, model: str = ID, revision: str = "main", **environment: str
) -> dict[str, object]:
    return child(hub, home, TOKENIZER_CHILD, model, revision, **environment)


TOKENIZER: Tree = {"config.json": b"{}", "vocab.json": b'{"a": 0}', "merges.txt": b"#version\n"}


def test_a_tokenizer_is_fetched_alone_from_a_pinned_commit(tmp_path: Path) -> None:
    more = {"model.safetensors": b"x", "tokenizer.py": b"raise SystemExit", "deep/vocab.json": b"{}", "README.md": b"#"}
    repository = loopback.one_commit(TOKENIZER | more)
    with loopback.serve({ID: repository}) as hub:
        said = ask_tokenizer(hub, tmp_path / "home")
        texts = {name: data.decode() for name, data in TOKENIZER.items()}
        assert said == {"commit": COMMIT, "files": texts}
        assert not set(more) & set(hub.served)
        assert not any("/resolve/main/" in request for request in hub.requests)
        repository.commits["b" * 40] = {"tokenizer.json": b"{}"}
        repository.branches["v2"] = "b" * 40
        later = ask_tokenizer(hub, tmp_path / "home", revision="v2")
        assert later == {"commit": "b" * 40, "files": {"tokenizer.json": "{}"}}  # a config is not needed
        count = len(hub.requests)
        assert ask_tokenizer(hub, tmp_path / "home", HF_HUB_OFFLINE="1") == said
        assert ask_tokenizer(hub, tmp_path / "home", revision=COMMIT, HF_HUB_OFFLINE="1") == said
        assert ask_tokenizer(hub, tmp_path / "home", revision="v2", HF_HUB_OFFLINE="1") == later
        assert len(hub.requests) == count
    assert ask_tokenizer(hub, tmp_path / "home") == said  # the server is gone


def test_what_is_wrong_with_a_tokenizer_of_the_hub_is_one_clear_line(tmp_path: Path) -> None:
    repositories = {
        ID: loopback.one_commit(checkpoint()),
        "org/none": loopback.one_commit(checkpoint(tokenizer__json=None)),
        "org/gated": loopback.one_commit(TOKENIZER),
        "org/damaged": loopback.one_commit(TOKENIZER),
        "org/large": loopback.one_commit(TOKENIZER | {"config.json": b" " * (5 << 20)}),
    }
    repositories["org/gated"].gated = True
    repositories["org/damaged"].damaged = frozenset({"merges.txt"})
    home = tmp_path / "home"
    with loopback.serve(repositories) as hub:
        fails(ask_tokenizer(hub, home, "org/none"), "RecipeError", f"org/none at {COMMIT}: no tokenizer there")
        fails(ask_tokenizer(hub, home, "org/gated"), "SourceChanged", "org/gated: the repository is gated")
        fails(
            ask_tokenizer(hub, home, "org/damaged"), "SourceChanged", "org/damaged/merges.txt: the file is not the one"
        )
        fails(ask_tokenizer(hub, home, "org/large"), "SourceError", "org/large/config.json: the file is too large")
        fails(ask_tokenizer(hub, home, "org/nothing"), "SourceChanged", "org/nothing: no such repository on the Hub")
        fails(ask_tokenizer(hub, home, revision="v9"), "SourceChanged", f"{ID}: no such revision", "v9")
        fails(ask_tokenizer(hub, home, "../up"), "SourceError", "../up: no such directory, and no id of the Hub")
        fails(ask_tokenizer(hub, home, revision="../x"), "RecipeError", f"{ID}: not a branch, tag or commit")
        fails(ask_tokenizer(hub, home, HF_ENDPOINT="http://hub.example"), "MachineError", "HF_ENDPOINT", "not https")
        fails(ask_tokenizer(hub, home, HF_HUB_OFFLINE="1"), "SourceChanged", f"{ID}: the Hub cannot be reached")


def test_a_tokenizer_that_is_cached_in_part_is_not_taken_for_whole(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with loopback.serve({ID: loopback.one_commit(TOKENIZER)}) as hub:
        ask_tokenizer(hub, home)
        for path in home.rglob("merges.txt"):
            path.unlink()
        fails(ask_tokenizer(hub, home, HF_HUB_OFFLINE="1"), "SourceChanged", ID, "cache does not hold")
        for path in home.rglob("vocab.json"):
            path.unlink()
        fails(
            ask_tokenizer(hub, home, HF_HUB_OFFLINE="1"),
            "SourceChanged",
            f"{ID} at {COMMIT}: the tokenizer is not in the cache",
            "hf download",
        )
        assert "error" not in ask_tokenizer(hub, home)


@pytest.mark.parametrize(
    ("fault", "comes"),
    [
        (loopback.Fault(method="GET", path="/resolve/.*safetensors", kind="status", times=2), True),
        (loopback.Fault(method="GET", path="/resolve/.*safetensors", kind="slow", seconds=1.5), True),
        (loopback.Fault(method="GET", path="/resolve/.*safetensors", kind="cut"), True),
        (loopback.Fault(method="GET", path="/resolve/.*safetensors", kind="corrupt"), False),
    ],
    ids=["busy", "slow", "cut", "corrupt"],
)
def test_a_hub_that_fails_for_the_moment_is_asked_again_and_what_it_damages_is_found(
    fault: loopback.Fault, comes: bool, tmp_path: Path
) -> None:
    tree = checkpoint()
    with loopback.serve({ID: loopback.one_commit(tree)}, faults=[fault]) as hub:
        said = ask(hub, tmp_path / "home")
        assert fault.seen, "the fault was never met"
        if comes:
            assert "error" not in said, said
            assert said["digests"] == {n: hashlib.sha256(tree[n]).hexdigest() for n in tree if n != "README.md"}
        else:
            fails(said, "SourceChanged", "model.safetensors", "hf download")
