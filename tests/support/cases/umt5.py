from dataclasses import replace

from support.cases.t5 import GATED

CASES = {"umt5": replace(GATED, family="")}

FULL_SIZE = [{"tie_word_embeddings": False}]

STATED = {"umt5-small": 300, "umt5-base": 580}

BESIDE = {name: {"tie_word_embeddings": False} for name in STATED}
