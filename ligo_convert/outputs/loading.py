"""Load a written checkpoint with its library: whole where it fits in memory, else its keys first and its weights one at a time.

Input: a directory and its family. Output: the class and the keys that the library reports; any key raises WrongResult.

Streamed, the library loads placeholders of the stored shapes instead of values, so its own rules decide which keys are missing,
unexpected or mismatched. Then its model runs once on random input, and each stored weight is read when the model uses it.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ligo_convert.checkpoints.files import CONFIG, INDEX
from ligo_convert.checkpoints.reader import CheckpointReader
from ligo_convert.environment import BASE_BYTES, memory_limit
from ligo_convert.errors import WrongResult
from ligo_convert.families.configs import written_config
from ligo_convert.families.inventory import claim_tensors
from ligo_convert.families.schema import Family
from ligo_convert.hub.resolve import open_source

Keys = dict[str, list[str]]

KEY_SETS = ("missing_keys", "unexpected_keys", "mismatched_keys")


def whole_bytes(nbytes: int) -> int:
    """Return the peak resident memory of loading `nbytes` of weights whole: the library maps the files and copies their tensors."""
    return BASE_BYTES + 2 * nbytes


def check_loads(root: Path, family: Family, *, streams: bool = False) -> dict[str, Any]:
    """Load a directory with the family's library, and require no missing, unexpected or mismatched keys.

    The library sees the weights and the config keys that describe the model, and no other file or key of the directory.

    Args:
        streams: load one weight at a time, even if all of them fit in memory.

    Returns:
        `class`, the name of the model's class, the three empty lists of keys, and `method`: "in memory" or "streamed".

    Raises:
        WrongResult: the library raises an error or reports keys.
    """
    from ligo_convert.training.library_config import quiet

    with (
        open_source(str(root.absolute()), base=root) as written,
        tempfile.TemporaryDirectory(prefix="ligo-load-") as scratch,
        quiet(),
    ):
        needed = whole_bytes(sum(tensor.spec.nbytes for tensor in written.tensors.values()))
        fits = not streams and needed <= memory_limit()
        if fits:
            weights = {tensor.file.name for tensor in written.tensors.values()} | {INDEX} & {*written.side_files}
            for name in sorted(weights):
                (Path(scratch) / name).symlink_to((root / name).absolute())
        try:
            name, keys = _LOADERS[family.library](Path(scratch), family, written, fits)
            if not fits and not any(keys.values()):
                _run(family, written)
        except Exception as error:  # noqa: BLE001  whatever the library raises, it does not load the directory
            raise WrongResult(
                f"{family.library} cannot load the directory: {type(error).__name__}: {error}", where=root
            ) from None
    if any(keys.values()):
        raise WrongResult(
            f"{family.library} reports missing, unexpected or mismatched keys", where=root, expected="none", found=keys
        )
    return {"class": name, **keys, "method": "in memory" if fits else "streamed"}


def _load_transformers(scratch: Path, family: Family, written: CheckpointReader, whole: bool) -> tuple[str, Keys]:
    import torch
    import transformers

    from ligo_convert.training.library_config import check_written_config, handed_on

    check_written_config(family, written.stored_config)
    # Some of the library's auto classes choose by the class's name.
    config = {
        **handed_on(family, written.config),
        "model_type": family.model_type,
        "architectures": [family.architecture],
    }
    (scratch / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    options = {"output_loading_info": True, "local_files_only": True, **family.chosen.options}
    if whole:
        model, info = getattr(transformers, family.auto_class).from_pretrained(
            str(scratch), trust_remote_code=False, use_safetensors=True, dtype="auto", **options
        )
    else:
        # One element, seen as a whole tensor: no memory, and no error of the library's for a tensor without values.
        placeholders = {name: torch.zeros(()).expand(tensor.spec.shape) for name, tensor in written.tensors.items()}
        made = transformers.AutoConfig.from_pretrained(str(scratch), local_files_only=True, trust_remote_code=False)
        model, info = getattr(transformers, family.architecture).from_pretrained(
            None,
            config=made,
            state_dict=placeholders,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=torch.float32,
            **options,
        )
    return type(model).__name__, {name: sorted(map(str, info.get(name) or [])) for name in KEY_SETS}


def _load_timm(scratch: Path, family: Family, written: CheckpointReader, whole: bool) -> tuple[str, Keys]:
    """Load with timm, which raises an error for keys that do not match and reports none, so they are compared here."""
    import timm

    from ligo_convert.training.functional_model import parameters_on_meta

    # The directory's own config could name another file of weights, which timm would load instead, as a pickle too.
    config = written_config(family, written.config, written.stored_config)
    (scratch / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    with contextlib.nullcontext() if whole else parameters_on_meta():
        model = timm.create_model(f"local-dir:{scratch}", pretrained=whole)
    wanted = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    stored = {name: tensor.spec.shape for name, tensor in written.tensors.items()}
    return type(model).__name__, {
        "missing_keys": sorted(set(wanted) - set(stored)),
        "unexpected_keys": sorted(set(stored) - set(wanted)),
        "mismatched_keys": sorted(name for name in set(wanted) & set(stored) if wanted[name] != stored[name]),
    }


_LOADERS: dict[str, Callable[[Path, Family, CheckpointReader, bool], tuple[str, Keys]]] = {
    "transformers": _load_transformers,
    "timm": _load_timm,
}


def _run(family: Family, written: CheckpointReader) -> None:
    """Run the library's model once on random input, with every stored weight read when it is used."""
    import torch

    from ligo_convert.checkpoints.torch_io import TORCH_DTYPES
    from ligo_convert.growth.stream import compute_dtype
    from ligo_convert.training.functional_model import LibraryModel
    from ligo_convert.training.streamed import streamed_source
    from ligo_convert.training.tasks import on_device, random_batch

    specs = {name: tensor.spec for name, tensor in written.tensors.items()}
    inventory = claim_tensors(family, written.config, specs, label=written.label)
    model = LibraryModel(inventory.family, written.config)
    batch = random_batch(inventory.family, written.config, count=1)
    with torch.no_grad():
        model(
            streamed_source(written.read, inventory, device="cpu"),
            on_device(batch, "cpu", TORCH_DTYPES[compute_dtype(inventory)]),
        )
