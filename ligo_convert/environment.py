"""What the machine brings to a run: versions, peak memory, the device. Nothing that names a person or a place."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import resource
import sys
from pathlib import Path, PurePosixPath

PACKAGES = ("ligo-convert", "huggingface-hub", "numpy", "safetensors", "tokenizers", "torch", "transformers")


def versions() -> dict[str, str]:
    """Package -> installed version, with Python's own."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found}


def peak_rss_bytes() -> int:
    """The largest resident size that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_limit(root: Path = Path("/")) -> int:
    """Bytes of memory that this process and its children may use: the machine's, or what its control groups allow.

    `root`: of the file system that says so.
    """
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = [*_limits(root, "memory.max", controller=""), *_limits(root, "memory.limit_in_bytes", controller="memory")]
    return min([installed, *(int(text) for text in found if text.isdigit())])


def cores(root: Path = Path("/")) -> int:
    """How many threads can compute at a time: the cores that this process may run on, or as many as its control groups give time for."""
    found = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Microseconds in each so many microseconds. Threads beyond the quota would all be stopped for the rest of each period.
    shares = [text.split() for text in _limits(root, "cpu.max", controller="")]
    quotas = _limits(root, "cpu.cfs_quota_us", controller="cpu")
    shares += [list(pair) for pair in zip(quotas, _limits(root, "cpu.cfs_period_us", controller="cpu"), strict=False)]
    for share in shares:
        if len(share) == 2 and all(part.isdigit() for part in share) and int(share[1]):  # not `max`, nor -1
            found = min(found, int(share[0]) // int(share[1]))
    return max(1, found)


def _limits(root: Path, name: str, *, controller: str) -> list[str]:
    """What a file says in the control group of this process and in all that hold it, as each of them sets a limit.

    `controller`: of version 1, which has a tree for each; empty for the one tree of version 2.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controller not in controllers.split(","):
            continue
        # A container sees its own group as the root of the tree, whatever path it is told; then none of the others are there.
        group = PurePosixPath("/", *(part for part in PurePosixPath(path).parts if part != ".."))
        for tree in (controllers, controller, "unified") if controller else ("", "unified"):
            for one in (group, *group.parents):
                with contextlib.suppress(OSError):
                    found.append((root / "sys/fs/cgroup" / tree / one.relative_to("/") / name).read_text().strip())
    return found


def choose_device(asked: str) -> str:
    """`cpu` or `cuda`: as asked, or for `auto` what is there. Raises MachineError where CUDA is asked for and is not there."""
    if asked == "cpu":
        return "cpu"
    import torch

    from ligo_convert.errors import MachineError

    if torch.cuda.is_available():
        return "cuda"
    if asked == "cuda":
        raise MachineError("no CUDA device can be used here", where="--device cuda", hint="leave --device out")
    return "cpu"


def processor() -> str:
    """What decides the order in which this processor sums: a short digest of the instructions that torch finds on it. Imports torch."""
    import hashlib
    import json

    import torch

    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    known = {"capability": torch.backends.cpu.get_cpu_capability(), **capabilities}
    return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:16]


def thread_limits(count: int) -> dict[str, str]:
    """The variables by which libraries are told how many threads a process may have."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    return dict.fromkeys(names, str(count))
