"""Check and load `transformers` tokenizers from local folders.

Input: a folder.
Output: a tokenizer, or the paths of its files.

The files of a folder are only data: their code references are never run and their paths never followed. This module does
not use the network.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import stat
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ligo_convert.checkpoints.files import CONFIG, SENTENCEPIECE_FILES, TOKENIZER_FILES, VOCABULARY_FILES
from ligo_convert.errors import MachineError, MissingExtra, RecipeError, SourceError

_AS_THEY_ARE = (*(name for names in VOCABULARY_FILES for name in names), *SENTENCEPIECE_FILES, "added_tokens.json")

_SCREENS: Mapping[str, Callable[[str], bool]] = {
    "config.json": lambda key: key in ("model_type", "tokenizer_class", "transformers_version"),
    "special_tokens_map.json": lambda key: key.endswith(("_token", "_tokens")),
    "tokenizer_config.json": lambda key: (
        key not in ("auto_map", "init_inputs", "chat_template", "name_or_path")
        and not key.endswith(("_file", "_files"))
    ),
}


def check_tokenizer(directory: Path, *, label: str) -> None:
    """Check by file names that a folder holds a tokenizer that can be loaded.

    Args:
        directory: folder with the tokenizer's files.
        label: the user's name for it in messages, such as a model or a folder.

    Raises:
        RecipeError: the folder holds no tokenizer.
        MissingExtra: the folder holds only a SentencePiece model, and the packages to read it are not installed.
        MachineError: the folder cannot be read.
    """
    if any(all(_is_file(directory / name) for name in names) for names in VOCABULARY_FILES):
        return
    model = next((name for name in SENTENCEPIECE_FILES if _is_file(directory / name)), None)
    if model is None:
        raise RecipeError(
            "text needs a tokenizer, and there is none",
            where=label,
            expected="tokenizer.json, vocab.json with merges.txt, vocab.txt or tokenizer.model",
            hint="name one in fit.data.tokenizer: a folder, or the Hub id of a model with the same vocabulary",
        )
    needed = ("sentencepiece", "google", "google.protobuf")  # in this order: find_spec fails if the parent is missing
    if any(importlib.util.find_spec(package) is None for package in needed):
        raise MissingExtra(f"{model} needs the packages sentencepiece and protobuf", extra="sentencepiece", where=label)


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise MachineError(f"cannot be read: {error.strerror}", where=path) from None


def load_tokenizer(directory: Path) -> Any:
    """Load the `transformers` tokenizer of a local folder without network, code from the folder or console output.

    The tokenizer is loaded from a screened copy, because `tokenizer_config.json` and `special_tokens_map.json` become
    keyword arguments of its constructor, including paths and code references. `config.json` only selects the class.

    Raises:
        RecipeError: as `check_tokenizer`.
        MissingExtra: as `check_tokenizer`.
        MachineError: a file cannot be read.
        SourceError: a file is damaged, or names a class that does not exist.
    """
    check_tokenizer(directory, label=str(directory))
    with tempfile.TemporaryDirectory(prefix="ligo-tokenizer-") as scratch:
        for name in _AS_THEY_ARE:
            if _is_file(directory / name):
                (Path(scratch) / name).symlink_to((directory / name).absolute())
        for name, keep in _SCREENS.items():
            content = _read_object(directory / name)
            if content is not None:
                kept = {key: value for key, value in content.items() if keep(key)}
                (Path(scratch) / name).write_text(json.dumps(kept), encoding="utf-8")
        tokenizer = _auto_tokenizer(Path(scratch), directory)
    tokenizer.name_or_path = str(directory)
    return tokenizer


def known_files(directory: Path) -> list[Path]:
    """Return the tokenizer files of a folder and its config.json, sorted by name.

    Raises:
        MachineError: the folder cannot be read.
    """
    return [directory / name for name in sorted((CONFIG, *TOKENIZER_FILES)) if _is_file(directory / name)]


def _read_object(path: Path) -> dict[str, Any] | None:
    if not _is_file(path):
        return None
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise SourceError("no JSON", where=path, found=str(error)[:120]) from None
    except OSError as error:
        raise MachineError(f"cannot be read: {error.strerror}", where=path) from None
    if not isinstance(content, dict):
        raise SourceError("no JSON object", where=path, found=type(content).__name__)
    return content


def _auto_tokenizer(screened: Path, directory: Path) -> Any:
    from transformers import AutoTokenizer
    from transformers.utils import logging as library_logging

    verbosity = library_logging.get_verbosity()
    library_logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return AutoTokenizer.from_pretrained(screened, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        # The tokenizers library raises bare `Exception`s. Any error here is treated as a fault of the files.
        raise SourceError(
            "the tokenizer cannot be loaded",
            where=directory,
            found=f"{type(error).__name__}: {str(error)[:300]}".replace(str(screened), str(directory)),
            hint="name another in fit.data.tokenizer",
        ) from error
    finally:
        library_logging.set_verbosity(verbosity)


def encoder(tokenizer: Any) -> Callable[[list[str]], list[list[int]]]:
    """Return a function that maps texts to token ids without special tokens.

    Truncation, padding and dropout settings of a tokenizer.json are disabled.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return lambda texts: [tokenizer.encode(text, add_special_tokens=False, verbose=False) for text in texts]
    backend.no_truncation()
    backend.no_padding()
    if getattr(backend.model, "dropout", None) is not None:
        backend.model.dropout = None
    return lambda texts: [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
