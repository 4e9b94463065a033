"""What is refused before anything is read, and the text that every Python brings."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.corpora import (
    STDLIB,
    Data,
    names,
    write,
)

from ligo_convert.data.corpus import check_data, documents
from ligo_convert.data.tokenizers import check_tokenizer
from ligo_convert.errors import MachineError, RecipeError


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(RecipeError, match=r"pipe\.txt: data\.text: neither a file nor a folder"):
        names(tmp_path, "*.txt")


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone.txt").symlink_to(tmp_path / "missing")
    with pytest.raises(MachineError, match=r"gone\.txt: cannot be read: No such file"):
        names(tmp_path, "*.txt")


@pytest.fixture
def unprivileged(tmp_path: Path) -> Iterator[Path]:
    """A folder that others may enter, while this process is one of the others even when it runs as root."""
    # Temporary folders are their owner's alone, and lie deeper where tests run side by side.
    for folder in (tmp_path, *tmp_path.parents[:4]):
        if folder.stat().st_uid == os.getuid() and not folder.is_mount():
            folder.chmod(folder.stat().st_mode | 0o055)
    root = os.geteuid() == 0
    write(tmp_path / "closed.txt", "text").chmod(0)
    write(tmp_path / "locked" / "a.txt", "text").parent.chmod(0)
    if root:
        os.seteuid(65534)
    try:
        yield tmp_path
    finally:
        if root:
            os.seteuid(0)
        (tmp_path / "locked").chmod(0o755)


def test_what_may_not_be_read_is_said_by_the_check(unprivileged: Path) -> None:
    with pytest.raises(MachineError, match=r"closed\.txt: cannot be read: Permission denied"):
        names(unprivileged, "closed.txt")
    with pytest.raises(MachineError, match="locked: folder cannot be listed: Permission denied"):
        names(unprivileged, "**/*.md")
    with pytest.raises(MachineError, match="cannot be read: Permission denied"):
        check_tokenizer(unprivileged / "locked", label="model")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (Data(images="photos"), "text families need text"),
        (Data(), "none of them"),
        (Data(text=[]), "none of them"),
        (Data(stdlib=False), "none of them"),
        (Data(text=["*"], stdlib=True), "text, stdlib"),
    ],
)
def test_exactly_one_kind_of_text_is_needed(tmp_path: Path, data: Data, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_data(data, base=tmp_path)
    with pytest.raises(RecipeError, match=message):
        next(documents(data, base=tmp_path, seed=0))


def test_files_that_are_all_empty_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "")
    with pytest.raises(RecipeError, match="every file is empty"):
        check_data(Data(text=["*"]), base=tmp_path)


def test_a_packed_file_is_refused_by_the_check(tmp_path: Path) -> None:
    write(tmp_path / "a.txt.gz", gzip.compress(b"text"))
    with pytest.raises(RecipeError, match=r"a\.txt\.gz: byte 1: data\.text: not UTF-8"):
        check_data(Data(text=["*"]), base=tmp_path)


def test_a_head_that_ends_inside_a_character_is_text(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "x" + "\u00e9" * 4000)
    assert check_data(Data(text=["*"]), base=tmp_path).nbytes == 8001


def test_the_standard_library_is_text_of_this_python() -> None:
    facts = check_data(STDLIB, base=Path("/nowhere"))
    parts = {part for file in facts.files for part in file.parts}
    assert facts.kind == "stdlib"
    assert facts.nbytes > 4_000_000
    assert not parts & {"site-packages", "dist-packages", "test", "tests", "idlelib"}
    assert any(file.name == "argparse.py" for file in facts.files)
    assert not any(file.name.startswith("_sysconfigdata") for file in facts.files)
    # Every byte of it is readable text, so no seed meets a file it cannot read.
    assert sum(len(text) for text in documents(STDLIB, base=Path("/nowhere"), seed=0)) > 4_000_000
