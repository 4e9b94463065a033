"""A repository of the Hub in, a folder of checked files at one pinned commit out.

All requests go through the Hub's own client and its cache. What the client raises comes out as one clear line. What may be another in
a moment is asked again; only where it goes on failing does the cache say what a revision means.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ligo_convert.checkpoints.files import CONFIG, INDEX, TOKENIZER_FILES, WEIGHTS, Place, check_size, small_file
from ligo_convert.checkpoints.headers import Header, header_end, parse_header
from ligo_convert.errors import HubUnreachable, LigoError, RecipeError, SourceChanged, SourceError
from ligo_convert.hub.client import UNCONNECTED, UNCONNECTED_TRIES, check_endpoint, with_retries
from ligo_convert.hub.errors import FETCH_FIRST, translate_errors
from ligo_convert.hub.names import is_commit, is_hub_id, is_revision
from ligo_convert.io.files import write_file
from ligo_convert.io.strict_json import short


def open_repository(model: str, *, revision: str) -> Repository:
    """The checkpoint `model`, an id of the Hub, at what `revision` means now; its config is fetched.

    Raises:
        SourceError: no id of the Hub; no config there.
        RecipeError: no branch, tag or commit can be called `revision`.
        SourceChanged: out of reach, and not in the cache.
        MachineError: an endpoint that is not https; a cache that cannot be written.
    """
    repository = _pinned(model, revision)
    repository.check_checkpoint()
    repository.root = repository.snapshot([CONFIG])
    return repository


def fetch_tokenizer(name: str, *, revision: str = "main") -> Path:
    """Fetch a tokenizer's files, and the config beside them, from the repository `name` of the Hub.

    Returns the folder of the commit in the Hub's cache; each file of a tokenizer in it is checked against the digest that
    the Hub gives. Other files may lie there too.

    Raises:
        SourceError: no id of the Hub; a file that is too large.
        RecipeError: no branch, tag or commit can be called `revision`; a repository without a tokenizer.
        SourceChanged: out of reach and not in the cache, or damaged.
        MachineError: as `open_repository`.
    """
    repository = _pinned(name, revision)
    files = [file for file in (CONFIG, *TOKENIZER_FILES) if file in repository.names]
    repository.check_tokenizer()
    # By all their names, not only those found: of a cache, the client then says whether one that belongs there is missing.
    repository.root = repository.snapshot([CONFIG, *TOKENIZER_FILES])
    for file in files:
        small_file(repository, file)
    return repository.root


def _pinned(model: str, revision: str) -> Repository:
    if not is_hub_id(model):
        raise SourceError(
            "no such directory, and no id of the Hub either",
            where=short(model),
            expected="a directory, `name` or `org/name`",
        )
    if not is_revision(revision):
        raise RecipeError("not a branch, tag or commit", where=model, found=short(revision))
    return Repository(model, revision)


@dataclass(frozen=True, kw_only=True)
class _Listing:
    """What the Hub, or its cache, says of a repository at one commit."""

    commit: str
    names: frozenset[str]
    sizes: dict[str, int] = field(default_factory=dict)
    expected: dict[str, str] = field(default_factory=dict)


class Repository(Place):
    """A model repository of the Hub at one commit as a `Place`, read through the Hub's own client and cache."""

    def __init__(self, model: str, revision: str) -> None:
        self.label = model
        self.warnings = []
        self._sizes: dict[str, int] = {}
        self._listed: frozenset[str] = frozenset()
        check_endpoint()
        listing = self._listing(revision)
        self.revision = listing.commit
        self.names, self.expected, self._sizes = listing.names, listing.expected, listing.sizes
        self._listed = listing.names if self.complete else frozenset()

    def check_checkpoint(self) -> None:
        """Refuse what cannot be a checkpoint, by the names of its files."""
        if CONFIG not in self.names:
            raise (SourceError if self.complete else SourceChanged)(
                f"no {CONFIG}", where=self._at(), hint=self._offline()
            )
        if not self.complete and not {WEIGHTS, INDEX} & self.names:
            raise SourceChanged("the weights are not in the cache", where=self._at(), hint=self._offline())

    def check_tokenizer(self) -> None:
        """Refuse what holds no file of a tokenizer."""
        if self.names.isdisjoint(TOKENIZER_FILES):
            if not self.complete:
                raise SourceChanged("the tokenizer is not in the cache", where=self._at(), hint=self._offline())
            raise RecipeError("no tokenizer there", where=self._at(), hint="name another in fit.data.tokenizer")

    def fetch(self, names: Iterable[str]) -> None:
        wanted = [name for name in names if not (self.root / name).exists()]
        if wanted:
            self.snapshot(wanted)
        for name in wanted:
            if not os.path.lexists(self.root / name):
                raise SourceChanged("the file is not in the cache", where=f"{self.label}/{name}", hint=self._offline())

    def header(self, name: str) -> tuple[Header, int]:
        """Of a file that is on the Hub only, by two ranged requests at most."""
        label = f"{self.label}/{name}"
        if not self.complete:
            raise SourceChanged("the file is not in the cache", where=label, hint=self._offline())
        data, size = self._prefix(name, 64 << 10)
        end = header_end(data[:256], file_size=size, label=label)
        if end > len(data):
            data, size = self._prefix(name, end)
        return parse_header(data, file_size=size, label=label), size

    def _at(self) -> str:
        return f"{self.label} at {self.revision}"

    def _offline(self) -> str:
        return "" if self.complete else f"{FETCH_FIRST} {self.label} --revision {self.revision}"

    def _listing(self, revision: str) -> _Listing:
        """The repository as the Hub has it now; as the cache has it where the Hub is switched off, or goes on failing."""
        from huggingface_hub import constants

        if constants.is_offline_mode():
            return self._cached(revision, because=None)
        tries = 0

        def told(error: HubUnreachable) -> None:
            nonlocal tries
            tries += 1
            if error.found in UNCONNECTED and tries >= UNCONNECTED_TRIES:
                raise error

        try:
            return with_retries(lambda: self._online(revision), told=told)
        except HubUnreachable as error:
            if not error.passing:
                raise
            # Not before: the cache may know an older commit than the one that the Hub would name in a moment.
            return self._cached(revision, because=error)

    def _online(self, revision: str) -> _Listing:
        """The repository as the Hub has it now. Raises HubUnreachable where it is out of reach or fails."""
        from huggingface_hub import HfApi, constants

        with translate_errors(self.label, revision):
            info = HfApi().model_info(
                self.label, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
            )
        if info.sha is None or not is_commit(info.sha):
            raise SourceChanged("the Hub did not say which commit this is", where=self.label, found=short(info.sha))
        self._note(revision, info.sha)
        files = {file.rfilename: file for file in info.siblings or ()}
        expected = {name: file.lfs.sha256 if file.lfs else file.blob_id for name, file in files.items()}
        return _Listing(
            commit=info.sha,
            names=frozenset(files),
            sizes={name: file.size for name, file in files.items() if file.size is not None},
            expected={name: digest for name, digest in expected.items() if digest is not None},
        )

    def _note(self, revision: str, commit: str) -> None:
        """Have the cache say what a revision means, so that it is found without the Hub later.

        As the client notes it; the client itself would ask the Hub a second time, which may fail, or name another commit by then.
        """
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        if revision == commit:
            return
        note = Path(
            constants.HF_HUB_CACHE, repo_folder_name(repo_id=self.label, repo_type="model"), "refs", revision
        ).expanduser()
        # A cache that takes no note, or that another process is writing to, is no reason not to go on.
        with suppress(LigoError, OSError):
            if not note.is_file() or note.read_text() != commit:
                write_file(note, commit.encode(), replace=True)

    def _cached(self, revision: str, *, because: HubUnreachable | None) -> _Listing:
        """The repository as the cache has it. `because`: why the Hub does not say it; None where it is switched off."""
        from huggingface_hub import HfApi

        self.complete = False
        try:
            with translate_errors(self.label, revision):
                commit = HfApi().resolve_revision(self.label, revision=revision, local_files_only=True).resolved
            self.revision = commit
            root = self.snapshot([CONFIG]) if is_commit(commit) else None
        except SourceChanged:
            raise self._nowhere(revision, because) from None
        if root is None:
            raise SourceChanged("the cache's note of the revision is damaged", where=self.label, found=short(commit))
        if because is not None:
            self.warnings.append(
                f"{self.label}: the Hub could not be reached ({because.found}); commit {commit} is read from the cache"
            )
        return _Listing(commit=commit, names=frozenset(entry.name for entry in root.iterdir()))

    def _nowhere(self, revision: str, because: HubUnreachable | None) -> SourceChanged:
        """The error where neither the Hub nor the cache has the revision."""
        fetch = f"{FETCH_FIRST} {self.label}"
        if because is None:
            what = "the Hub is switched off by HF_HUB_OFFLINE, and the cache does not hold the revision"
            return SourceChanged(what, where=self.label, found=revision, hint=fetch)
        return HubUnreachable(
            f"{because.what}, and the cache does not hold the revision {revision}",
            where=self.label,
            found=because.found,
            hint=f"{because.hint}; or {fetch}",
            passing=because.passing,
        )

    def snapshot(self, names: Iterable[str]) -> Path:
        """Bring these files into the cache and return the directory of the commit."""
        from huggingface_hub import snapshot_download
        from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

        class Quiet(tqdm):
            def __init__(self, *args: object, **kwargs: object) -> None:
                super().__init__(*args, **{**kwargs, "disable": True})  # type: ignore[no-untyped-call]

        names = list(names)
        side_files = [name for name in names if not name.endswith(".safetensors")]
        for name in side_files:
            check_size(self._sizes.get(name, 0), name, label=f"{self.label}/{name}")

        def download() -> Path:
            with translate_errors(self.label, self.revision or ""):
                root = Path(
                    snapshot_download(
                        self.label,
                        revision=self.revision,
                        allow_patterns=names,
                        local_files_only=not self.complete,
                        tqdm_class=Quiet if side_files else None,
                    )
                )
            # Where the Hub fails, the client may give the folder as it is in the cache.
            missing = [name for name in names if name in self._listed and not os.path.lexists(root / name)]
            if missing:
                raise HubUnreachable(
                    "the Hub did not send the file",
                    where=f"{self.label}/{missing[0]}",
                    hint="try again later",
                    passing=True,
                )
            return root

        return with_retries(download)

    def _prefix(self, name: str, count: int) -> tuple[bytes, int]:
        """The first `count` bytes of a file on the Hub (fewer where it is shorter), and its size."""
        from huggingface_hub import constants, hf_hub_url, hf_raise_for_status
        from huggingface_hub.utils import build_hf_headers, http_stream_backoff  # type: ignore[attr-defined]

        url = hf_hub_url(self.label, name, revision=self.revision)
        headers = {**build_hf_headers(), "Range": f"bytes=0-{count - 1}", "Accept-Encoding": "identity"}
        data = bytearray()
        with (
            translate_errors(self.label, self.revision or ""),
            http_stream_backoff(
                "GET", url, headers=headers, max_retries=2, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
            ) as response,
        ):
            hf_raise_for_status(response)
            total = response.headers.get("Content-Range", "").rpartition("/")[2]
            if response.status_code != 206:
                total = response.headers.get("Content-Length", "")
            for chunk in response.iter_bytes():
                data += chunk
                # A server that ignores the range would send the whole file.
                if len(data) >= count:
                    break
        size = self._sizes.get(name, int(total) if total.isascii() and total.isdigit() else -1)
        if len(data) < min(count, size) or size < 0:
            raise SourceChanged(
                "the Hub sent less than the header of the file",
                where=f"{self.label}/{name}",
                expected=f"{min(count, size)} bytes" if size >= 0 else "a size",
                found=f"{len(data)} bytes",
                hint="run again",
            )
        return bytes(data[:count]), size
