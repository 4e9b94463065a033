"""Name the files of an output directory. Every other module takes the names from here."""

from __future__ import annotations

OPERATOR = "ligo/operator.safetensors"
RECIPE = "ligo/recipe.yaml"
PROVENANCE = "ligo/provenance.json"
NEW_PARAMETERS = "ligo/new_parameters.json"
FIT_LOG = "ligo/fit.jsonl"
FIT_PLOT = "ligo/fit.png"
CHECKSUMS = "ligo/SHA256SUMS"
