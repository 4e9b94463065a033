"""Open a checkpoint by its name: a local directory or a Hub repository."""

from __future__ import annotations

import os
from pathlib import Path

from ligo_convert.checkpoints.config_keys import without_code
from ligo_convert.checkpoints.directory import local_directory, near_directories
from ligo_convert.checkpoints.files import CONFIG, Place, small_file
from ligo_convert.checkpoints.reader import CheckpointReader
from ligo_convert.errors import SourceChanged, SourceError
from ligo_convert.families.configs import flat_config
from ligo_convert.hub.download import open_repository
from ligo_convert.io.strict_json import short, strict_json


def open_source(model: str, *, revision: str = "main", base: Path, weights: bool = True) -> CheckpointReader:
    """Open a checkpoint.

    Args:
        model: a directory if it begins with `.`, `/` or `~` or exists relative to `base`; otherwise a Hub id.
        revision: branch, tag or commit on the Hub; ignored for a directory.
        base: the folder that relative directories are relative to.
        weights: False fetches only configs and headers, for planning; `read` and `digest` then work for local files only.

    Raises:
        SourceError: the directory does not exist, or the checkpoint is broken, incomplete, unsupported or unsafe.
        SourceChanged: the Hub, the repository or the revision cannot be reached, or the bytes do not match the Hub's digests.
        MachineError: permission denied, disk full, or an endpoint that is not https.
    """
    return CheckpointReader(_locate(model, revision=revision, base=base), weights=weights, flatten=flat_config)


def read_config(model: str, *, revision: str = "main", base: Path) -> dict[str, object]:
    """Read only the config of a model, flattened as by `open_source`. Raises as `open_source` does."""
    place = _locate(model, revision=revision, base=base)
    place.fetch([CONFIG])
    label = f"{place.label}/{CONFIG}"
    config, _ = without_code(strict_json(small_file(place, CONFIG), label=label), label=label)
    return flat_config(config, where=label)


def _locate(model: str, *, revision: str, base: Path) -> Place:
    """Return where to read the files of `model` from: a local directory or a Hub repository."""
    try:
        local = base / Path(model).expanduser()
    except RuntimeError:
        raise SourceError("no such directory: the home folder of the user is unknown", where=short(model)) from None
    # lexists() returns False, and does not raise, for names that no file system accepts.
    if "\0" not in model and (model.startswith((".", "/", "~")) or (model and os.path.lexists(local))):
        return local_directory(model, local)
    try:
        return open_repository(model, revision=revision)
    except (SourceError, SourceChanged) as error:
        # Perhaps the name is a mistyped directory.
        near = near_directories(local) if model else ""
        error.hint = "\n".join(filter(None, (error.hint, near)))
        raise
