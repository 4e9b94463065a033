"""Small corpora and tokenizers for tests: what a recipe would say of them, files, and another process."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import ligo_convert
from ligo_convert.data.corpus import check_data, documents
from ligo_convert.data.examples import DataSplits
from ligo_convert.data.records import FormatName
from ligo_convert.data.tokens import SplitSizes, token_splits
from ligo_convert.data.train_tokenizer import train_tokenizer

VOCABULARY = 400


def not_installed(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Make packages impossible to find and to import, as where they are not installed."""
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)


@dataclass(frozen=True, kw_only=True)
class Hub:
    id: str
    name: str | None = None
    split: str | None = None
    column: str | None = None
    revision: str | None = None


@dataclass(frozen=True, kw_only=True)
class Folder:
    path: str
    name: str | None = None
    split: str | None = None


@dataclass(frozen=True, kw_only=True)
class Data:
    text: list[str] | None = None
    hub: Hub | None = None
    dataset: Folder | None = None
    images: str | None = None
    stdlib: bool | None = None
    column: str | None = None
    format: FormatName | None = None
    packing: bool | None = None


STDLIB = Data(stdlib=True)


def lines(count: int, *, start: int = 0) -> str:
    return "".join(f"line {number} of a text with a few words in it\n" for number in range(start, start + count))


def texts(folder: Path, *patterns: str, seed: int = 0) -> list[str]:
    return list(documents(Data(text=list(patterns)), base=folder, seed=seed))


def names(folder: Path, *patterns: str) -> list[str]:
    facts = check_data(Data(text=list(patterns)), base=folder)
    return [os.path.relpath(file, folder) for file in facts.files]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def python(program: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """`program` in another process, without the Hub's variables of this one."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env={**inherited, "PYTHONPATH": str(Path(ligo_convert.__file__).parents[1]), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def trained(folder: Path) -> Path:
    """A tokenizer of 400 entries in `folder`, beside a GPT-2 config."""
    files = train_tokenizer(
        STDLIB, base=folder, vocabulary=VOCABULARY, seed=0, model_type="gpt2", context=64, max_bytes=100_000
    )
    for name, content in files.items():
        (folder / name).write_bytes(content)
    write(folder / "config.json", '{"model_type": "gpt2"}')
    return folder


def slices(folder: Path, tokenizer: Path, **changes: Any) -> DataSplits:
    options: dict[str, Any] = {
        "base": folder,
        "seed": 0,
        "vocabulary": VOCABULARY,
    }
    data = changes.pop("data", Data(text=["*"]))
    sizes = {"sequence_length": 32, "train_tokens": 2000, "heldout_tokens": 320}
    sizes |= {name: changes.pop(name) for name in sizes if name in changes}
    return token_splits(data, tokenizer, sizes=SplitSizes(**sizes), **{**options, **changes})
