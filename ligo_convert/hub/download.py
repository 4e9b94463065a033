"""Download the files of a Hub repository at one pinned commit, and check them.

Input: a repository id and a revision. Output: a folder of checked files in the Hub's cache.

All requests go through the Hub's own client and its cache. Temporary failures are retried. The cache resolves a revision only when the Hub
keeps failing or is switched off.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ligo_convert.checkpoints.files import CONFIG, INDEX, TOKENIZER_FILES, WEIGHTS, Place, check_size, small_file
from ligo_convert.checkpoints.headers import Header, header_end, parse_header
from ligo_convert.checkpoints.other_weights import hint_for
from ligo_convert.errors import HubUnreachable, LigoError, RecipeError, SourceChanged, SourceError
from ligo_convert.hub.client import UNCONNECTED, UNCONNECTED_TRIES, check_endpoint, with_retries
from ligo_convert.hub.errors import FETCH_FIRST, translate_errors
from ligo_convert.hub.names import is_commit, is_hub_id, is_revision
from ligo_convert.io.files import write_file
from ligo_convert.io.strict_json import short


def open_repository(model: str, *, revision: str) -> Repository:
    """Resolve `revision` of the Hub repository `model` to a commit and download its config.

    Raises:
        SourceError: `model` is not a Hub id, or the repository has no config.
        RecipeError: `revision` is not a possible name of a branch, tag or commit.
        SourceChanged: the Hub cannot be reached, and the cache does not have the revision.
        MachineError: the endpoint is not https, or the cache cannot be written.
    """
    repository = _resolve_commit(model, revision)
    repository.check_checkpoint()
    repository.root = repository.snapshot([CONFIG])
    return repository


def fetch_tokenizer(name: str, *, revision: str = "main") -> Path:
    """Download the tokenizer files and the config of the Hub repository `name`.

    Returns:
        The folder of the commit in the Hub's cache. Each tokenizer file in it matches the digest that the Hub lists. The folder may
        contain other files.

    Raises:
        SourceError: `name` is not a Hub id, or a file is too large.
        RecipeError: `revision` is not a possible name of a branch, tag or commit, or the repository has no tokenizer.
        SourceChanged: the Hub cannot be reached and the cache does not have the files, or a file is damaged.
        MachineError: as for `open_repository`.
    """
    repository = _resolve_commit(name, revision)
    files = [file for file in (CONFIG, *TOKENIZER_FILES) if file in repository.names]
    repository.check_tokenizer()
    # Request every possible name, not only the listed ones: offline, the client then reports a file that the cache lacks.
    repository.root = repository.snapshot([CONFIG, *TOKENIZER_FILES])
    for file in files:
        small_file(repository, file)
    return repository.root


def _resolve_commit(model: str, revision: str) -> Repository:
    if not is_hub_id(model):
        raise SourceError(
            "no such directory, and not a Hub id",
            where=short(model),
            expected="a directory, `name` or `org/name`",
        )
    if not is_revision(revision):
        raise RecipeError("not a branch, tag or commit", where=model, found=short(revision))
    return Repository(model, revision)


@dataclass(frozen=True, kw_only=True)
class _Listing:
    """The files of a repository at one commit, as the Hub or its cache lists them.

    Attributes:
        commit: the full commit hash.
        names: every file, or only the cached ones if the listing comes from the cache.
        sizes: file name -> bytes; empty for a listing from the cache.
        expected: file name -> SHA-256 (large files) or git blob id (others), in hex; empty for a listing from the cache.
    """

    commit: str
    names: frozenset[str]
    sizes: dict[str, int] = field(default_factory=dict)
    expected: dict[str, str] = field(default_factory=dict)


class Repository(Place):
    """A `Place` for a model repository of the Hub at one commit, read through the Hub's own client and cache."""

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
        self.lists_folders = self.complete

    def listed_size(self, name: str) -> int | None:
        return self._sizes.get(name, 0) if self.complete else None

    def check_checkpoint(self) -> None:
        """Raise SourceError or SourceChanged if the file names show that the repository has no usable checkpoint."""
        if CONFIG not in self.names:
            raise (SourceError if self.complete else SourceChanged)(
                f"no {CONFIG}", where=self._at(), hint=self._offline() or hint_for(self.names - {WEIGHTS, INDEX})
            )
        if not self.complete and not {WEIGHTS, INDEX} & self.names:
            raise SourceChanged("the weights are not in the cache", where=self._at(), hint=self._offline())

    def check_tokenizer(self) -> None:
        """Raise RecipeError or SourceChanged if the repository has no tokenizer file."""
        if self.names.isdisjoint(TOKENIZER_FILES):
            if not self.complete:
                raise SourceChanged("the tokenizer is not in the cache", where=self._at(), hint=self._offline())
            raise RecipeError(
                "the repository has no tokenizer", where=self._at(), hint="name another one in fit.data.tokenizer"
            )

    def fetch(self, names: Iterable[str]) -> None:
        wanted = [name for name in names if not (self.root / name).exists()]
        if wanted:
            self.snapshot(wanted)
        for name in wanted:
            if not os.path.lexists(self.root / name):
                raise SourceChanged("the file is not in the cache", where=f"{self.label}/{name}", hint=self._offline())

    def header(self, name: str) -> tuple[Header, int]:
        """Read the safetensors header and size of a file with at most two range requests, without downloading the file."""
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
        """List the repository on the Hub; use the cache if the Hub is switched off or keeps failing."""
        from huggingface_hub import constants

        if constants.is_offline_mode():
            return self._cached(revision, because=None)
        failures = 0

        def give_up_without_network(error: HubUnreachable) -> None:
            nonlocal failures
            failures += 1
            if error.found in UNCONNECTED and failures >= UNCONNECTED_TRIES:
                raise error

        try:
            return with_retries(lambda: self._online(revision), before_retry=give_up_without_network)
        except HubUnreachable as error:
            if not error.passing:
                raise
            # The cache is the last resort: it may resolve the revision to an older commit than the Hub would.
            return self._cached(revision, because=error)

    def _online(self, revision: str) -> _Listing:
        """List the repository on the Hub. Raises HubUnreachable if the Hub cannot be reached or fails."""
        from huggingface_hub import HfApi, constants

        with translate_errors(self.label, revision):
            info = HfApi().model_info(
                self.label, revision=revision, files_metadata=True, timeout=constants.HF_HUB_ETAG_TIMEOUT
            )
        if info.sha is None or not is_commit(info.sha):
            raise SourceChanged(
                "the Hub did not return a commit for the revision", where=self.label, found=short(info.sha)
            )
        self._cache_revision(revision, info.sha)
        files = {file.rfilename: file for file in info.siblings or ()}
        expected = {name: file.lfs.sha256 if file.lfs else file.blob_id for name, file in files.items()}
        return _Listing(
            commit=info.sha,
            names=frozenset(files),
            sizes={name: file.size for name, file in files.items() if file.size is not None},
            expected={name: digest for name, digest in expected.items() if digest is not None},
        )

    def _cache_revision(self, revision: str, commit: str) -> None:
        """Record in the cache which commit a revision resolves to, so that it can be resolved offline later.

        The file has the client's own format. The client itself would send a second request, which may fail or return another commit.
        """
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        if revision == commit:
            return
        path = Path(
            constants.HF_HUB_CACHE, repo_folder_name(repo_id=self.label, repo_type="model"), "refs", revision
        ).expanduser()
        # The record only helps later offline runs, so a cache that cannot be written does not stop this one.
        with suppress(LigoError, OSError):
            if not path.is_file() or path.read_text() != commit:
                write_file(path, commit.encode(), replace=True)

    def _cached(self, revision: str, *, because: HubUnreachable | None) -> _Listing:
        """List the repository in the cache. `because`: the Hub's failure; None if the Hub is switched off."""
        from huggingface_hub import HfApi

        self.complete = False
        try:
            with translate_errors(self.label, revision):
                commit = HfApi().resolve_revision(self.label, revision=revision, local_files_only=True).resolved
            self.revision = commit
            root = self.snapshot([CONFIG]) if is_commit(commit) else None
        except SourceChanged:
            raise self._unavailable(revision, because) from None
        if root is None:
            raise SourceChanged("the cache has a damaged record of the revision", where=self.label, found=short(commit))
        if because is not None:
            self.warnings.append(
                f"{self.label}: the Hub cannot be reached ({because.found}); reading commit {commit} from the cache"
            )
        return _Listing(commit=commit, names=frozenset(entry.name for entry in root.iterdir()))

    def _unavailable(self, revision: str, because: HubUnreachable | None) -> SourceChanged:
        """Return the error for a revision that neither the Hub nor the cache provides."""
        fetch = f"{FETCH_FIRST} {self.label}"
        if because is None:
            what = "the Hub is switched off by HF_HUB_OFFLINE, and the cache does not have the revision"
            return SourceChanged(what, where=self.label, found=revision, hint=fetch)
        return HubUnreachable(
            f"{because.what}, and the cache does not have the revision {revision}",
            where=self.label,
            found=because.found,
            hint=f"{because.hint}; or {fetch}",
            passing=because.passing,
        )

    def snapshot(self, names: Iterable[str]) -> Path:
        """Download these files into the cache and return the directory of the commit."""
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
            # If the Hub fails, the client may return the cached folder although files are missing in it.
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
        """Return the first `count` bytes of a file on the Hub, or all of a shorter file, and the size of the file."""
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
                # A server that ignores the range header sends the whole file.
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
