"""Under which licence a grown model may be shared: the source's, or one that somebody states. None is ever made up.

What comes in: identifiers as the Hub's cards write them (https://huggingface.co/docs/hub/repositories-licenses). What goes out: the one
that holds, or a refusal.
"""

from __future__ import annotations

import re
from pathlib import Path

from ligo_convert.errors import PublishRefused, RecipeError

# Licences that let whoever takes part in them share what is derived under the same terms, for any use. With any other one a person has to
# say that its terms were read: they may forbid sharing or some uses (OpenRAIL does), ask for a name, or for an agreement.
PERMISSIVE = frozenset(
    (
        *("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "isc", "zlib", "ncsa", "ms-pl"),
        *("afl-3.0", "artistic-2.0", "ecl-2.0", "postgresql", "unlicense", "wtfpl", "bsl-1.0", "0bsd", "pddl"),
        *("cc0-1.0", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cdla-permissive-1.0", "cdla-permissive-2.0", "odc-by"),
    )
)  # fmt: skip

_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")


def license_to_publish(*, stated: str | None, inherited: str | None, where: str | Path) -> str:
    """The licence that a published model is under, as an identifier in lower case.

    Args:
        stated: by a person: `--license` or `publish.license`. inherited: what the source's card says, or the output's own.
        where: what is to be published, for messages.

    Raises:
        RecipeError: what was stated is no identifier.
        PublishRefused: none is stated and none is inherited, or the inherited one asks to be read first.
    """
    if stated is not None:
        if not _IDENTIFIER.fullmatch(stated):
            raise RecipeError(
                "not an identifier of a licence",
                where=where,
                expected="one that the Hub knows, such as apache-2.0, mit or cc-by-4.0",
                found=stated,
            )
        return stated.lower()
    if inherited is None:
        raise PublishRefused(
            "no licence is stated, and the source's card states none",
            where=where,
            hint="weights derived from a source are under its terms: find them, then say --license ID or publish.license",
        )
    if inherited.lower() == "other":
        raise PublishRefused(
            "the source's licence is one of its own, which its card calls `other`",
            where=where,
            found="license: other",
            hint="read its terms (the source's license_name and license_link); where they allow it, say --license other or "
            "publish.license, and name them on the card once it is there: what is published says `other` alone",
        )
    if inherited.lower() not in PERMISSIVE:
        raise PublishRefused(
            "the source's licence is not one that always lets others share what derives from it",
            where=where,
            found=inherited,
            hint=f"read its terms; where they allow it, say --license {inherited.lower()} or publish.license",
        )
    return inherited.lower()
