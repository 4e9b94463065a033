"""Parquet and datasets of the Hub: every row once, and what is refused by name."""

from __future__ import annotations

import http.server
import importlib
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from support.corpora import (
    Data,
    Hub,
    not_installed,
    python,
    slices,
    texts,
    trained,
    write,
)

from ligo_convert.data.corpus import check_data, documents
from ligo_convert.errors import MissingExtra, RecipeError


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("tokenizer"))


@pytest.mark.parametrize("data", [Data(hub=Hub(id="org/name")), Data(text=["*.parquet"])])
def test_tables_without_the_package_name_the_extra(tmp_path: Path, data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    not_installed(monkeypatch, "datasets")
    write(tmp_path / "a.parquet", b"PAR1")
    with pytest.raises(MissingExtra, match="needs the package datasets") as caught:
        check_data(data, base=tmp_path)
    assert "pip install 'ligo-convert[datasets]'" in str(caught.value)
    assert caught.value.exit_code == 5


def test_parquet_is_not_mixed_with_text(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", b"PAR1")
    write(tmp_path / "b.txt", "text")
    with pytest.raises(RecipeError, match=r"b\.txt: data\.text: parquet cannot be mixed"):
        check_data(Data(text=["*"]), base=tmp_path)


def parquet(path: Path, rows: list[Any], *, column: str = "text", group: int = 50) -> Path:
    table = importlib.import_module("pyarrow").table({column: rows})
    importlib.import_module("pyarrow.parquet").write_table(table, path, row_group_size=group)
    return path


def test_every_row_of_parquet_is_read_once_in_an_order_of_its_own(tmp_path: Path, tokenizer: Path) -> None:
    rows = [f"row {number} of the table, some words" for number in range(3000)]
    parquet(tmp_path / "a.parquet", rows[:1000])
    parquet(tmp_path / "b.parquet", rows[1000:])
    facts = check_data(Data(text=["*.parquet"]), base=tmp_path)
    assert (facts.kind, len(facts.files)) == ("parquet", 2)
    found = texts(tmp_path, "*.parquet")
    assert sorted(found) == sorted(rows)
    assert found != rows
    assert found == texts(tmp_path, "*.parquet")
    # Which row groups come first depends on the seed, and so does the order of the rows of one group.
    assert set(found[:1024]) != set(texts(tmp_path, "*.parquet", seed=1)[:1024])
    parquet(tmp_path / "one.parquet", rows[:40])
    assert texts(tmp_path, "one.parquet") != texts(tmp_path, "one.parquet", seed=1)
    test = slices(tmp_path, tokenizer, data=Data(text=["*.parquet"])).test
    assert len(test) == 10
    assert test.take([0])["input_ids"].shape == (1, 32)


def test_bad_parquet_is_named(tmp_path: Path) -> None:
    write(tmp_path / "broken.parquet", b"PAR1 and nothing else")
    parquet(tmp_path / "other.parquet", ["x"], column="content")
    parquet(tmp_path / "null.parquet", ["x"] * 60 + [None])
    damaged = parquet(tmp_path / "damaged.parquet", [f"{n}" * 50 for n in range(200)], group=200)
    raw = bytearray(damaged.read_bytes())
    raw[4:400] = b"\xff" * 396
    damaged.write_bytes(raw)
    for name, message in [("broken", "not a readable parquet file"), ("other", "no column text")]:
        with pytest.raises(RecipeError, match=rf"{name}\.parquet: data(\.text)?: {message}"):
            check_data(Data(text=[f"{name}.parquet"]), base=tmp_path)
    with pytest.raises(RecipeError, match=r"null\.parquet: row group 1, row 10: data: record without text"):
        texts(tmp_path, "null.parquet")
    with pytest.raises(RecipeError, match=r"damaged\.parquet: data\.text: damaged parquet file"):
        texts(tmp_path, "damaged.parquet")


def test_a_folder_is_not_taken_for_a_dataset_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "org" / "name" / "a.txt", "text")
    monkeypatch.chdir(tmp_path)
    assert check_data(Data(hub=Hub(id="org/name")), base=tmp_path).kind == "hub"
    with pytest.raises(RecipeError, match="a local folder of this name"):
        next(documents(Data(hub=Hub(id="org/name")), base=tmp_path, seed=0))


class LoopbackHub(http.server.BaseHTTPRequestHandler):
    """The few answers `datasets` needs to stream one file of one dataset."""

    commit = "0123456789abcdef0123456789abcdef01234567"
    body = "".join(json.dumps({"body": f"row {number}"}) + "\n" for number in range(1500)).encode()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        entry = {"type": "file", "path": "train.jsonl", "size": len(self.body), "oid": "1" * 40}
        if not path.startswith(("/api/datasets/org/name", "/datasets/org/name/resolve")):
            return self.answer(404, b"{}", **{"X-Error-Code": "RepoNotFound"})
        if "/tree/" in path or "/paths-info/" in path:
            return self.answer(200, json.dumps([entry] if path.endswith(self.commit) else []).encode())
        if path.startswith("/api/"):
            info = {"id": "org/name", "sha": self.commit, "siblings": [{"rfilename": "train.jsonl"}], "tags": []}
            return self.answer(200, json.dumps(info).encode())
        if path.endswith("/train.jsonl"):
            return self.answer(200, self.body, ETag='"1"', **{"X-Repo-Commit": self.commit})
        return self.answer(404, b"{}", **{"X-Error-Code": "EntryNotFound"})

    do_POST = do_GET

    def answer(self, code: int, content: bytes, **headers: str) -> None:
        if "Content-Length" in self.headers:
            self.rfile.read(int(self.headers["Content-Length"]))
        begin, end = 0, len(content)
        if code == 200 and (wanted := self.headers.get("Range")):
            first, last = wanted.removeprefix("bytes=").split("-")
            begin, end = int(first), min(int(last) + 1 if last else end, end)
            headers["Content-Range"] = f"bytes {begin}-{end - 1}/{len(content)}"
            code = 206
        self.send_response(code)
        for name, value in {**headers, "Content-Length": str(end - begin), "Content-Type": "application/json"}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[begin:end])

    def log_message(self, *arguments: Any) -> None:
        """Quiet."""


HUB_PROGRAM = """
import json, sys
from pathlib import Path
from types import SimpleNamespace as N
from ligo_convert.data.corpus import documents
from ligo_convert.errors import LigoError
for hub in json.loads(sys.argv[1]):
    more = {"text": None, "images": None, "stdlib": None, "dataset": None, "column": None, "format": None}
    data = N(**more, hub=N(**{"name": None, "revision": None, "split": None, **hub}))
    try:
        found = list(documents(data, base=Path("/"), seed=0))
        print(json.dumps([len(found), len(set(found)), found[:2]]))
    except LigoError as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


@pytest.mark.slow
def test_a_dataset_of_the_hub_is_streamed(tmp_path: Path) -> None:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), LoopbackHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    asked = [
        {"id": "org/name", "column": "body"},
        {"id": "org/name", "column": None},
        {"id": "org/name", "column": "body", "split": "nowhere"},
        {"id": "org/missing", "column": "body"},
    ]
    try:
        done = python(
            HUB_PROGRAM,
            json.dumps(asked),
            HF_ENDPOINT=f"http://127.0.0.1:{server.server_port}",
            HF_HOME=str(tmp_path),
            HF_HUB_DISABLE_XET="1",
            NO_PROXY="127.0.0.1",
        )
    finally:
        server.shutdown()
        server.server_close()
    assert (done.returncode, done.stderr) == (0, "")
    good, column, split, missing = (json.loads(line) for line in done.stdout.splitlines())
    assert good[:2] == [1500, 1500]
    assert good[2] != ["row 0", "row 1"]
    assert column[0] == "RecipeError"
    assert "no column text" in column[1]
    assert "body" in column[1]
    assert split[0] == "RecipeError"
    assert "nowhere" in split[1]
    assert missing[0] == "SourceChanged"
    assert "org/missing" in missing[1]
