"""Name the files of an output directory. Every other module takes the names from here."""

from __future__ import annotations

OPERATOR = "ligo/operator.safetensors"
RECIPE = "ligo/recipe.yaml"
PROVENANCE = "ligo/provenance.json"
NEW_PARAMETERS = "ligo/new_parameters.json"
FIT_LOG = "ligo/fit.jsonl"
FIT_PLOT = "ligo/fit.png"
CHECKSUMS = "ligo/SHA256SUMS"

# A source that the recipe trained, with all its files.
TRAINED_SOURCE = "ligo/source"

# What every output has besides config.json, the card and the weights.
EVERY_OUTPUT = (OPERATOR, RECIPE, PROVENANCE, NEW_PARAMETERS)

# `verify` refuses every other file that the source did not give: who writes another one adds it here.
OWN_FILES = (*EVERY_OUTPUT, FIT_LOG, FIT_PLOT)


def is_own(name: str) -> bool:
    """Return True for a file that a run writes besides config.json, the card, the weights and what it carries from the source."""
    return name in OWN_FILES or name.startswith(f"{TRAINED_SOURCE}/")
