"""Write, read and check SHA256SUMS, which lists every other file of an output directory.

Input: digests by name, or a directory. Output: bytes in the format of `sha256sum -c`, or the digests of all files, checked by hashing them.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from ligo_convert.checkpoints.files import CONFIG, blob_folders
from ligo_convert.errors import LigoError, VerificationError
from ligo_convert.io.files import reporting
from ligo_convert.outputs.layout import CHECKSUMS, PROVENANCE

# Name -> type of what the Hub, its client and git add to a downloaded copy. No library reads a model from them.
HUB_LEFTOVERS = {".gitattributes": stat.S_IFREG, ".cache/huggingface": stat.S_IFDIR, ".git": stat.S_IFDIR}

_HEX = re.compile(r"[0-9a-f]{64}")

_SUM = re.compile(r"([0-9a-f]{64})  (\S|\S.*\S)")

_CHUNK = 1 << 20


def sums(files: Mapping[str, str]) -> bytes:
    """Return the content of SHA256SUMS, sorted by name. `sha256sum -c ligo/SHA256SUMS` in the directory checks it."""
    for name, digest in files.items():
        if not _is_name(name) or not _HEX.fullmatch(digest):
            raise LigoError("not a file name and its SHA-256", where=CHECKSUMS, found=f"{digest}  {name}")
    return "".join(f"{files[name]}  {name}\n" for name in sorted(files)).encode()


def read_sums(data: bytes) -> dict[str, str]:
    """Parse a SHA256SUMS file written by `sums` to name -> SHA-256. Raises VerificationError for any other format or order."""
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError as error:
        raise VerificationError(f"not UTF-8 (byte {error.start})", where=CHECKSUMS) from None
    if lines == [""]:
        raise VerificationError("the file is empty", where=CHECKSUMS)
    if lines.pop():
        raise VerificationError("the last line is incomplete", where=CHECKSUMS)
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
                "the names are not sorted or not unique", where=f"{CHECKSUMS}:{number}", found=_short(match[2])
            )
        last = match[2]
        files[last] = match[1]
    return files


def _check_is_output(root: Path) -> None:
    """Raise VerificationError for a directory without any file of an output, such as a plain checkpoint."""
    if (root / CHECKSUMS).parent.exists():
        return
    checkpoint = (root / CONFIG).exists()
    raise VerificationError(
        "this is a checkpoint, not an output of ligo-convert"
        if checkpoint
        else "this is not an output of ligo-convert",
        where=root,
        expected=f"a directory that `ligo-convert run` or `apply` wrote: it has {CHECKSUMS} and {PROVENANCE}",
        found=f"no folder {Path(CHECKSUMS).parent}",
        hint="`ligo-convert inspect` tells what a checkpoint holds" if checkpoint else "name the output directory",
    )


def check_sums(root: Path, *, on_bytes: Callable[[int], None] | None = None) -> dict[str, str]:
    """Hash every file of an output directory and compare with its SHA256SUMS.

    Files that the Hub's client adds to a downloaded copy (`HUB_LEFTOVERS`) are ignored. In a snapshot in the client's cache, symbolic links
    to blobs of the same repository count as files.

    Args:
        root: the output directory.
        on_bytes: called after each block with its number of bytes.

    Returns:
        Name -> SHA-256 of every listed file.

    Raises:
        VerificationError: a file is missing, differs, is not listed, or is not a regular file.
    """
    _check_is_output(root)
    existing = dict(_walk(root, "", blobs=blob_folders(root)))
    if CHECKSUMS not in existing:
        raise VerificationError(
            "SHA256SUMS is missing",
            where=root / CHECKSUMS,
            hint="the file was deleted after the run; restore it, or run the recipe again into another directory",
        )
    with reporting(existing[CHECKSUMS], "read"):
        data = existing[CHECKSUMS].read_bytes()
    listed = read_sums(data)
    missing = [name for name in listed if name not in existing]
    if missing:
        raise VerificationError(
            f"listed in {CHECKSUMS}, but missing",
            where=root / missing[0],
            expected=listed[missing[0]],
            found="no such file" + _more(missing),
        )
    extra = sorted(set(existing) - set(listed) - {CHECKSUMS})
    if extra:
        raise VerificationError(
            f"the file is not listed in {CHECKSUMS}",
            where=root / extra[0],
            expected="no such file",
            found="a file" + _more(extra),
            hint="move it out of the directory",
        )
    for name, expected in listed.items():
        found = _sha256(existing[name], on_bytes)
        if found != expected:
            raise VerificationError(
                "the file changed since it was written", where=root / name, expected=expected, found=found
            )
    return listed


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _is_name(name: str) -> bool:
    """Return True if `name` is a normalised relative path inside the directory, without characters that coreutils escapes."""
    parts = PurePosixPath(name).parts
    plain = not any(character < " " or character in "\\\x7f" for character in name) and name.strip() == name
    inside = bool(parts) and not name.startswith("/") and ".." not in parts
    return plain and inside and PurePosixPath(name).as_posix() == name and name != CHECKSUMS


def _walk(root: Path, prefix: str, *, blobs: tuple[Path, ...]) -> Iterator[tuple[str, Path]]:
    """Yield name and real path of every file below `root`.

    Raises:
        VerificationError: a special file, or a symbolic link that does not point into `blobs`.
    """
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
        if stat.S_IFMT(mode) == HUB_LEFTOVERS.get(name):
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
