"""Check names of Hub repositories, branches, tags and commits by their form, without a request."""

from __future__ import annotations

import re

_HUB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,95})?")

# Staging branches of `publish`; the digits are the start of the digest of the published files.
STAGING = re.compile(r"ligo-convert-[0-9a-f]{16}")

_COMMIT = re.compile(r"[0-9a-f]{40}")

_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]{0,249}")

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def is_hub_id(name: str) -> bool:
    """Return True if `name` has the form of a Hub id: `name` or `org/name`."""
    return bool(_HUB_ID.fullmatch(name)) and ".." not in name and "--" not in name and not name.endswith(".git")


def is_repository(name: str) -> bool:
    """Return True if `name` is `org/name` in a form that the Hub accepts for a new repository."""
    parts = name.split("/")
    return (
        is_hub_id(name) and len(parts) == 2 and len(name) <= 96 and not any(part.endswith((".", "-")) for part in parts)
    )


def is_commit(name: object) -> bool:
    """Return True if `name` is a full commit hash."""
    return isinstance(name, str) and bool(_COMMIT.fullmatch(name))


def is_revision(name: str) -> bool:
    """Return True if an existing branch, tag or commit can have the name `name`."""
    return bool(_REVISION.fullmatch(name)) and ".." not in name and not name.endswith("/")


def is_reference(name: str) -> bool:
    """Return True if `name` can name a new branch or tag: valid in git, not a commit, a pull request or a staging branch."""
    parts = name.split("/")
    plain = all(_PART.fullmatch(part) and not part.endswith((".", ".lock")) for part in parts) and ".." not in name
    taken = name == "HEAD" or parts[0] == "refs" or is_commit(name) or bool(STAGING.fullmatch(name))
    return plain and not taken and len(name) <= 200
