"""TODO: one sentence."""

from __future__ import annotations

import os
from pathlib import Path

from ligo_convert.checkpoints.files import CONFIG, Place, local_directory, small_file
from ligo_convert.checkpoints.layout import check_config
from ligo_convert.checkpoints.reader import CheckpointReader
from ligo_convert.errors import SourceError
from ligo_convert.families.configs import flat_config
from ligo_convert.hub.download import open_repository
from ligo_convert.io.strict_json import short, strict_json


def open_source(model: str, *, revision: str = "main", base: Path, weights: bool = True) -> CheckpointReader:
    """Open a checkpoint.

    Args:
        model: a directory, where it begins with `.`, `/` or `~` or exists relative to `base`; else a Hub id.
        revision: branch, tag or commit of the Hub; a directory has none.
        base: the folder that relative directories are relative to.
        weights: False fetches configs and headers only, for planning; `read` and `digest` then need local files.

    Raises:
        SourceError: no such directory, or a checkpoint that is broken, incomplete, unsupported or unsafe.
        SourceChanged: the Hub, the repository or the revision is out of reach, or its bytes are not what it says.
        MachineError: no permission, no space, or an endpoint that is not https.
    """
    return CheckpointReader(_place(model, revision=revision, base=base), weights=weights, flatten=flat_config)


def read_config(model: str, *, revision: str = "main", base: Path) -> dict[str, object]:
    """The config of a model alone, as `open_source` would read it: no weights, no headers. Raises as `open_source` does."""
    place = _place(model, revision=revision, base=base)
    place.fetch([CONFIG])
    label = f"{place.label}/{CONFIG}"
    return flat_config(check_config(strict_json(small_file(place, CONFIG), label=label), label=label), where=label)


def _place(model: str, *, revision: str, base: Path) -> Place:
    """Where the files of `model` come from: a directory here, or a repository of the Hub."""
    try:
        local = base / Path(model).expanduser()
    except RuntimeError:
        raise SourceError("no such directory: the home folder is not known", where=short(model)) from None
    # lexists() is false, and not an error, for names that no file system takes.
    if "\0" not in model and (model.startswith((".", "/", "~")) or (model and os.path.lexists(local))):
        return local_directory(model, local)
    return open_repository(model, revision=revision)
