"""The families, one file of data each. `FAMILIES` is the table that everything else looks in."""

from ligo_convert.families.gpt2 import GPT2
from ligo_convert.families.llama import LLAMA
from ligo_convert.family import Family

FAMILIES: dict[str, Family] = {family.name: family for family in (GPT2, LLAMA)}
