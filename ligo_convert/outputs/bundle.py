"""Collect what is published of an output directory: every file that SHA256SUMS lists, byte for byte, and SHA256SUMS itself.

Input: a finished output directory. Output: a `Bundle`: file names, sizes, digests and the licence.

If the publisher states a licence that the card does not have, the card, the provenance and SHA256SUMS are rewritten in memory. The
published copy then verifies like any other; the directory itself does not change. This module knows no destination.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ligo_convert.checkpoints.digests import git_blob
from ligo_convert.checkpoints.file_kinds import kind_of
from ligo_convert.checkpoints.files import CARD
from ligo_convert.checkpoints.layout import stated_license
from ligo_convert.errors import PublishRefused, VerificationError
from ligo_convert.hub.licenses import license_to_publish
from ligo_convert.io.files import reporting
from ligo_convert.outputs.card import under_license
from ligo_convert.outputs.checksums import read_sums, sums
from ligo_convert.outputs.layout import CHECKSUMS, PROVENANCE
from ligo_convert.outputs.privacy import check_nothing_private
from ligo_convert.outputs.provenance import read_statement
from ligo_convert.outputs.verify import verify
from ligo_convert.progress import Progress

# Text files that this package writes and that could contain private strings of this machine.
_WRITTEN_TEXT = (".md", ".json", ".jsonl", ".yaml")


@dataclass(frozen=True, kw_only=True)
class BundleFile:
    """One file of a bundle.

    Attributes:
        name: relative path at the destination, with forward slashes.
        content: the path of the file, or its bytes if they exist in memory only.
        nbytes: size in bytes.
        sha256: digest in hex.
    """

    name: str
    content: Path | bytes
    nbytes: int
    sha256: str

    @property
    def is_weights(self) -> bool:
        return self.name.endswith(".safetensors")

    def read(self) -> bytes:
        """Return the bytes. Raises VerificationError if they are not the verified ones."""
        if isinstance(self.content, bytes):
            return self.content
        try:
            data = self.content.read_bytes()
        except OSError as error:
            raise self.unreadable(error) from None
        found = hashlib.sha256(data).hexdigest()
        if found != self.sha256:
            raise self.changed(found)
        return data

    def blob(self) -> str:
        """Read the file and return its git blob id, in hex. Raises VerificationError as `read`."""
        data = self.read()
        digest = git_blob(len(data))
        digest.update(data)
        return digest.hexdigest()

    def changed(self, found: str) -> VerificationError:
        """Return the error for bytes with another digest, `found`."""
        return VerificationError(
            "the file changed since it was verified",
            where=self.content if isinstance(self.content, Path) else self.name,
            expected=self.sha256,
            found=found,
            hint="do not write to the directory while it is being published",
        )

    def unreadable(self, error: Exception) -> VerificationError:
        """Return the error for a file that raised `error` when it was read."""
        found = getattr(error, "strerror", None) or type(error).__name__
        return VerificationError("the file can no longer be read", where=self.name, found=found)


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Everything that is published of one output directory.

    Attributes:
        directory: the output directory.
        files: name -> file, sorted by name.
        license: identifier in lower case.
        family: name of the model family.
        digest: SHA-256 of SHA256SUMS, in hex; it identifies the bundle, since SHA256SUMS covers every other file.
    """

    directory: Path
    files: Mapping[str, BundleFile]
    license: str
    family: str
    digest: str

    @property
    def nbytes(self) -> int:
        """Size of all files together, in bytes."""
        return sum(file.nbytes for file in self.files.values())

    def contents(self) -> dict[str, Any]:
        """Return the licence, the size and the list of files as plain data, for `--json`."""
        return {
            "license": self.license,
            "bytes": self.nbytes,
            "files": [{"name": file.name, "bytes": file.nbytes, "sha256": file.sha256} for file in self.files.values()],
        }


def pack(directory: Path, *, license: str | None = None, progress: Progress | None = None) -> Bundle:
    """Verify an output directory and collect its files.

    Args:
        license: the licence that the publisher states; default: the one in the card.

    Raises:
        VerificationError: the directory is incomplete, or contains a file that SHA256SUMS does not list.
        PublishRefused: no licence is known, or a file contains something private.
        RecipeError: `license` is not a licence identifier.
    """
    report = verify(directory, progress=progress)
    text = _read(directory, CARD)
    inherited = stated_license(text)
    known = license_to_publish(stated=license, inherited=inherited, where=directory)
    listed = read_sums(_read(directory, CHECKSUMS))
    same_license = inherited is not None and inherited.lower() == known
    rewritten = {} if same_license else _rewrite_license(directory, text, known, listed)
    files = {}
    for name in sorted([*listed, CHECKSUMS]):
        content: Path | bytes = rewritten.get(name, directory / name)
        data = content if isinstance(content, bytes) else None
        nbytes = len(data) if data is not None else (directory / name).stat().st_size
        sha256 = hashlib.sha256(data).hexdigest() if data is not None else listed.get(name) or _sha256(directory, name)
        files[name] = BundleFile(name=name, content=content, nbytes=nbytes, sha256=sha256)
    bundle = Bundle(
        directory=directory, files=files, license=known, family=str(report["family"]), digest=files[CHECKSUMS].sha256
    )
    _check_private(bundle)
    return bundle


def _read(directory: Path, name: str) -> bytes:
    with reporting(directory / name, "read"):
        return (directory / name).read_bytes()


def _sha256(directory: Path, name: str) -> str:
    return hashlib.sha256(_read(directory, name)).hexdigest()


def _rewrite_license(directory: Path, text: bytes, license: str, listed: Mapping[str, str]) -> dict[str, bytes]:
    """Return the files that depend on the licence, rewritten: the card, and the provenance and SHA256SUMS with its new digest."""
    card = under_license(text.decode(), license).encode()
    digests = {**listed, CARD: hashlib.sha256(card).hexdigest()}
    label = f"{directory.name}/{PROVENANCE}"
    statement: dict[str, Any] = read_statement(_read(directory, PROVENANCE), label=label)
    for subject in statement["subject"]:
        if subject["name"] == CARD:
            subject["digest"]["sha256"] = digests[CARD]
    provenance = (json.dumps(statement, indent=2, allow_nan=False) + "\n").encode("ascii")
    digests[PROVENANCE] = hashlib.sha256(provenance).hexdigest()
    return {CARD: card, PROVENANCE: provenance, CHECKSUMS: sums(digests)}


def _check_private(bundle: Bundle) -> None:
    """Raise PublishRefused if a text file contains a private path or secret of this machine.

    The files were checked when they were written, but maybe on another machine. Account and host names are not searched for here: they may
    be ordinary words, and a finished text no longer shows which words came from outside.
    """
    for name, file in bundle.files.items():
        # What is carried from the source is as public as the source.
        if not name.endswith(_WRITTEN_TEXT) or kind_of(name).action in ("carry", "module"):
            continue
        data = file.content if isinstance(file.content, bytes) else _read(bundle.directory, name)
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise VerificationError("not UTF-8", where=bundle.directory / name) from None
        check_nothing_private(text, where=name, names_in=(), refusing=PublishRefused)
