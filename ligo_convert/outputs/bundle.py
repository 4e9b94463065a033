"""What of an output directory is published: every file that its manifest names, byte for byte, and nothing else.

What comes in: a finished output directory. What goes out: a `Publication`: names, sizes and digests, under a licence. Where a licence is
stated that the card does not have, the card, the provenance and SHA256SUMS are made anew in memory, so that what is published is whole and
can be verified like any other; the directory itself stays as it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ligo_convert.checkpoints.digests import git_blob
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

# Text of ours, in which something of this machine could stand; a tokenizer's files are the source's, which are public.
_OWN_TEXT = (".md", ".json", ".jsonl", ".yaml")

_FOREIGN = (
    "tokenizer",
    "vocab",
    "merges",
    "special_tokens",
    "added_tokens",
    "generation_config",
    "preprocessor_config",
)


@dataclass(frozen=True, kw_only=True)
class Item:
    """One file: its name in the repository, its bytes by a path or in memory, its size and SHA-256."""

    name: str
    content: Path | bytes
    nbytes: int
    sha256: str

    @property
    def is_weights(self) -> bool:
        return self.name.endswith(".safetensors")

    def read(self) -> bytes:
        """The bytes, which are the ones that were verified. Raises VerificationError."""
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
        """The id that git has for the file's bytes, in hex. Reads them. Raises VerificationError."""
        data = self.read()
        digest = git_blob(len(data))
        digest.update(data)
        return digest.hexdigest()

    def changed(self, found: str) -> VerificationError:
        return VerificationError(
            "the file changed since it was verified",
            where=self.content if isinstance(self.content, Path) else self.name,
            expected=self.sha256,
            found=found,
            hint="nothing may write to the directory while it is published",
        )

    def unreadable(self, error: Exception) -> VerificationError:
        found = getattr(error, "strerror", None) or type(error).__name__
        return VerificationError("the file cannot be read any more", where=self.name, found=found)


@dataclass(frozen=True, kw_only=True)
class Publication:
    """Everything that goes to the Hub. `items` by name, sorted; `digest` of its SHA256SUMS stands for all of it."""

    directory: Path
    items: Mapping[str, Item]
    license: str
    family: str
    digest: str

    @property
    def nbytes(self) -> int:
        return sum(item.nbytes for item in self.items.values())


def pack(directory: Path, *, license: str | None = None, progress: Progress | None = None) -> Publication:
    """Verify a directory and say what of it is published.

    Args:
        license: as stated by a person; default: the one that the card has.

    Raises:
        VerificationError: it is not whole, or holds a file that its manifest does not name.
        PublishRefused: no licence; something private in a file.
        RecipeError: `license` is none.
    """
    report = verify(directory, progress=progress)
    text = _read(directory, CARD)
    inherited = stated_license(text)
    known = license_to_publish(stated=license, inherited=inherited, where=directory)
    listed = _listed(directory)
    changed = {} if inherited is not None and inherited.lower() == known else _amended(directory, text, known, listed)
    items = {}
    for name in sorted([*listed, CHECKSUMS]):
        content: Path | bytes = changed.get(name, directory / name)
        data = content if isinstance(content, bytes) else None
        nbytes = len(data) if data is not None else (directory / name).stat().st_size
        sha256 = hashlib.sha256(data).hexdigest() if data is not None else listed.get(name) or _sha256(directory, name)
        items[name] = Item(name=name, content=content, nbytes=nbytes, sha256=sha256)
    publication = Publication(
        directory=directory, items=items, license=known, family=str(report["family"]), digest=items[CHECKSUMS].sha256
    )
    _check_private(publication)
    return publication


def _listed(directory: Path) -> dict[str, str]:
    return read_sums(_read(directory, CHECKSUMS))


def _read(directory: Path, name: str) -> bytes:
    with reporting(directory / name, "read"):
        return (directory / name).read_bytes()


def _sha256(directory: Path, name: str) -> str:
    return hashlib.sha256(_read(directory, name)).hexdigest()


def _amended(directory: Path, text: bytes, license: str, listed: Mapping[str, str]) -> dict[str, bytes]:
    """The three files that a licence stands in, directly or by a digest."""
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


def _check_private(publication: Publication) -> None:
    """Once more where it is published: this may be another machine than the one that wrote it, with other places and secrets.

    Names of an account and a machine are words at times: they were looked for where the text was made, in what came from outside. Here
    that cannot be told apart any more, and whoever is called like a word of a finished card could never publish it.
    """
    for name, item in publication.items.items():
        last = name.rpartition("/")[2]
        if not name.endswith(_OWN_TEXT) or last.startswith(_FOREIGN):
            continue
        data = item.content if isinstance(item.content, bytes) else _read(publication.directory, name)
        try:
            text = data.decode()
        except UnicodeDecodeError:
            raise VerificationError("not UTF-8", where=publication.directory / name) from None
        check_nothing_private(text, where=name, names_in=(), refusing=PublishRefused)
