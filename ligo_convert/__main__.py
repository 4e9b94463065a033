"""`python -m ligo_convert`."""

from ligo_convert.cli import main

main()
