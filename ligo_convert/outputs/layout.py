"""Name the files of an output directory. Every other module takes the names from here."""

from __future__ import annotations

import re
from collections.abc import Mapping

OPERATOR = "ligo/operator.safetensors"
RECIPE = "ligo/recipe.yaml"
PROVENANCE = "ligo/provenance.json"
NEW_PARAMETERS = "ligo/new_parameters.json"
FIT_LOG = "ligo/fit.jsonl"
FIT_PLOT = "ligo/fit.png"
CHECKSUMS = "ligo/SHA256SUMS"

# The log of a training, and the state of its optimizer, with which another training or growth goes on.
TRAIN_LOG = "ligo/train.jsonl"
TRAINING_STATE = "ligo/training_state.safetensors"

# A source that the recipe trained, with all its files.
TRAINED_SOURCE = "ligo/source"

# Kind of an output -> what it has besides config.json, the card and the weights.
REQUIRED: Mapping[str, tuple[str, ...]] = {
    "growth": (OPERATOR, RECIPE, PROVENANCE, NEW_PARAMETERS),
    "training": (RECIPE, PROVENANCE, TRAIN_LOG, TRAINING_STATE),
}

# Kind of an output -> its own files. `verify` refuses every other file that the source did not give: who writes another one adds it here.
OWN_FILES: Mapping[str, tuple[str, ...]] = {
    "growth": (*REQUIRED["growth"], FIT_LOG, FIT_PLOT),
    "training": (*REQUIRED["training"], FIT_PLOT),
}

# The state of an optimizer, as `train`, transformers' Trainer and accelerate name it; the last are directories of
# torch.distributed.checkpoint.
OPTIMIZERS = (TRAINING_STATE, "optimizer.pt", "optimizer.bin", "optimizer_0", "optimizer")

TRAINER_STATE = "trainer_state.json"

# The state of a training, which `growth.state` takes along: the optimizer's, and that of the Trainer (or accelerate) around it.
_TRAINING_STATE = re.compile(
    r"optimizer\.(pt|bin)|scheduler\.(pt|bin)|scaler\.pt|trainer_state\.json|rng_state(_[0-9]+)?\.pth|random_states_[0-9]+\.pkl"
    r"|sampler\.bin|dl_state_dict\.bin|optimizer(_0)?/(\.metadata|__[0-9]+_[0-9]+\.distcp)"
)


def training_state_name(name: str) -> bool:
    """Return True for a file of a training's state."""
    return name == TRAINING_STATE or _TRAINING_STATE.fullmatch(name) is not None


def is_own(name: str, kind: str) -> bool:
    """Return True for a file that a run writes besides config.json, the card, the weights and what it carries from the source.

    Args:
        kind: kind of the output, a key of `REQUIRED`.
    """
    return name in OWN_FILES[kind] or name.startswith(f"{TRAINED_SOURCE}/")
