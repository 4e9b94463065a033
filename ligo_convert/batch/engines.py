"""Where the entries of a manifest are done: in this process, in worker processes of this machine, or on the machines of a Ray cluster.

What comes in: assignments, with what each takes of a machine. What goes out: events, as they happen. An engine knows nothing of what an
entry needs or makes; it has room for one or not, starts it, and says how it ended. `ENGINES` is the table of them.
"""

from __future__ import annotations

from collections.abc import Callable

from ligo_convert.batch.engine import Engine, EngineOptions
from ligo_convert.batch.local import InProcessEngine, ProcessEngine
from ligo_convert.batch.ray_cluster import RayCluster
from ligo_convert.errors import LigoError


def _local(choice: EngineOptions) -> Engine:
    return ProcessEngine(choice.jobs, choice.folder) if choice.jobs > 1 else InProcessEngine(choice.tell)


def _ray(choice: EngineOptions) -> Engine:
    return RayCluster(choice.address, choice.tell)


ENGINES: dict[str, Callable[[EngineOptions], Engine]] = {"local": _local, "ray": _ray}


def engine_named(name: str, choice: EngineOptions) -> Engine:
    """The engine of a name of `ENGINES`."""
    if name not in ENGINES:
        raise LigoError(f"no engine {name}")
    return ENGINES[name](choice)
