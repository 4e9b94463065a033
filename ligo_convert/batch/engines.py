"""The table of engines: in this process or its workers (`local`), or on a Ray cluster (`ray`)."""

from __future__ import annotations

from collections.abc import Callable

from ligo_convert.batch.engine import Engine, EngineOptions
from ligo_convert.batch.local import InProcessEngine, ProcessEngine
from ligo_convert.batch.ray_cluster import RayCluster
from ligo_convert.errors import LigoError


def _local(options: EngineOptions) -> Engine:
    return ProcessEngine(options.jobs, options.logs) if options.jobs > 1 else InProcessEngine(options.on_event)


def _ray(options: EngineOptions) -> Engine:
    return RayCluster(options.address, options.on_event)


ENGINES: dict[str, Callable[[EngineOptions], Engine]] = {"local": _local, "ray": _ray}


def engine_named(name: str, options: EngineOptions) -> Engine:
    """Return a new engine from `ENGINES`."""
    if name not in ENGINES:
        raise LigoError(f"there is no engine {name}; the engines are {', '.join(sorted(ENGINES))}")
    return ENGINES[name](options)
