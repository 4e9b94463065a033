"""What control groups allow, of either version and however deep a process is in them."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

import ligo_convert
from ligo_convert.environment import cores, forget_peak_rss, memory_limit, peak_rss_bytes

GB = 10**9
SLURM = "0::/system.slice/slurmstepd.scope/job_7/step_0\n"
TASK = "system.slice/slurmstepd.scope/job_7"


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A root of a file system with these control groups."""
    for name, text in {
        "proc/self/cgroup": groups,
        **{f"sys/fs/cgroup/{key}": text for key, text in files.items()},
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        (SLURM, {f"{TASK}/memory.max": f"{GB}\n", f"{TASK}/step_0/memory.max": "max\n"}, GB),
        (SLURM, {f"{TASK}/memory.max": f"{2 * GB}\n", f"{TASK}/step_0/memory.max": f"{GB}\n"}, GB),
        (SLURM, {"system.slice/memory.max": f"{GB}\n", f"{TASK}/memory.max": f"{2 * GB}\n"}, GB),
        ("0::/\n", {"memory.max": f"{GB}\n"}, GB),
        ("0::/../../elsewhere\n", {"memory.max": f"{GB}\n"}, GB),
        ("3:cpu:/\n4:memory:/slurm/uid_1/job_7\n0::/\n", {"memory/slurm/uid_1/memory.limit_in_bytes": f"{GB}\n"}, GB),
        ("4:memory:/docker/0123\n", {"memory/memory.limit_in_bytes": f"{GB}\n"}, GB),
        ("4:memory:/a\n", {"memory/b/memory.limit_in_bytes": f"{GB}\n"}, None),
        ("4:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712\n"}, None),
        ("nonsense\n0::/a:b\n", {"a:b/memory.max": f"{GB}\n"}, GB),
        ("0::/\n", {}, None),
    ],
)
def test_memory_is_what_every_group_around_us_allows(
    groups: str, files: dict[str, str], limit: int | None, tmp_path: Path
) -> None:
    installed = memory_limit(tmp_path / "nothing")
    assert installed > GB
    assert memory_limit(machine(tmp_path, groups, files)) == (limit or installed)


@pytest.mark.parametrize(
    ("groups", "files", "count"),
    [
        (SLURM, {f"{TASK}/cpu.max": "400000 100000\n", f"{TASK}/step_0/cpu.max": "max 100000\n"}, 4),
        (SLURM, {"system.slice/cpu.max": "250000 100000\n", f"{TASK}/cpu.max": "400000 100000\n"}, 2),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 8),
        ("0::/\n", {"cpu.max": "3200000 100000\n"}, 8),
        (
            "3:cpu,cpuacct:/a\n",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "300000\n", "cpu,cpuacct/a/cpu.cfs_period_us": "100000\n"},
            3,
        ),
        ("3:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ("0::/\n", {}, 8),
    ],
)
def test_cores_are_what_there_is_time_for(
    groups: str, files: dict[str, str], count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    assert cores(machine(tmp_path, groups, files)) == count


_REPORT = "from ligo_convert.environment import peak_rss_bytes; print(peak_rss_bytes())"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system tells no peak of one program")
def test_the_peak_of_a_program_is_not_that_of_its_parent() -> None:
    """A launcher of 500 MB, such as a notebook or a batch, starts a small program."""
    parent = (
        "import subprocess, sys; big = bytearray(500_000_000); big[::4096] = b'x' * len(big[::4096]);"
        f" print(subprocess.run([sys.executable, '-c', {_REPORT!r}], capture_output=True, text=True, check=True).stdout)"
    )
    found = subprocess.run(
        [sys.executable, "-c", parent],
        env={**os.environ, "PYTHONPATH": str(Path(ligo_convert.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert 5_000_000 < int(found.stdout) < 200_000_000


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system begins no new peak")
def test_a_new_job_of_a_process_begins_a_new_peak() -> None:
    big = bytearray(300_000_000)
    big[::4096] = b"x" * len(big[::4096])
    with_it = peak_rss_bytes()
    del big
    assert peak_rss_bytes() > with_it - 50_000_000
    forget_peak_rss()
    assert peak_rss_bytes() < with_it - 200_000_000


def test_without_a_process_table_the_peak_comes_from_the_system_call(tmp_path: Path) -> None:
    assert 5_000_000 < peak_rss_bytes(tmp_path) < 10**12


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries than glibc have no mallopt")
def test_freed_memory_is_kept() -> None:
    """The second to last rounds take the same blocks as the first: without page faults where they are kept."""
    program = """
import resource, sys
import numpy as np
from ligo_convert.environment import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
for turn in range(5):
    if turn == 1:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [np.ones(1 << 19) for _ in range(4)]
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

    def faults(kind: str, **variables: str) -> int:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
        command = [sys.executable, "-c", program, kind]
        done = subprocess.run(
            command, env={**environment, **variables}, check=True, capture_output=True, text=True, timeout=120
        )
        return int(done.stdout)

    # 4 blocks of 4 MB, 4 rounds: 16,384 pages of 4 KB.
    assert faults("give back") > 3_000
    assert faults("keep") < 500
    # A limit of the user stays as it is.
    assert faults("keep", MALLOC_TRIM_THRESHOLD_="131072") > 3_000


def test_windows_is_told_what_to_do() -> None:
    code = "import sys; sys.platform = 'win32'; import ligo_convert"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr.rstrip().splitlines()[-1].startswith("ImportError: ligo-convert runs on Linux and macOS")
    assert "WSL" in done.stderr
