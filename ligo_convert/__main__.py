"""`python -m ligo_convert`."""

from __future__ import annotations

from ligo_convert.cli.main import main

main()
