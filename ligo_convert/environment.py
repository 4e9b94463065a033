"""What the machine brings to a run: versions, peak memory, the device. Nothing that names a person or a place."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import resource
import sys
from pathlib import Path

PACKAGES = ("ligo-convert", "huggingface-hub", "numpy", "safetensors", "tokenizers", "torch", "transformers")


def versions() -> dict[str, str]:
    """Package -> installed version, with Python's own."""
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **found}


def peak_rss_bytes() -> int:
    """The largest resident size that this process has had."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_limit() -> int:
    """Bytes of memory that this process and its children may use: the machine's, or what its control group allows."""
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):  # no such file, or `max`
            installed = min(installed, int(Path(name).read_text()))
    return installed


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
