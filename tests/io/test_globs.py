"""Globs: which files they take, in which order, and what is refused by name."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from support.corpora import (
    Data,
    names,
    write,
)

from ligo_convert.data.corpus import check_data
from ligo_convert.errors import RecipeError, brief


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("b.txt", "a.txt", "sub/0.txt", "sub/deep/d.txt", ".hidden.txt", ".git/e.txt", "x[1].txt", "n.md"):
        write(tmp_path / name, f"text of {name}\n")
    (tmp_path / "folder.txt").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["*.txt"], ["a.txt", "b.txt", "x[1].txt"]),
        (["**/*.txt"], ["a.txt", "b.txt", "sub/0.txt", "sub/deep/d.txt", "x[1].txt"]),
        (["**/**/*.txt"], ["a.txt", "b.txt", "sub/0.txt", "sub/deep/d.txt", "x[1].txt"]),
        (["sub/**"], ["sub/0.txt", "sub/deep/d.txt"]),
        (["sub/*"], ["sub/0.txt"]),
        (["x[1].txt"], ["x[1].txt"]),
        (["[ab].txt"], ["a.txt", "b.txt"]),
        (["?.md", "a.txt", "*.txt"], ["n.md", "a.txt", "b.txt", "x[1].txt"]),
        ([".*.txt"], [".hidden.txt"]),
        (["sub/../a.txt", "a.txt"], ["a.txt"]),
        (["sub/*/../0.txt"], ["sub/0.txt"]),
    ],
)
def test_globs_take_files_in_sorted_order(tree: Path, patterns: list[str], expected: list[str]) -> None:
    assert names(tree, *patterns) == expected


def test_an_absolute_glob_and_a_folder_with_magic_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "odd [name]*"
    write(folder / "a.txt", "text")
    assert names(folder, "*.txt") == ["a.txt"]
    facts = check_data(Data(text=[f"{tmp_path}/odd*/*.txt"]), base=Path("/nowhere"))
    assert (facts.kind, facts.files, facts.nbytes) == ("text", (folder / "a.txt",), 4)


@pytest.mark.parametrize(
    "pattern", ["*.nothing", "missing/*.txt", "a.txt/*", "folder.txt", "folder.t*", "", "x" * 5000]
)
def test_a_glob_without_a_file_is_named_with_its_folder(tree: Path, pattern: str) -> None:
    with pytest.raises(RecipeError) as caught:
        names(tree, "a.txt", pattern)
    assert f"{brief(pattern)} matches no file" in str(caught.value)
    assert str(tree) in str(caught.value)


def test_a_nul_character_in_a_glob_is_refused(tree: Path) -> None:
    with pytest.raises(RecipeError, match="NUL"):
        names(tree, "a\0.txt")


def test_loops_of_links_end(tree: Path) -> None:
    for index in range(4):
        (tree / "sub" / f"loop{index}").symlink_to(tree, target_is_directory=True)
    (tree / "self.txt").symlink_to(tree / "a.txt")
    started = time.monotonic()
    assert "self.txt" in names(tree, "**/*.txt")
    assert names(tree, "sub/loop1/a.txt") == ["sub/loop1/a.txt"]
    assert time.monotonic() - started < 2
