"""SHA256SUMS of an output directory: every file in it, and nothing else.

What comes in: digests by name, or a directory. What goes out: the bytes that `sha256sum -c` takes, or the digests after every file has
been hashed again.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from ligo_convert.checkpoints.files import blob_folders
from ligo_convert.errors import LigoError, VerificationError
from ligo_convert.io.files import reporting
from ligo_convert.outputs.layout import CHECKSUMS

# What the Hub and its client leave in a downloaded copy; no library reads a model from there.
HUB_LEFTOVERS = (".gitattributes", ".cache/huggingface")

_HEX = re.compile(r"[0-9a-f]{64}")

_SUM = re.compile(r"([0-9a-f]{64})  (\S|\S.*\S)")

_CHUNK = 1 << 20


def sums(files: Mapping[str, str]) -> bytes:
    """SHA256SUMS as coreutils writes it, names sorted: `sha256sum -c ligo/SHA256SUMS` in the directory checks them."""
    for name, digest in files.items():
        if not _is_name(name) or not _HEX.fullmatch(digest):
            raise LigoError("not a file name and its SHA-256", where=CHECKSUMS, found=f"{digest}  {name}")
    return "".join(f"{files[name]}  {name}\n" for name in sorted(files)).encode()


def read_sums(data: bytes) -> dict[str, str]:
    """Name -> SHA-256 of a SHA256SUMS that `sums` wrote. Raises VerificationError for any other line or order."""
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError as error:
        raise VerificationError(f"not UTF-8 (byte {error.start})", where=CHECKSUMS) from None
    if lines == [""]:
        raise VerificationError("the file is empty", where=CHECKSUMS)
    if lines.pop():
        raise VerificationError("the last line is cut off", where=CHECKSUMS)
    files: dict[str, str] = {}
    last = ""
    for number, line in enumerate(lines, start=1):
        match = _SUM.fullmatch(line)
        if match is None or not _is_name(match[2]):
            raise VerificationError(
                "not a digest and a file name",
                where=f"{CHECKSUMS}:{number}",
                expected="64 hexadecimal digits, two spaces, a relative name",
                found=_short(line),
            )
        if match[2] <= last:
            raise VerificationError(
                "names are not sorted, or there twice", where=f"{CHECKSUMS}:{number}", found=_short(match[2])
            )
        last = match[2]
        files[last] = match[1]
    return files


def check_sums(root: Path, *, on_bytes: Callable[[int], None] | None = None) -> dict[str, str]:
    """Hash every file of an output directory again and compare with its SHA256SUMS.

    What the Hub's client leaves in a downloaded copy (`HUB_LEFTOVERS`) is passed over. A snapshot in its cache is such a copy: its links
    to the blobs of its repository are the files themselves.

    Args:
        on_bytes: called with the number of bytes after each block.

    Returns:
        Name -> SHA-256 of every file listed.

    Raises:
        VerificationError: a file that is missing, differs, is listed nowhere, or is no regular file of this directory.
    """
    there = dict(_walk(root, "", blobs=blob_folders(root)))
    if CHECKSUMS not in there:
        raise VerificationError("there is no SHA256SUMS", where=root / CHECKSUMS)
    with reporting(there[CHECKSUMS], "read"):
        data = there[CHECKSUMS].read_bytes()
    listed = read_sums(data)
    missing = [name for name in listed if name not in there]
    if missing:
        raise VerificationError(
            f"listed in {CHECKSUMS}, and not there",
            where=root / missing[0],
            expected=listed[missing[0]],
            found="no such file" + _more(missing),
        )
    extra = sorted(set(there) - set(listed) - {CHECKSUMS})
    if extra:
        raise VerificationError(
            f"there, and not listed in {CHECKSUMS}",
            where=root / extra[0],
            expected="no such file",
            found="a file" + _more(extra),
            hint="move it out of the directory: nothing vouches for it",
        )
    for name, expected in listed.items():
        found = _sha256(there[name], on_bytes)
        if found != expected:
            raise VerificationError(
                "the file is not the one that was written", where=root / name, expected=expected, found=found
            )
    return listed


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _is_name(name: str) -> bool:
    """Whether `name` is a file's inside the directory, in its only spelling, without what coreutils would escape."""
    parts = PurePosixPath(name).parts
    plain = not any(character < " " or character in "\\\x7f" for character in name) and name.strip() == name
    inside = bool(parts) and not name.startswith("/") and ".." not in parts
    return plain and inside and PurePosixPath(name).as_posix() == name and name != CHECKSUMS


def _walk(root: Path, prefix: str, *, blobs: tuple[Path, ...]) -> Iterator[tuple[str, Path]]:
    """Name and place of the bytes of every file below `root`. Raises VerificationError for a special file, or a link not to `blobs`."""
    with reporting(root, "list"):
        paths = sorted(root.iterdir())
    for path in paths:
        name, real = prefix + path.name, path
        with reporting(path, "look at"):
            mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            real = Path(os.path.realpath(path))
            if real.parent not in blobs:
                raise VerificationError("a symbolic link", where=path, expected="a regular file")
            with reporting(path, "look at"):
                mode = real.lstat().st_mode
        if name in HUB_LEFTOVERS:
            continue
        if stat.S_ISDIR(mode) and real is path:
            yield from _walk(path, f"{name}/", blobs=blobs)
        elif stat.S_ISREG(mode):
            yield name, real
        else:
            raise VerificationError("neither a file nor a directory", where=path, expected="a regular file")


def _sha256(path: Path, on_bytes: Callable[[int], None] | None) -> str:
    digest = hashlib.sha256()
    with reporting(path, "read"):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            while block := os.read(descriptor, _CHUNK):
                digest.update(block)
                if on_bytes is not None:
                    on_bytes(len(block))
        finally:
            os.close(descriptor)
    return digest.hexdigest()


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}..."
