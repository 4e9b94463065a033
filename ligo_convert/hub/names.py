"""What things of the Hub can be called, repositories, branches and tags, and where its client keeps them: nobody is asked."""

from __future__ import annotations

import re

_HUB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,95}(/[A-Za-z0-9_][A-Za-z0-9._-]{0,95})?")

# Branches over which something is brought to another one, named by what they hold.
STAGING = re.compile(r"ligo-convert-[0-9a-f]{16}")

_COMMIT = re.compile(r"[0-9a-f]{40}")

_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._/+-]{0,249}")

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def is_hub_id(name: str) -> bool:
    """Whether `name` has the form of a Hub id (`name` or `org/name`) or of a timm model's name."""
    return bool(_HUB_ID.fullmatch(name)) and ".." not in name and "--" not in name and not name.endswith(".git")


def is_repository(name: str) -> bool:
    """Whether `name` is `org/name` as the Hub takes it for a new repository."""
    parts = name.split("/")
    return (
        is_hub_id(name) and len(parts) == 2 and len(name) <= 96 and not any(part.endswith((".", "-")) for part in parts)
    )


def is_commit(name: object) -> bool:
    """Whether `name` is a commit's own, whole."""
    return isinstance(name, str) and bool(_COMMIT.fullmatch(name))


def is_revision(name: str) -> bool:
    """Whether a branch, a tag or a commit that is there may be called `name`."""
    return bool(_REVISION.fullmatch(name)) and ".." not in name and not name.endswith("/")


def is_reference(name: str) -> bool:
    """Whether a branch or a tag can be called `name`: as git has it, no commit, no pull request, and no branch of our own."""
    parts = name.split("/")
    plain = all(_PART.fullmatch(part) and not part.endswith((".", ".lock")) for part in parts) and ".." not in name
    taken = name == "HEAD" or parts[0] == "refs" or is_commit(name) or bool(STAGING.fullmatch(name))
    return plain and not taken and len(name) <= 200
