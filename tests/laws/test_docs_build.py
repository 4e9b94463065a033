"""The documentation builds as web pages: every page in the navigation, every link and anchor found."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def build(docs: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """Build as `make pages` does, with what is remembered between builds in `out`."""
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", "-c", str(DOCS)]
    return subprocess.run([*command, str(docs), str(out)], capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
def test_every_page_is_built_without_a_warning(tmp_path: Path) -> None:
    done = build(DOCS, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    for page in DOCS.rglob("*.md"):
        assert (tmp_path / "out" / page.relative_to(DOCS)).with_suffix(".html").is_file(), page


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[a page](missing.md)", "missing.md"),
        ("[a heading](README.md#missing)", "missing"),
        ("```{toctree}\nmissing\n```", "missing"),
    ],
)
def test_a_broken_link_is_an_error(text: str, says: str, tmp_path: Path) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# Pages\n\n```{toctree}\nREADME\n```\n\n" + text + "\n")
    (docs / "README.md").write_text("# Overview\n")
    done = build(docs, tmp_path / "out")
    assert done.returncode != 0
    assert says in done.stderr
