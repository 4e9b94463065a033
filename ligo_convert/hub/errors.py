"""Translate the exceptions of the Hub's client into errors of this package, by one table for downloads and uploads.

Input: any exception that a request raised. Output: a `LigoError` with its exit code; exceptions that have nothing to do with the Hub pass.

The client's own messages contain addresses and sometimes local paths. Only the text that the server sent is passed on, on one line and cut.
"""

from __future__ import annotations

import errno
import os
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from ligo_convert.errors import (
    HubUnreachable,
    LigoError,
    MachineError,
    PublishRefused,
    SourceChanged,
    VerificationError,
    printable,
)

# HTTP statuses that a later attempt may not get again.
BUSY = (408, 429, 500, 502, 503, 504, 520, 522, 524)

FETCH_FIRST = "go online, or download it first on a machine that is online: hf download"

RETRY_UPLOAD = "run the same command again; it resumes from the files that are already uploaded"

LOG_IN = "run `hf auth login`, or set HF_TOKEN, and run again"

_NEEDS_WRITE_ACCESS = "use an account that may write there, or open a pull request with --pr"

_CHECK_NETWORK = "check the network, HF_ENDPOINT and the proxy settings"

_MACHINE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE)

_TOKEN = re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{6,}")

_QUERY = re.compile(r"(https?://[^\s?]*)\?\S*")

_LONGEST = 300


@dataclass(frozen=True, kw_only=True)
class Request:
    """The purpose of a request: the same exception means different things for a download and an upload.

    Attributes:
        repo: the repository, for messages.
        revision: the branch, tag or commit that was requested; empty if none.
        upload: True for publishing, False for downloading.
    """

    repo: str
    revision: str = ""
    upload: bool = False


@contextmanager
def translate_errors(repo: str, revision: str = "", *, upload: bool = False) -> Iterator[None]:
    """Raise a `LigoError` about `repo` in place of whatever the Hub's client raises in the block.

    Args:
        repo, revision, upload: the attributes of a `Request`.
    """
    request = Request(repo=repo, revision=revision, upload=upload)
    try:
        with _without_warnings() if upload else nullcontext():
            yield
    except LigoError:
        raise
    except Exception as error:
        translated = _translate(error, request)
        if translated is None:
            raise
        raise translated from None


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence the client's warnings about a model card: the Hub itself decides whether it accepts the card."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def sanitize(text: object) -> str:
    """Make a server's message safe to print: one line, cut, without query strings and tokens.

    >>> sanitize("Storage limit reached\\nsee https://hub/x?signature=abc")
    'Storage limit reached see https://hub/x?...'
    """
    line = printable(" ".join(str(text).split()))
    line = _QUERY.sub(r"\1?...", _TOKEN.sub(r"\1_...", line))
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def unexpected_response(repo: str, found: str) -> HubUnreachable:
    """Return the error for a server that answers, but not as the Hub does."""
    return HubUnreachable(
        "the response does not come from a Hub",
        where=repo,
        found=found,
        hint="check HF_ENDPOINT, and whether this network requires a login in a browser first; then run the same command again",
    )


# An error for one kind of exception; None leaves the exception to the rows below.
_Translation = Callable[[Any, Request], LigoError | None]


def _translate(error: BaseException, request: Request) -> LigoError | None:
    """Return the error of the first row of the table that fits; None if no row does."""
    for kinds, on_download, on_upload in _table():
        translation = on_upload if request.upload else on_download
        if translation is not None and isinstance(error, kinds):
            return translation(error, request)
    return None


def _table() -> tuple[tuple[tuple[type[BaseException], ...], _Translation | None, _Translation | None], ...]:
    """Return the translation table: exception types, translation for a download, translation for an upload.

    The first row that fits decides, so subclasses come before their bases. A row without a translation is skipped.
    """
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    unreadable_file = (FileNotFoundError, PermissionError, IsADirectoryError)
    return (
        ((errors.LocalEntryNotFoundError, errors.RevisionResolutionError), _cache_incomplete, None),
        ((errors.OfflineModeIsEnabled,), _cache_incomplete, _offline_upload),
        ((errors.LocalTokenNotFoundError,), None, _not_logged_in),
        ((errors.GatedRepoError,), _gated, _no_access),
        ((errors.RepositoryNotFoundError,), _no_repository, _no_access),
        ((errors.RevisionNotFoundError,), _no_revision, _branch_lost),
        ((errors.DisabledRepoError,), _disabled, None),
        ((errors.BadRequestError,), None, _bad_request),
        ((errors.EntryNotFoundError,), _file_lost, None),
        ((errors.HfHubHTTPError,), _status_on_download, _status_on_upload),
        ((httpx.HTTPError, httpx.InvalidURL), _unreachable, _unreachable),
        ((ConnectionError, TimeoutError), None, _unreachable),
        (unreadable_file, None, _file_unreadable),
        ((OSError,), _download_failed, None),
        ((RuntimeError,), None, _upload_failed),
        ((errors.HFValidationError,), None, _bad_name),
        ((ValueError, KeyError, TypeError, AttributeError, IndexError), _not_the_hub, _not_the_hub),
    )


def _cache_incomplete(error: BaseException, request: Request) -> LigoError | None:
    from huggingface_hub import errors

    # When the Hub fails, the client looks in its cache and then reports the cache. The Hub's failure is the cause.
    cause = None if isinstance(error, errors.OfflineModeIsEnabled) else error.__cause__
    if cause is not None and not isinstance(cause, errors.OfflineModeIsEnabled):
        return _translate(cause, request)
    return SourceChanged(
        "the cache does not have all files of the repository",
        where=request.repo,
        found=request.revision,
        hint=f"{FETCH_FIRST} {request.repo}",
    )


def _offline_upload(error: BaseException, request: Request) -> LigoError:
    return offline(request.repo)


def offline(repo: str) -> HubUnreachable:
    """Return the error for publishing while the client is switched to offline mode."""
    return HubUnreachable(
        "publishing needs the Hub, but HF_HUB_OFFLINE is set", where=repo, hint="unset HF_HUB_OFFLINE"
    )


def _not_logged_in(error: BaseException, request: Request) -> LigoError:
    return not_logged_in(request.repo)


def not_logged_in(repo: str) -> PublishRefused:
    """Return the error for publishing without a token."""
    return PublishRefused("not logged in to the Hub", where=repo, hint=LOG_IN)


def _gated(error: BaseException, request: Request) -> LigoError:
    hint = "accept its conditions on the Hub, log in with `hf auth login`, and run again"
    return SourceChanged("the repository is gated", where=request.repo, hint=hint)


def _no_access(error: BaseException, request: Request) -> LigoError:
    what = "no such repository, or this account cannot see it"
    return PublishRefused(what, where=request.repo, hint=_NEEDS_WRITE_ACCESS)


def _no_repository(error: BaseException, request: Request) -> LigoError:
    hint = "check the id; for a private repository log in with `hf auth login`; for a local directory write ./NAME"
    return SourceChanged("no such repository on the Hub, or it is private", where=request.repo, hint=hint)


def _no_revision(error: BaseException, request: Request) -> LigoError:
    hint = "give a branch, tag or commit of the repository"
    return SourceChanged("no such revision", where=request.repo, found=request.revision, hint=hint)


def _branch_lost(error: BaseException, request: Request) -> LigoError:
    return HubUnreachable("a branch disappeared from the Hub while publishing", where=request.repo, hint=RETRY_UPLOAD)


def _disabled(error: BaseException, request: Request) -> LigoError:
    return SourceChanged("the Hub disabled the repository", where=request.repo)


def _bad_request(error: Any, request: Request) -> LigoError:
    status, message = _response_of(error)
    return PublishRefused("the Hub refuses the request", where=request.repo, found=message or status)


def _file_lost(error: BaseException, request: Request) -> LigoError:
    return SourceChanged("the Hub lists a file that it does not have", where=request.repo, found=request.revision)


def _response_of(error: Any) -> tuple[str, str]:
    """Return the HTTP status in words and the server's message, which may be empty."""
    message = sanitize(error.server_message or "")
    return f"HTTP status {error.response.status_code}" + (f": {message}" if message else ""), message


def _status_on_download(error: Any, request: Request) -> LigoError:
    status, repo = error.response.status_code, request.repo
    found = f"HTTP status {status}"
    if status in (401, 403):
        return SourceChanged("the Hub refuses access", where=repo, found=found, hint="log in with `hf auth login`")
    if status >= 500 or status in BUSY:
        what, hint = "the Hub answered with an error", "try again later"
        return HubUnreachable(what, where=repo, found=found, hint=hint, passing=True)
    return SourceChanged("the Hub refuses the request", where=repo, found=found, hint="check HF_ENDPOINT")


def _status_on_upload(error: Any, request: Request) -> LigoError:
    status, repo = error.response.status_code, request.repo
    found, _ = _response_of(error)
    if status == 401:
        return PublishRefused("the Hub does not accept the token", where=repo, found=found, hint=LOG_IN)
    if status == 402:
        hint = "check the storage and plan of the account or organisation in its settings on the Hub"
        return PublishRefused("the Hub asks for payment", where=repo, found=found, hint=hint)
    if status == 403:
        what = "the Hub does not let this account write there"
        return PublishRefused(what, where=repo, found=found, hint=_NEEDS_WRITE_ACCESS)
    passing = status in BUSY
    hint = RETRY_UPLOAD if passing or status >= 500 else "read the Hub's message, and check HF_ENDPOINT"
    return HubUnreachable("the Hub answered with an error", where=repo, found=found, hint=hint, passing=passing)


def _unreachable(error: BaseException, request: Request) -> LigoError:
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    return HubUnreachable(
        "the Hub cannot be reached",
        where=request.repo,
        found=type(error).__name__,
        hint=f"{_CHECK_NETWORK}; then {RETRY_UPLOAD}" if request.upload else f"{_CHECK_NETWORK}, and run again",
        passing=request.upload or isinstance(error, httpx.TransportError),
    )


def _file_unreadable(error: Any, request: Request) -> LigoError:
    name = str(error.filename or "").rpartition("/")[2] or request.repo
    return VerificationError("the file can no longer be read", where=name, found=type(error).__name__)


def _download_failed(error: Any, request: Request) -> LigoError:
    if error.errno in _MACHINE_ERRORS:
        return MachineError(f"the Hub's cache: {os.strerror(error.errno)}", where=request.repo)
    return SourceChanged("the download failed", where=request.repo, found=type(error).__name__, hint="run again")


def _upload_failed(error: BaseException, request: Request) -> LigoError:
    # The client wraps errors of an upload in a RuntimeError; the storage client (hf_xet) raises nothing more specific.
    cause = _translate(error.__cause__, request) if error.__cause__ is not None else None
    found = sanitize(error)
    what = "the upload failed"
    return cause or HubUnreachable(what, where=request.repo, found=found, hint=RETRY_UPLOAD, passing=True)


def _bad_name(error: BaseException, request: Request) -> LigoError:
    return PublishRefused("the Hub's client does not accept the repository name", where=request.repo)


def _not_the_hub(error: BaseException, request: Request) -> LigoError:
    return unexpected_response(request.repo, type(error).__name__)
