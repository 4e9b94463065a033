"""What the Hub's client raises while something is published, as one clear line.

In goes whatever a request raised, out comes an error of ours with its exit code. Of the client's own texts only what the Hub itself said is
passed on, on one line and cut: they hold addresses, and at times places of this machine.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ligo_convert.errors import HubUnreachable, LigoError, PublishRefused, VerificationError, printable
from ligo_convert.hub import BUSY

AGAIN = "run the same command again: it goes on with what is there"
_WRITABLE = "use an account that may write there, or propose it with --pr"
_LOGIN = "run `hf auth login`, or set HF_TOKEN, and run again"
_TOKEN = re.compile(r"\b(hf|api_org)_[A-Za-z0-9]{6,}")
_QUERY = re.compile(r"(https?://[^\s?]*)\?\S*")
_LONGEST = 300


@contextmanager
def said_clearly(repo: str) -> Iterator[None]:
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


def plain(text: object) -> str:
    """What a server said, fit to be shown: on one line, cut, and without what an address or a token would give away.

    >>> plain("Storage limit reached\\nsee https://hub/x?signature=abc")
    'Storage limit reached see https://hub/x?...'
    """
    line = printable(" ".join(str(text).split()))
    line = _QUERY.sub(r"\1?...", _TOKEN.sub(r"\1_...", line))
    return line if len(line) <= _LONGEST else f"{line[: _LONGEST - 3]}..."


def no_answer(repo: str, found: str) -> HubUnreachable:
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
            found = plain(error)
            return inner or HubUnreachable("the upload failed", where=repo, found=found, hint=AGAIN, passing=True)
        case errors.HFValidationError():
            return PublishRefused("the Hub's client does not take the name", where=repo)
        case ValueError() | KeyError() | TypeError() | AttributeError() | IndexError():
            return no_answer(repo, type(error).__name__)
    return None


def _refused(error: BaseException, repo: str) -> LigoError:
    """What an answer with an error means, by its status and what the Hub says of it."""
    from huggingface_hub import errors

    assert isinstance(error, errors.HfHubHTTPError)
    status, message = error.response.status_code, plain(error.server_message or "")
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
