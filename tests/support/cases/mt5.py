from dataclasses import replace

from support.cases.t5 import GATED

CASES = {"mt5": replace(GATED, family="")}

FULL_SIZE = [{"tie_word_embeddings": False}]

STATED = {"mt5-small": 300, "mt5-base": 580}

BESIDE = {name: {"tie_word_embeddings": False} for name in STATED}
