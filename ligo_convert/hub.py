"""A repository of the Hub in, a folder of checked files at one pinned commit out.

All requests go through the Hub's own client and its cache. What the client raises comes out as one clear line. What may be another in
a moment is asked again; only where it goes on failing does the cache say what a revision means.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

from ligo_convert.checkpoint_files import CONFIG, INDEX, TOKENIZER_FILES, WEIGHTS, Place, check_size, small_file
from ligo_convert.errors import HubUnreachable, LigoError, MachineError, RecipeError, SourceChanged, SourceError
from ligo_convert.fs import write_file
from ligo_convert.headers import Header, header_end, parse_header
from ligo_convert.hub_names import is_commit, is_hub_id, is_revision
from ligo_convert.jsoncore import short

# Seconds before each further try of a request that failed for the moment: a try in all more than there are.
DELAYS = (1.0, 2.0, 4.0, 8.0)
# Answers that may be another in a moment.
BUSY = (408, 429, 500, 502, 503, 504, 520, 522, 524)
# What it is called where nothing answers at all: a machine without a network says so every time, and need not be asked so often.
_UNCONNECTED, _UNCONNECTED_TRIES = ("ConnectError", "ConnectTimeout"), 3
T = TypeVar("T")
_UNREACHED = "go online, or fetch it first on a machine that is: hf download"


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
        return "" if self.complete else f"{_UNREACHED} {self.label} --revision {self.revision}"

    def _listing(self, revision: str) -> _Listing:
        """The repository as the Hub has it now; as the cache has it where the Hub is switched off, or goes on failing."""
        from huggingface_hub import constants

        if constants.is_offline_mode():
            return self._cached(revision, because=None)
        tries = 0

        def told(error: HubUnreachable) -> None:
            nonlocal tries
            tries += 1
            if error.found in _UNCONNECTED and tries >= _UNCONNECTED_TRIES:
                raise error

        try:
            return patiently(lambda: self._online(revision), told=told)
        except HubUnreachable as error:
            if not error.passing:
                raise
            # Not before: the cache may know an older commit than the one that the Hub would name in a moment.
            return self._cached(revision, because=error)

    def _online(self, revision: str) -> _Listing:
        """The repository as the Hub has it now. Raises HubUnreachable where it is out of reach or fails."""
        from huggingface_hub import HfApi, constants

        with _hub_errors(self.label, revision):
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
            with _hub_errors(self.label, revision):
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
        fetch = f"{_UNREACHED} {self.label}"
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
            with _hub_errors(self.label, self.revision or ""):
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

        return patiently(download)

    def _prefix(self, name: str, count: int) -> tuple[bytes, int]:
        """The first `count` bytes of a file on the Hub (fewer where it is shorter), and its size."""
        from huggingface_hub import constants, hf_hub_url, hf_raise_for_status
        from huggingface_hub.utils import build_hf_headers, http_stream_backoff  # type: ignore[attr-defined]

        url = hf_hub_url(self.label, name, revision=self.revision)
        headers = {**build_hf_headers(), "Range": f"bytes=0-{count - 1}", "Accept-Encoding": "identity"}
        data = bytearray()
        with (
            _hub_errors(self.label, self.revision or ""),
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


def patiently(call: Callable[[], T], *, told: Callable[[HubUnreachable], None] | None = None) -> T:
    """`call`, and again, some times, where the Hub is busy or out of reach for the moment.

    Args:
        told: called before each further try.
    """
    for delay in (*DELAYS, None):
        try:
            return call()
        except HubUnreachable as error:
            if delay is None or not error.passing:
                raise
            if told is not None:
                told(error)
            time.sleep(delay)
    raise AssertionError("the last try returns or raises")


def check_endpoint() -> None:
    """Raise MachineError where the client would send its token over a plain connection."""
    from huggingface_hub import constants

    parts = urlsplit(constants.ENDPOINT)
    if parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        # The client sends the token to whatever this names.
        raise MachineError("the endpoint of the Hub is not https", where="HF_ENDPOINT", hint="use an https address")


@contextmanager
def _hub_errors(label: str, revision: str) -> Iterator[None]:
    """Turn what the Hub's client raises into one clear line. Its own texts are left out: they hold addresses."""
    try:
        yield
    except Exception as error:
        said = _error_of(error, label, revision)
        if said is None:
            raise
        raise said from None


def _error_of(error: BaseException, label: str, revision: str) -> LigoError | None:
    """What an error of the Hub's client is to its user; None where it is none of the client's."""
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    if isinstance(error, errors.GatedRepoError):
        hint = "accept its conditions on the Hub, log in with `hf auth login`, and run again"
        return SourceChanged("the repository is gated", where=label, hint=hint)
    if isinstance(error, errors.RepositoryNotFoundError):
        hint = "check the id; for a private repository log in with `hf auth login`; a directory begins with ./"
        return SourceChanged("no such repository on the Hub, or it is private", where=label, hint=hint)
    if isinstance(error, errors.RevisionNotFoundError):
        return SourceChanged("no such revision", where=label, found=revision, hint="name a branch, tag or commit")
    if isinstance(error, errors.DisabledRepoError):
        return SourceChanged("the Hub disabled the repository", where=label)
    if isinstance(error, (errors.LocalEntryNotFoundError, errors.RevisionResolutionError)):
        # The client looks into its cache where the Hub fails, and complains of the cache: what the Hub did is the cause.
        cause = error.__cause__
        if cause is not None and not isinstance(cause, errors.OfflineModeIsEnabled):
            return _error_of(cause, label, revision)
    if isinstance(error, (errors.LocalEntryNotFoundError, errors.RevisionResolutionError, errors.OfflineModeIsEnabled)):
        hint = f"{_UNREACHED} {label}"
        return SourceChanged("the cache does not hold all of it", where=label, found=revision, hint=hint)
    if isinstance(error, errors.EntryNotFoundError):
        return SourceChanged("the Hub lists a file that it does not have", where=label, found=revision)
    if isinstance(error, errors.HfHubHTTPError):
        return _refusal(error.response.status_code, label)
    if isinstance(error, (httpx.HTTPError, httpx.InvalidURL)):
        return HubUnreachable(
            "the Hub cannot be reached",
            where=label,
            found=type(error).__name__,
            hint="check the network, HF_ENDPOINT and the proxy settings, and run again",
            passing=isinstance(error, httpx.TransportError),
        )
    if isinstance(error, OSError):
        machine = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE)
        if error.errno in machine:
            return MachineError(f"the cache of the Hub: {os.strerror(error.errno)}", where=label)
        return SourceChanged("the download failed", where=label, found=type(error).__name__, hint="run again")
    if isinstance(error, (ValueError, KeyError, TypeError)):
        what = "the answer is not one of the Hub"
        return SourceChanged(what, where=label, found=type(error).__name__, hint="check HF_ENDPOINT")
    return None


def _refusal(status: int, label: str) -> SourceChanged:
    """The error of an answer that is one: only what may be another in a moment is asked again."""
    found = f"HTTP status {status}"
    if status in (401, 403):
        return SourceChanged("the Hub refuses access", where=label, found=found, hint="log in")
    if status >= 500 or status in BUSY:
        what, hint = "the Hub answered with an error", "try again later"
        return HubUnreachable(what, where=label, found=found, hint=hint, passing=True)
    return SourceChanged("the Hub refuses the request", where=label, found=found, hint="check HF_ENDPOINT")
