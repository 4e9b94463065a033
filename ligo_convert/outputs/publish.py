"""Publish a finished output directory to a destination.

Input: an output directory, the name of a destination and its options. Output: a report of what the destination did.

A destination is a class with the methods of `Destination` and one row in `DESTINATIONS`; see docs/extending/adding-a-destination.md.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from ligo_convert.errors import RecipeError
from ligo_convert.outputs.bundle import Bundle, pack
from ligo_convert.outputs.hub_destination import HubDestination
from ligo_convert.progress import Progress


class Report(Protocol):
    """The report of a destination after publishing."""

    def json(self) -> dict[str, Any]:
        """Return the report as plain data, for `--json`."""
        ...


class Destination(Protocol):
    """A place that bundles are published to.

    The methods are called in this order. Only `put` changes anything at the destination.
    """

    def check_options(self) -> None:
        """Check names and combinations of options, offline. Raises RecipeError."""
        ...

    def check_access(self) -> None:
        """Check that credentials and addresses are configured, offline. Raises PublishRefused, HubUnreachable or MachineError."""
        ...

    def check_beforehand(self, *, license: str | None, progress: Progress) -> None:
        """Check, before the conversion starts, everything that can be checked without a bundle.

        Args:
            license: the licence that the publisher states; None if the card states it.

        Raises:
            RecipeError, PublishRefused, HubUnreachable, MachineError.
        """
        ...

    def plan(self, bundle: Bundle, *, progress: Progress) -> dict[str, Any]:
        """Return what `put` would change, as plain data, for `publish --dry-run`. Raises as `put`."""
        ...

    def put(self, bundle: Bundle, *, progress: Progress) -> Report:
        """Publish the bundle, completely or not at all. The same call after an interruption completes the job.

        Raises:
            PublishRefused: the destination does not accept the bundle.
            VerificationError: the files at the destination differ from the bundle.
        """
        ...


# Name of the destination -> its class, called with the options as keyword arguments.
DESTINATIONS: dict[str, Callable[..., Destination]] = {
    "hub": HubDestination,
}


def publish(
    directory: Path,
    destination: str,
    *,
    license: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Report:
    """Verify an output directory and publish it.

    Args:
        directory: a finished output directory.
        destination: a name in `DESTINATIONS`.
        license: the licence that the publisher states; default: the one in the model card.
        options: the options of the destination; for `hub`, the attributes of `HubDestination`.

    Raises:
        RecipeError: the destination, an option's value or the licence is not valid.
        VerificationError: the directory is incomplete, or the files at the destination differ from it.
        PublishRefused: no licence is known, a file contains something private, or the destination does not accept the bundle.
        HubUnreachable: the Hub cannot be reached or keeps failing.
    """
    progress = progress or Progress()
    if destination not in DESTINATIONS:
        raise RecipeError("no such destination", where=destination, expected=", ".join(sorted(DESTINATIONS)))
    target = DESTINATIONS[destination](**options)
    target.check_options()
    target.check_access()
    return target.put(pack(directory, license=license, progress=progress), progress=progress)
