"""Decide under which licence a grown model is published: the source's, or one that the publisher states.

Input: licence identifiers as in the Hub's model cards (https://huggingface.co/docs/hub/repositories-licenses). Output: one identifier, or
a refusal. No licence is ever invented.
"""

from __future__ import annotations

import re
from pathlib import Path

from ligo_convert.errors import PublishRefused, RecipeError

# Licences that allow everyone to share derived works for any use. For any other licence the publisher must state the licence explicitly,
# because its terms may forbid sharing, restrict uses (OpenRAIL does), or require a certain name or an agreement.
PERMISSIVE = frozenset(
    (
        *("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "isc", "zlib", "ncsa", "ms-pl"),
        *("afl-3.0", "artistic-2.0", "ecl-2.0", "postgresql", "unlicense", "wtfpl", "bsl-1.0", "0bsd", "pddl"),
        *("cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "odc-by"),
    )
)  # fmt: skip

_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")


def license_to_publish(*, stated: str | None, inherited: str | None, where: str | Path) -> str:
    """Return the licence of a published model, as an identifier in lower case.

    Args:
        stated: the publisher's choice, `--license` or `publish.license`; None if there is none.
        inherited: the licence in the model card; None if the card states none.
        where: the published directory or repository, for messages.

    Raises:
        RecipeError: `stated` is not an identifier.
        PublishRefused: no licence is known, or the publisher has to read the inherited licence first.
    """
    if stated is not None:
        if not _IDENTIFIER.fullmatch(stated):
            raise RecipeError(
                "not a licence identifier",
                where=where,
                expected="an identifier that the Hub knows, such as apache-2.0, mit or cc-by-4.0",
                found=stated,
            )
        return stated.lower()
    if inherited is None:
        raise PublishRefused(
            "no licence is stated, and the source's card states none",
            where=where,
            hint="the terms of the source apply to weights derived from it: find them, then pass --license ID or set publish.license",
        )
    if inherited.lower() == "other":
        raise PublishRefused(
            "the source has a custom licence, which its card calls `other`",
            where=where,
            found="license: other",
            hint="read its terms (license_name and license_link of the source); if they allow publishing, pass --license other or set "
            "publish.license. The published card only says `other`: add the name and link there afterwards",
        )
    if inherited.lower() not in PERMISSIVE:
        raise PublishRefused(
            "the source's licence may restrict sharing of derived models",
            where=where,
            found=inherited,
            hint=f"read its terms; if they allow publishing, pass --license {inherited.lower()} or set publish.license",
        )
    return inherited.lower()
