"""Small JSON files that state their own digest, so that damage is noticed when they are read.

Input: plain data. Output: the bytes of a file, and the data again if not one bit has changed.

The digest reveals damage. It proves no origin: who can write the file can write the digest, too.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ligo_convert.errors import SourceError, VerificationError
from ligo_convert.io.strict_json import sha256_of, strict_json

# No file of this kind comes near it.
MAX_BYTES = 64 << 20


def seal(kind: str, value: Mapping[str, Any]) -> bytes:
    """Return the bytes of a file that holds `value`: plain JSON values.

    Args:
        kind: the format and its version, for example `ligo-entry/1`.
        value: the data.
    """
    # What JSON cannot spell becomes text here, once, so that the digest is that of what is read back.
    plain = json.loads(json.dumps(value, default=str))
    return json.dumps({"kind": kind, "sha256": sha256_of({"kind": kind, "value": plain}), "value": plain}).encode()


def unseal(kind: str, data: bytes) -> dict[str, Any]:
    """Return the data of a file from `seal`. Raises VerificationError for all other bytes, with the reason as its first line."""
    try:
        content = strict_json(data, label=kind)
    except SourceError as error:
        raise VerificationError(error.what, where=kind) from None
    match content:
        case {"kind": str(found), "sha256": str(digest), "value": dict(value)}:
            if found != kind:
                raise VerificationError("another format", where=kind, expected=kind, found=found)
            if digest != sha256_of({"kind": kind, "value": value}):
                raise VerificationError("the digest in the file is not that of its content", where=kind)
            return value
    raise VerificationError("not a file of this program", where=kind)


def read_sealed(kind: str, path: Path) -> dict[str, Any] | None:
    """Return the data of a file from `seal`; None if there is no such file. Raises VerificationError as `unseal`, or if it is no file."""
    try:
        # Opening a FIFO would block; a link may lead anywhere.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise VerificationError(f"cannot be read ({error.strerror})", where=path) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise VerificationError("not a regular file", where=path)
        if status.st_size > MAX_BYTES:
            raise VerificationError("larger than any such file", where=path)
        with os.fdopen(os.dup(descriptor), "rb") as file:
            return unseal(kind, file.read(MAX_BYTES + 1))
    except OSError as error:
        raise VerificationError(f"cannot be read ({error.strerror})", where=path) from None
    finally:
        os.close(descriptor)
