"""A whole run with a staging directory for tests: what it writes, and what may be there after any stop."""

from __future__ import annotations

import os
from pathlib import Path

from ligo_convert.io import files as fs
from ligo_convert.io.staging import Staging, clear_leftovers

FILES = {"config.json": b'{"n": 1}\n', "ligo/deep/recipe.yaml": b"version: 1\n" * 50, "empty": b""}
KEY = "a" * 64
# For child processes that import the package, installed or not.
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(fs.__file__).parents[2])}


def job(out: Path) -> None:
    """A whole run: some journal, some files, the commit."""
    with Staging.open(out, key=KEY) as staging:
        staging.append_line(".work/steps.jsonl", "one")
        for name, data in FILES.items():
            staging.write_bytes(name, data)
        staging.append_line(".work/steps.jsonl", "two")
        staging.write_bytes(".work/state", b"state")
        staging.commit()


def content(directory: Path) -> dict[str, bytes]:
    return {
        path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def absent_or_whole(out: Path) -> bool:
    """Whether `out` is there; it must then be whole, with nothing beside its files."""
    if not os.path.lexists(out):
        return False
    assert content(out) == FILES
    assert not (out / ".work").exists()
    return True


def finish(out: Path) -> None:
    """What a caller does on the next run."""
    if absent_or_whole(out):
        clear_leftovers(out)
    else:
        job(out)
    assert absent_or_whole(out)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
