"""Facts about the machine that a run uses: package versions, memory, cores, device. No user, host or path names."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import resource
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

PACKAGES = ("ligo-convert", "huggingface-hub", "numpy", "safetensors", "tokenizers", "torch", "transformers")

# Resident memory of a process with torch and a model library after its imports, before it holds a tensor.
BASE_BYTES = 850_000_000

# Options of glibc's mallopt: M_MMAP_THRESHOLD at its greatest value, M_TRIM_THRESHOLD and M_TOP_PAD.
_MALLOC_LIMITS = {-3: 32 << 20, -1: 256 << 20, -2: 64 << 20}


def versions() -> dict[str, str]:
    """Return package name -> installed version, Python included."""
    installed = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **installed}


def peak_rss_bytes(root: Path = Path("/")) -> int:
    """Return the peak resident memory of this process's own program, in bytes.

    On Linux `ru_maxrss` survives `exec`: a program that a larger one has started reports the memory of its parent. `VmHWM` begins
    anew with every program.

    Args:
        root: root of the file system that holds `proc`.
    """
    with contextlib.suppress(OSError, ValueError):
        for line in (root / "proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak_rss() -> None:
    """Begin a new peak of resident memory, for a process that does one job after another. Linux only; elsewhere the peak stays."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def memory_limit(root: Path = Path("/")) -> int:
    """Return the memory that this process and its children may use, in bytes: the machine's, or less where a cgroup limits it.

    Args:
        root: root of the file system that holds `proc` and `sys`.
    """
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [
        *_cgroup_values(root, "memory.max", controller=""),
        *_cgroup_values(root, "memory.limit_in_bytes", controller="memory"),
    ]
    return min([installed, *(int(text) for text in limits if text.isdigit())])


def cores(root: Path = Path("/")) -> int:
    """Return the number of threads that can run at once: the cores of this process, or fewer where a cgroup limits CPU time.

    Args:
        root: root of the file system that holds `proc` and `sys`.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # Quota and period, both in microseconds. With more threads than quota / period, all are paused for the rest of each period.
    quotas = [text.split() for text in _cgroup_values(root, "cpu.max", controller="")]
    old_quotas = _cgroup_values(root, "cpu.cfs_quota_us", controller="cpu")
    old_periods = _cgroup_values(root, "cpu.cfs_period_us", controller="cpu")
    quotas += [list(pair) for pair in zip(old_quotas, old_periods, strict=False)]
    for quota in quotas:
        if (
            len(quota) == 2 and all(part.isdigit() for part in quota) and int(quota[1])
        ):  # neither `max` nor -1: no limit
            count = min(count, int(quota[0]) // int(quota[1]))
    return max(1, count)


def _cgroup_values(root: Path, name: str, *, controller: str) -> list[str]:
    """Read one file of this process's cgroup and of every parent cgroup, since each of them can set a limit.

    Args:
        root: root of the file system that holds `proc` and `sys`.
        name: the file, such as `memory.max`.
        controller: the controller of cgroup v1, which has one tree each; empty for the single tree of v2.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    values = []
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        if controller not in controllers.split(","):
            continue
        # A container sees its own cgroup as the root of the tree, whatever path `proc` shows. Missing files are skipped.
        group = PurePosixPath("/", *(part for part in PurePosixPath(path).parts if part != ".."))
        for tree in (controllers, controller, "unified") if controller else ("", "unified"):
            for ancestor in (group, *group.parents):
                with contextlib.suppress(OSError):
                    path_in_tree = ancestor.relative_to("/") / name
                    values.append((root / "sys/fs/cgroup" / tree / path_in_tree).read_text().strip())
    return values


def choose_device(requested: str) -> str:
    """Return `cpu` or `cuda` for the option `--device`; `auto` selects CUDA where it is available.

    Raises:
        MachineError: CUDA is requested and not available.
    """
    if requested == "cpu":
        return "cpu"
    import torch

    from ligo_convert.errors import MachineError

    if torch.cuda.is_available():
        return "cuda"
    if requested == "cuda":
        raise MachineError("no CUDA device is available", where="--device cuda", hint="leave --device out")
    return "cpu"


def processor() -> str:
    """Return a short digest of the CPU instructions that torch uses; they decide the order of sums, so the last bits. Imports torch."""
    import hashlib
    import json

    import torch

    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    features = {"capability": torch.backends.cpu.get_cpu_capability(), **capabilities}
    return hashlib.sha256(json.dumps(features, sort_keys=True, default=str).encode()).hexdigest()[:16]


def thread_limits(count: int) -> dict[str, str]:
    """Return the environment variables that limit the threads of numerical libraries to `count`.

    They decide how fast a process is, not what it writes: `compute_threads` sets the threads of what decides bytes.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS")
    return dict.fromkeys(names, str(count))


@contextlib.contextmanager
def compute_threads(count: int) -> Iterator[None]:
    """Let torch compute with exactly `count` threads in the block, on any number of cores and whatever the environment says.

    The number of threads decides how sums are split, in matrix products, norms and gradients, and so their last bits. The threads of
    the calling thread only are set, and set back.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def keep_freed_memory() -> None:
    """Let the C library keep freed memory of up to 256 MB for the next allocation, instead of giving it back to the system.

    A step of a small model frees and takes again the same blocks of megabytes. Given back, each costs page faults: about a tenth of
    the step (`benchmarks/small_step.py`). Does nothing where the C library is not glibc, or the environment sets these limits.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or platform.libc_ver()[0] != "glibc":
        return
    import ctypes

    mallopt = ctypes.CDLL(None).mallopt
    for option, value in _MALLOC_LIMITS.items():
        mallopt(option, value)


def require_threads(count: int) -> None:
    """Refuse an environment that withholds some of `count` threads, so that results could not be reproduced. Raises MachineError."""
    limit, dynamic = os.environ.get("OMP_THREAD_LIMIT", ""), os.environ.get("OMP_DYNAMIC", "").strip().lower()
    withheld = None
    if limit.isdigit() and int(limit) < count:
        withheld = f"OMP_THREAD_LIMIT={limit}"
    elif dynamic in ("true", "1") and count > 1:
        withheld = f"OMP_DYNAMIC={dynamic}"
    if withheld is not None:
        from ligo_convert.errors import MachineError

        raise MachineError(
            "the environment withholds threads, so that the fit would not be reproducible",
            where=withheld,
            expected=f"{count} threads, by fit.threads",
            hint="unset that variable, or set fit.threads to what it allows; fewer cores than threads do no harm",
        )
