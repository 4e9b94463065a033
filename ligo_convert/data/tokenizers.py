"""Tokenizers: a local folder or text in, a checked `transformers` tokenizer or a trained one's files out.

A folder's files are data. No code that they name is run, no path in them is followed, no network is asked.
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
    """Refuse a folder that no tokenizer can be loaded from, by the names of its files.

    Args:
        directory: where the tokenizer's files are.
        label: what the user calls it, for messages: a model, a folder.

    Raises:
        RecipeError: no tokenizer there.
        MissingExtra: only a SentencePiece model there, and no package to read it.
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
    needed = ("sentencepiece", "google", "google.protobuf")  # one after another: a package is looked for in its parent
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
    """The `transformers` tokenizer of a local folder: no network, no code from the folder, no output.

    It is loaded from a screened copy. `tokenizer_config.json` and `special_tokens_map.json` reach the constructor as
    keyword arguments, paths and code references among them; `config.json` only says which class.

    Raises:
        RecipeError, MissingExtra: as `check_tokenizer`.
        SourceError: files that are broken, or ask for a class that is not there.
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
    """The files of a folder that make up its tokenizer, sorted by name. MachineError for what cannot be looked at."""
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
        # The tokenizers library raises bare exceptions; whatever it was, the files are what is wrong.
        raise SourceError(
            "the tokenizer cannot be loaded",
            where=directory,
            found=f"{type(error).__name__}: {str(error)[:300]}".replace(str(screened), str(directory)),
            hint="name another in fit.data.tokenizer",
        ) from error
    finally:
        library_logging.set_verbosity(verbosity)


def encoder(tokenizer: Any) -> Callable[[list[str]], list[list[int]]]:
    """Texts to ids without special tokens; truncation, padding and dropout that a tokenizer.json asks for are off."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return lambda texts: [tokenizer.encode(text, add_special_tokens=False, verbose=False) for text in texts]
    backend.no_truncation()
    backend.no_padding()
    if getattr(backend.model, "dropout", None) is not None:
        backend.model.dropout = None
    return lambda texts: [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]
