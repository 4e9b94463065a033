"""Check and load `transformers` tokenizers from local folders.

Input: a folder.
Output: a tokenizer, or the paths of its files.

The files of a folder are only data: their code references are never run and their paths never followed. This module does
not use the network.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import logging
import stat
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ligo_convert.checkpoints.files import CONFIG, SENTENCEPIECE_FILES, TOKENIZER_FILES, VOCABULARY_FILES
from ligo_convert.data.tokenizer_limits import check_added, check_pipeline, check_settings
from ligo_convert.errors import MachineError, MissingExtra, RecipeError, SourceError
from ligo_convert.limits import TOKENIZER_BYTES, TOKENIZER_CONFIG_BYTES, Limit

_AS_THEY_ARE = (*(name for names in VOCABULARY_FILES for name in names), *SENTENCEPIECE_FILES, "added_tokens.json")

_SCREENS: Mapping[str, Callable[[str], bool]] = {
    "config.json": lambda key: key in ("model_type", "tokenizer_class", "transformers_version"),
    "special_tokens_map.json": lambda key: key.endswith(("_token", "_tokens")),
    "tokenizer_config.json": lambda key: (
        key not in ("auto_map", "init_inputs", "chat_template", "name_or_path")
        and not key.endswith(("_file", "_files"))
    ),
}


# JSON files of a tokenizer -> what holds their content against the limits.
_CHECKS: Mapping[str, Callable[..., None]] = {"tokenizer.json": check_pipeline, "added_tokens.json": check_added}

# Characters of the pieces that a tokenizer is tried with, and the most that one of them may take, in seconds of the processor.
_TRIAL_LENGTHS = tuple(2**power for power in range(5, 13))
_TRIAL_SECONDS = 0.5


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
                _check_size(directory / name, TOKENIZER_BYTES)
                if name in _CHECKS:
                    _CHECKS[name](read_settings(directory / name, TOKENIZER_BYTES) or {}, where=directory / name)
                (Path(scratch) / name).symlink_to((directory / name).absolute())
        for name, keep in _SCREENS.items():
            content = read_settings(directory / name, TOKENIZER_CONFIG_BYTES)
            if content is not None:
                check_settings(content, where=directory / name)
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


def _check_size(path: Path, limit: Limit) -> None:
    size = path.stat().st_size
    if size > limit.most:
        raise SourceError("the file is too large", where=path, expected=str(limit), found=f"{size:,}")


def read_settings(path: Path, limit: Limit) -> dict[str, Any] | None:
    """Return a JSON file of a tokenizer; None if it is not there.

    Raises:
        SourceError: the file is too large, or no JSON object.
        MachineError: the file cannot be read.
    """
    if not _is_file(path):
        return None
    _check_size(path, limit)
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
        with warnings.catch_warnings(), _panics(directory):
            warnings.simplefilter("ignore")
            return AutoTokenizer.from_pretrained(screened, local_files_only=True, trust_remote_code=False)
    except SourceError:
        raise
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


@contextlib.contextmanager
def _panics(where: str | Path) -> Iterator[None]:
    """Turn a panic of the tokenizers library into a SourceError. Its exception is no `Exception`, and has no public name."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise SourceError(
            "the tokenizer fails",
            where=where,
            found=str(error),
            hint="name another in fit.data.tokenizer",
        ) from None


class _Tried:
    """Encode texts, after a trial with ever longer pieces of the first one.

    The library cannot be interrupted, and a regular expression may take a time that grows with a power of the length of the text. Each
    piece is twice as long as the one before, so such a tokenizer is refused before it has taken seconds.
    """

    def __init__(self, encode: Callable[[list[str]], list[list[int]]], *, where: str) -> None:
        self._encode, self._where, self._tried = encode, where, False

    def __call__(self, texts: list[str]) -> list[list[int]]:
        with _panics(self._where):
            if not self._tried:
                self._try(next((text for text in texts if text), ""))
            return self._encode(texts)

    def _try(self, text: str) -> None:
        for length in _TRIAL_LENGTHS:
            began = time.process_time()
            self._encode([text[:length]])
            if time.process_time() - began > _TRIAL_SECONDS:
                raise SourceError(
                    "the tokenizer is too slow: its regular expressions backtrack",
                    where=self._where,
                    expected=f"less than {_TRIAL_SECONDS:g} s for {length} characters",
                    hint="name another in fit.data.tokenizer",
                )
        self._tried = True


def encoder(tokenizer: Any) -> Callable[[list[str]], list[list[int]]]:
    """Return a function that maps texts to token ids without special tokens.

    Truncation, padding and dropout settings of a tokenizer.json are disabled. The function raises SourceError for a tokenizer that fails on
    a text, or that is so slow that its regular expressions must backtrack without end.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return lambda texts: [tokenizer.encode(text, add_special_tokens=False, verbose=False) for text in texts]
    backend.no_truncation()
    backend.no_padding()
    if getattr(backend.model, "dropout", None) is not None:
        backend.model.dropout = None

    def encode(texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)]

    return _Tried(encode, where=str(tokenizer.name_or_path))
