"""What the Hub's client raises while something is published, as one clear line.

In goes whatever a request raised, out comes an error of ours with its exit code. Of the client's own texts only what the Hub itself said is
passed on, on one line and cut: they hold addresses, and at times places of this machine.
"""

from __future__ import annotations

import errno
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ligo_convert.errors import (
    HubUnreachable,
    LigoError,
    MachineError,
    PublishRefused,
    SourceChanged,
    VerificationError,
    printable,
)

# Answers that may be another in a moment.
BUSY = (408, 429, 500, 502, 503, 504, 520, 522, 524)

FETCH_FIRST = "go online, or fetch it first on a machine that is: hf download"


@contextmanager
def translate_errors(label: str, revision: str) -> Iterator[None]:
    """Turn what the Hub's client raises into one clear line. Its own texts are left out: they hold addresses."""
    try:
        yield
    except Exception as error:
        said = _translated(error, label, revision)
        if said is None:
            raise
        raise said from None


def _translated(error: BaseException, label: str, revision: str) -> LigoError | None:
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
            return _translated(cause, label, revision)
    if isinstance(error, (errors.LocalEntryNotFoundError, errors.RevisionResolutionError, errors.OfflineModeIsEnabled)):
        hint = f"{FETCH_FIRST} {label}"
        return SourceChanged("the cache does not hold all of it", where=label, found=revision, hint=hint)
    if isinstance(error, errors.EntryNotFoundError):
        return SourceChanged("the Hub lists a file that it does not have", where=label, found=revision)
    if isinstance(error, errors.HfHubHTTPError):
        return _status_error(error.response.status_code, label)
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


def _status_error(status: int, label: str) -> SourceChanged:
    """The error of an answer that is one: only what may be another in a moment is asked again."""
    found = f"HTTP status {status}"
    if status in (401, 403):
        return SourceChanged("the Hub refuses access", where=label, found=found, hint="log in")
    if status >= 500 or status in BUSY:
        what, hint = "the Hub answered with an error", "try again later"
        return HubUnreachable(what, where=label, found=found, hint=hint, passing=True)
    return SourceChanged("the Hub refuses the request", where=label, found=found, hint="check HF_ENDPOINT")


AGAIN = "run the same command again: it goes on with what is there"

_WRITABLE = "use an account that may write there, or propose it with --pr"

_LOGIN = "run `hf auth login`, or set HF_TOKEN, and run again"

_TOKEN = re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{6,}")

_QUERY = re.compile(r"(https?://[^\s?]*)\?\S*")

_LONGEST = 300


@contextmanager
def translate_write_errors(repo: str) -> Iterator[None]:
    """Turn what the Hub's client raises in the block into one clear line about `repo`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what the Hub thinks of a card: nothing to do with whether it takes it
            yield
    except LigoError:
        raise
    except Exception as error:
        clear = _clear(error, repo)
        if clear is None:
            raise
        raise clear from None


def sanitize(text: object) -> str:
    """What a server said, fit to be shown: on one line, cut, and without what an address or a token would give away.

    >>> plain("Storage limit reached\\nsee https://hub/x?signature=abc")
    'Storage limit reached see https://hub/x?...'
    """
    line = printable(" ".join(str(text).split()))
    line = _QUERY.sub(r"\1?...", _TOKEN.sub(r"\1_...", line))
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def unexpected_response(repo: str, found: str) -> HubUnreachable:
    """Something answers, and not as the Hub does."""
    return HubUnreachable(
        "the answer is not one of the Hub",
        where=repo,
        found=found,
        hint=f"check HF_ENDPOINT, and whether this network asks to log in first; then {AGAIN}",
    )


def _clear(error: BaseException, repo: str) -> LigoError | None:
    """What an error of the client means; None for one that is no business of the Hub."""
    from huggingface_hub import errors
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]

    match error:
        case errors.OfflineModeIsEnabled():
            return HubUnreachable("publishing needs the Hub, which HF_HUB_OFFLINE switches off", where=repo)
        case errors.LocalTokenNotFoundError():
            return PublishRefused("nobody is logged in to the Hub", where=repo, hint=_LOGIN)
        case errors.HfHubHTTPError():
            return _refused(error, repo)
        case httpx.HTTPError() | httpx.InvalidURL() | ConnectionError() | TimeoutError():
            hint = f"check the network, HF_ENDPOINT and the proxy settings; {AGAIN}"
            found = type(error).__name__
            return HubUnreachable("the Hub cannot be reached", where=repo, found=found, hint=hint, passing=True)
        case FileNotFoundError() | PermissionError() | IsADirectoryError():
            name = str(error.filename or "").rpartition("/")[2] or repo
            return VerificationError("the file cannot be read any more", where=name, found=type(error).__name__)
        case RuntimeError():
            # So the client wraps what happens in an upload; the storage client (hf_xet) raises nothing more special itself.
            inner = _clear(error.__cause__, repo) if error.__cause__ is not None else None
            found = sanitize(error)
            return inner or HubUnreachable("the upload failed", where=repo, found=found, hint=AGAIN, passing=True)
        case errors.HFValidationError():
            return PublishRefused("the Hub's client does not take the name", where=repo)
        case ValueError() | KeyError() | TypeError() | AttributeError() | IndexError():
            return unexpected_response(repo, type(error).__name__)
    return None


def _refused(error: BaseException, repo: str) -> LigoError:
    """What an answer with an error means, by its status and what the Hub says of it."""
    from huggingface_hub import errors

    assert isinstance(error, errors.HfHubHTTPError)
    status, message = error.response.status_code, sanitize(error.server_message or "")
    found = f"HTTP status {status}" + (f": {message}" if message else "")
    match error:
        case errors.GatedRepoError() | errors.RepositoryNotFoundError():
            return PublishRefused("no such repository, or this account may not see it", where=repo, hint=_WRITABLE)
        case errors.RevisionNotFoundError():
            return HubUnreachable("the Hub lost a branch that was there", where=repo, hint=AGAIN)
        case errors.BadRequestError():
            return PublishRefused("the Hub refuses the request", where=repo, found=message or found)
    if status == 401:
        return PublishRefused("the Hub does not take the token", where=repo, found=found, hint=_LOGIN)
    if status == 402:
        hint = "see what the account's or the organisation's plan has room for, in its settings on the Hub"
        return PublishRefused("the Hub asks for payment", where=repo, found=found, hint=hint)
    if status == 403:
        return PublishRefused("the Hub does not let this account do that", where=repo, found=found, hint=_WRITABLE)
    passing = status in BUSY
    hint = AGAIN if passing or status >= 500 else "check HF_ENDPOINT, and what the Hub says"
    return HubUnreachable("the Hub answered with an error", where=repo, found=found, hint=hint, passing=passing)
