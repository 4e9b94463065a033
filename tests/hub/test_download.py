"""The Hub: what is asked is pinned, checked and kept; the client is the real one, the Hub is on the loopback interface."""

from __future__ import annotations

import hashlib
import http.client
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import numpy as np
import pytest
from safetensors.numpy import save
from support.checkpoints import CONFIG, FIRST, HERE, SECOND, TENSORS, Tree, checkpoint, sharded
from support.loopback import server as loopback
from support.loopback import state as loopback_state
from support.source_models import DEEPER, write_checkpoint

# The delays before further tries are cut: how long they are is no law.
BRIEFLY = "from ligo_convert.hub import client as hub; hub.DELAYS = (0.01,) * len(hub.DELAYS)"
# Opens a source in a child, whose environment names the Hub, and says what came of it on one line of JSON.
CHILD = f"""
{BRIEFLY}
import json, sys
from pathlib import Path
from ligo_convert.errors import LigoError
from ligo_convert.hub.resolve import open_source
"""
CHILD += """
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


@dataclass
class Beside:
    """A server beside the Hub: its address, what it was asked, and the files that it gives."""

    address: str
    asked: list[Any] = field(default_factory=list)
    files: Tree = field(default_factory=dict)


class Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    beside: Beside

    def log_message(self, format: str, *args: object) -> None:
        pass

    def give(self, status: int, data: bytes, headers: Iterable[tuple[str, str]] = ()) -> None:
        self.send_response(status)
        for key, value in {**dict(headers), "Content-Length": str(len(data))}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data if self.command != "HEAD" else b"")


class Store(Quiet):
    """Gives bodies of files, as the storage that a Hub redirects to, and notes the headers it was asked with."""

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        self.beside.asked.append((name, {key.lower(): value for key, value in self.headers.items()}))
        data = self.beside.files[name]
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            self.give(200, data)
        else:
            begin, end = int(wanted[1]), min(int(wanted[2] or len(data)) + 1, len(data))
            self.give(206, data[begin:end], [("Content-Range", f"bytes {begin}-{end - 1}/{len(data)}")])


class Proxy(Quiet):
    """Forwards what is asked of servers on the loopback interface, and opens no tunnel."""

    def do_GET(self) -> None:
        self.beside.asked.append(f"{self.command} {self.path}")
        target = urlsplit(self.path)
        assert target.hostname == "127.0.0.1"
        link = http.client.HTTPConnection(target.hostname, target.port or 80, timeout=10)
        headers = {key: value for key, value in self.headers.items() if not key.lower().startswith("proxy-")}
        link.request(self.command, urlunsplit(("", "", target.path, target.query, "")), headers=headers)
        answer = link.getresponse()
        size = answer.getheader("Content-Length") or "0"
        self.send_response(answer.status)
        for key, value in answer.getheaders():
            if key.lower() not in ("connection", "content-length"):
                self.send_header(key, value)
        self.send_header("Content-Length", size)
        self.end_headers()
        self.wfile.write(answer.read())
        link.close()

    do_HEAD = do_GET

    def do_CONNECT(self) -> None:
        self.beside.asked.append(f"{self.command} {self.path}")
        self.give(502, b"")
        self.close_connection = True


@contextmanager
def beside(handler: type[Quiet]) -> Iterator[Beside]:
    """Run a server while the block lasts."""
    bound = type(handler.__name__, (handler,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), bound) as server:
        server.daemon_threads = True
        there = Beside(address=f"http://127.0.0.1:{server.server_address[1]}")
        bound.beside = there  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield there
        finally:
            server.shutdown()
            thread.join()
            # Connections that clients keep for later would be waited for.
            server.block_on_close = False


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


@pytest.mark.slow
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
        down = ask(hub, home, "org/down")
        fails(down, "HubUnreachable", "org/down: the Hub answered with an error", "cache does not have", "status 500")
        assert "HF_HUB_OFFLINE" not in str(down["text"])
        fails(ask(hub, home, "org/forbidden"), "SourceChanged", "the Hub refuses access", "HTTP status 403")
        fails(
            ask(hub, home, "org/pickle"),
            "SourceError",
            "org/pickle: no safetensors weights that can be read, only pickled weights",
        )
        fails(ask(hub, home, HF_ENDPOINT="http://hub.example"), "MachineError", "HF_ENDPOINT", "not https")


@pytest.mark.slow
def test_the_cache_serves_where_the_hub_is_out_of_reach(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with loopback.serve({ID: loopback.one_commit(sharded())}) as hub:
        nothing = ask(hub, home, HF_HUB_OFFLINE="1")
        fails(nothing, "SourceChanged", f"{ID}: the Hub is switched off by HF_HUB_OFFLINE", "cache does not have")
        assert hub.requests == []
        planned = ask(hub, home, weights=False)
        partial = ask(hub, home, weights=False, HF_HUB_OFFLINE="1")
        fails(partial, "SourceChanged", f"{ID}/{FIRST}: the file is not in the cache", "hf download")
        fails(ask(hub, home, HF_HUB_OFFLINE="1"), "SourceChanged", "cache does not have")
        online = ask(hub, home)
        count = len(hub.requests)
        offline = ask(hub, home, HF_HUB_OFFLINE="1")
        assert offline == online
        assert ask(hub, home, revision=COMMIT, HF_HUB_OFFLINE="1") == online
        assert ask(hub, home, weights=False, HF_HUB_OFFLINE="1")["tensors"] == planned["tensors"]
        assert len(hub.requests) == count
        fails(ask(hub, home, revision="v9", HF_HUB_OFFLINE="1"), "SourceChanged", "cache does not have", "v9")
    unreached = ask(hub, home)  # the server is gone
    assert unreached["digests"] == online["digests"]
    said = f"{ID}: the Hub cannot be reached (ConnectError); reading commit {COMMIT} from the cache"
    assert unreached["warnings"] == [said]
    fails(ask(hub, home, "org/other"), "HubUnreachable", "org/other: the Hub cannot be reached", "cache does not have")


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


def test_a_small_file_that_is_damaged_in_the_cache_is_found_without_the_hub(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with loopback.serve({ID: loopback.one_commit(checkpoint())}) as hub:
        assert "error" not in ask(hub, home)
    assert "error" not in ask(hub, home, HF_HUB_OFFLINE="1")
    blob = next(home.rglob("tokenizer.json")).resolve()
    blob.chmod(0o644)
    blob.write_bytes(loopback_state.turned(blob.read_bytes()))
    name = loopback.git_blob(checkpoint()["tokenizer.json"])
    assert blob.name == name
    fails(ask(hub, home, HF_HUB_OFFLINE="1"), "SourceChanged", f"{ID}/tokenizer.json: the file is not the one", name)


@pytest.mark.parametrize("refused", ["org/gated", "org/nothing", "org/forbidden"])
def test_what_is_no_matter_of_the_moment_is_asked_once(tmp_path: Path, refused: str) -> None:
    repositories = {name: loopback.one_commit(checkpoint()) for name in ("org/gated", "org/forbidden")}
    repositories["org/gated"].gated = True
    repositories["org/forbidden"].status = 403
    with loopback.serve(repositories) as hub:
        assert ask(hub, tmp_path / "home", refused)["error"] == "SourceChanged"
        assert len(hub.requests) == len(set(hub.requests))


REVISION, TREE = "/revision/main", "/tree/"


@pytest.mark.parametrize("path", [REVISION, TREE])
@pytest.mark.parametrize(
    "fault",
    [
        {"kind": "status", "status": 503},
        {"kind": "status", "status": 429},
        {"kind": "status", "status": 502, "times": 3},
        {"kind": "cut", "after": 0},
    ],
    ids=["503", "429", "502 thrice", "cut"],
)
@pytest.mark.slow
def test_a_source_is_opened_though_the_hub_fails_for_the_moment(
    tmp_path: Path, path: str, fault: dict[str, Any]
) -> None:
    met = loopback.Fault(method="GET", path=path, **fault)
    with loopback.serve({ID: loopback.one_commit(checkpoint())}, faults=[met]) as hub:
        said = ask(hub, tmp_path / "home", weights=False)
        assert met.seen > met.times
        assert (said.get("revision"), said.get("warnings")) == (COMMIT, []), said
        # What the first good answer says is not asked for again.
        assert sum(REVISION in request for request in hub.requests) == 1 + (met.times if path == REVISION else 0)


@pytest.mark.parametrize("kind", ["status", "cut"])
def test_a_hub_that_fails_once_does_not_bring_an_older_commit(tmp_path: Path, kind: str) -> None:
    repository = loopback.one_commit(checkpoint())
    repository.commits["b" * 40] = checkpoint(config__json=b'{"model_type": "bert"}')
    with loopback.serve({ID: repository}) as hub:
        ask(hub, tmp_path / "home")
        repository.branches["main"] = "b" * 40
        hub.faults = [loopback.Fault(method="GET", path=REVISION, kind=kind, after=0)]
        said = ask(hub, tmp_path / "home")
        assert (said["revision"], said["warnings"]) == ("b" * 40, [])
        assert ask(hub, tmp_path / "home", HF_HUB_OFFLINE="1")["revision"] == "b" * 40
        # One that goes on failing does, and it is said.
        repository.branches["main"] = COMMIT
        hub.faults = [loopback.Fault(method="GET", path=REVISION, kind=kind, after=0, times=99)]
        said = ask(hub, tmp_path / "home")
        assert said["revision"] == "b" * 40
        assert "from the cache" in str(said["warnings"])


def test_a_cache_that_takes_no_note_of_a_revision_is_no_reason_to_stop(tmp_path: Path) -> None:
    home = tmp_path / "home"
    notes = home / "hub" / f"models--{ID.replace('/', '--')}" / "refs"
    notes.parent.mkdir(parents=True)
    notes.write_text("in the way of a folder")
    with loopback.serve({ID: loopback.one_commit(checkpoint())}) as hub:
        assert ask(hub, home).get("revision") == COMMIT


@pytest.mark.parametrize("weights", [True, False], ids=["download", "headers"])
def test_a_token_goes_to_the_endpoint_alone(tmp_path: Path, weights: bool) -> None:
    token = "hf_secret_of_this_test"
    with loopback.serve({ID: loopback.one_commit(checkpoint())}) as hub, beside(Store) as store:
        hub.bodies, store.files = store.address, checkpoint()
        said = ask(hub, tmp_path / "home", weights=weights, HF_TOKEN=token)
        assert said.get("revision") == COMMIT, said
        assert set(hub.tokens) == {f"Bearer {token}"}
        assert {"config.json", "tokenizer.json", "model.safetensors"} <= {name for name, _ in store.asked}
        for name, headers in store.asked:
            assert "authorization" not in headers, name
            assert token not in json.dumps(headers), name


def test_proxies_are_used_as_the_environment_says(tmp_path: Path) -> None:
    with loopback.serve({ID: loopback.one_commit(checkpoint())}) as hub, beside(Proxy) as proxy:

        def asked(name: str, **environment: str) -> int:
            before = len(proxy.asked)
            said = ask(hub, tmp_path / name, weights=False, **environment)
            assert (said.get("revision"), said.get("warnings")) == (COMMIT, []), said
            return len(proxy.asked) - before

        assert asked("exempt", HTTP_PROXY=proxy.address, NO_PROXY="127.0.0.1") == 0
        count = len(hub.requests)
        assert asked("plain", HTTP_PROXY=proxy.address, NO_PROXY="") == len(hub.requests) - count > 0
        assert asked("all", ALL_PROXY=proxy.address, NO_PROXY="") > 0
        # This Hub is spoken to without TLS: the proxy for what is spoken to with it is not asked.
        assert asked("secure", HTTPS_PROXY=proxy.address, NO_PROXY="") == 0
        secure = {"HTTPS_PROXY": proxy.address, "NO_PROXY": "", "HF_ENDPOINT": "https://hub.example"}
        fails(ask(hub, tmp_path / "tunnel", **secure), "HubUnreachable", "the Hub cannot be reached", "proxy settings")
        assert proxy.asked[-1] == "CONNECT hub.example:443"


def test_a_proxy_that_is_not_there_is_said_to_be_a_matter_of_the_network(tmp_path: Path) -> None:
    with loopback.serve({ID: loopback.one_commit(checkpoint())}) as hub:
        said = ask(hub, tmp_path / "home", HTTP_PROXY="http://127.0.0.1:9", NO_PROXY="")
        fails(said, "HubUnreachable", f"{ID}: the Hub cannot be reached", "proxy settings")
        assert hub.requests == []


# Fetches a tokenizer in a child, and says on one line of JSON where it is, with what, and what came of it.
TOKENIZER_CHILD = f"""
{BRIEFLY}
import json, sys
from pathlib import Path
from ligo_convert.errors import LigoError
from ligo_convert.hub.download import fetch_tokenizer
"""
TOKENIZER_CHILD += """
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
        fails(
            ask_tokenizer(hub, home, "org/none"),
            "RecipeError",
            f"org/none at {COMMIT}: the repository has no tokenizer",
        )
        fails(ask_tokenizer(hub, home, "org/gated"), "SourceChanged", "org/gated: the repository is gated")
        fails(
            ask_tokenizer(hub, home, "org/damaged"), "SourceChanged", "org/damaged/merges.txt: the file is not the one"
        )
        fails(ask_tokenizer(hub, home, "org/large"), "SourceError", "org/large/config.json: the file is too large")
        fails(ask_tokenizer(hub, home, "org/nothing"), "SourceChanged", "org/nothing: no such repository on the Hub")
        fails(ask_tokenizer(hub, home, revision="v9"), "SourceChanged", f"{ID}: no such revision", "v9")
        fails(ask_tokenizer(hub, home, "../up"), "SourceError", "../up: no such directory, and not a Hub id")
        fails(ask_tokenizer(hub, home, revision="../x"), "RecipeError", f"{ID}: not a branch, tag or commit")
        fails(ask_tokenizer(hub, home, HF_ENDPOINT="http://hub.example"), "MachineError", "HF_ENDPOINT", "not https")
        fails(ask_tokenizer(hub, home, HF_HUB_OFFLINE="1"), "SourceChanged", f"{ID}: the Hub is switched off")


def test_a_tokenizer_that_is_cached_in_part_is_not_taken_for_whole(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with loopback.serve({ID: loopback.one_commit(TOKENIZER)}) as hub:
        ask_tokenizer(hub, home)
        for path in home.rglob("merges.txt"):
            path.unlink()
        fails(ask_tokenizer(hub, home, HF_HUB_OFFLINE="1"), "SourceChanged", ID, "cache does not have")
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


# Grows a source of the Hub in a child, as often as asked, and verifies it against a name.
VERIFY_CHILD = """
import json, sys
from pathlib import Path
from ligo_convert.conversion.convert import convert
from ligo_convert.errors import LigoError
from ligo_convert.recipes.recipe import load_recipe
from ligo_convert.outputs.verify import verify
recipe, out, source = sys.argv[1:]
said = {}
try:
    if not Path(out).exists():
        convert(load_recipe(Path(recipe)))
    said |= {"derived": verify(Path(out), source=source)["derived"]}
except LigoError as error:
    said |= {"error": type(error).__name__, "text": str(error), "code": error.exit_code}
print(json.dumps(said))
"""


def test_a_source_that_has_moved_on_is_verified_at_the_commit_that_was_recorded(tmp_path: Path) -> None:
    files = {path.name: path.read_bytes() for path in write_checkpoint(tmp_path / "source").iterdir()}
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "out"
    asked = {
        "version": 1,
        "source": {"model": ID},
        "target": {"config": DEEPER["gpt2"]},
        "growth": {"width": "copy", "depth": "stack"},
        "output": {"dir": str(out)},
    }
    recipe.write_text(json.dumps(asked))
    repository = loopback.one_commit(files)
    with loopback.serve({ID: repository, "org/fork": loopback.one_commit(files)}) as hub:

        def verified(source: str) -> dict[str, object]:
            return child(hub, tmp_path / "home", VERIFY_CHILD, str(recipe), str(out), source)

        assert verified(ID).get("derived")
        changed = files | {"model.safetensors": loopback_state.turned(files["model.safetensors"])}
        repository.commits["b" * 40] = hub.repositories["org/fork"].commits[COMMIT] = changed
        repository.branches["main"] = "b" * 40
        said = verified(ID)
        assert "error" not in said, said
        derived: Any = said["derived"]
        assert derived["source"] == ID
        assert derived["identical"] == derived["tensors"]
        fails(verified("org/fork"), "VerificationError", "not the source of the model")


# --- the files beside the weights -------------------------------------------------------------------------------------

BESIDE_CHILD = f"""
{BRIEFLY}
import json, sys
from pathlib import Path
from ligo_convert.errors import LigoError
from ligo_convert.hub.resolve import open_source
said = {{}}
try:
    with open_source(sys.argv[1], base=Path(sys.argv[2]), weights=True) as source:
        found = source.model_files
        said["carried"] = {{name: source.file_bytes(name).decode() for name in (*found.carried, *found.module_files)}}
        said["left"] = {{left.path: left.reason for left in found.left}}
        said["digests"] = sorted(source.digest())
except LigoError as error:
    said |= {{"error": type(error).__name__, "text": str(error), "code": error.exit_code}}
print(json.dumps(said))
"""


def test_the_small_files_of_a_repository_are_fetched_and_the_others_are_named(tmp_path: Path) -> None:
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]
    carried = {
        "1_Pooling/config.json": b'{"word_embedding_dimension": 5}',
        "LICENSE": b"Do as you like.\n",
        "additional_chat_templates/tool.jinja": b"{{ x }}",
        "generation_config.json": b'{"eos_token_id": 1}',
        "modules.json": json.dumps(modules).encode(),
        "tokenizer.json": b'{"version": "1.0"}',
    }
    left = {
        "NOTICE": b" " * (5 << 20),
        "onnx/model.onnx": b"1",
        "onnx/config.json": b"{}",
        "modeling_evil.py": b"raise SystemExit(1)",
        "2_Other/config.json": b"{}",
    }
    home, arguments = tmp_path / "home", (ID, str(tmp_path))
    with loopback.serve({ID: loopback.one_commit(checkpoint() | carried | left)}) as hub:
        said = child(hub, home, BESIDE_CHILD, *arguments)
        assert said.get("carried") == {name: data.decode() for name, data in carried.items()}, said
        named: Any = said["left"]
        assert set(named) == {"2_Other/", "NOTICE", "README.md", "modeling_evil.py", "onnx/"}
        assert "5242880 bytes" in named["NOTICE"]
        assert not set(left) & set(hub.served)
        digested: Any = said["digests"]
        assert set(digested) == {*carried, "config.json", "model.safetensors"}
        offline = child(hub, home, BESIDE_CHILD, *arguments, HF_HUB_OFFLINE="1")
        assert offline["carried"] == said["carried"]
        unknown: Any = offline["left"]
        assert "cache does not hold" in unknown["..."]
        # A nested file of the cache is a link to a blob, whose name is its digest.
        (nested,) = home.rglob("1_Pooling/config.json")
        blob = nested.resolve()
        blob.chmod(0o644)
        blob.write_bytes(b'{"word_embedding_dimension": 6}')
        damaged = child(hub, home, BESIDE_CHILD, *arguments, HF_HUB_OFFLINE="1")
        fails(damaged, "SourceChanged", f"{ID}/1_Pooling/config.json: the file is not the one on the Hub")
