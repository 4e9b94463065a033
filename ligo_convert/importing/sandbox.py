"""Confine this process to reading a few files: no network, no new process, no file to write, bounded memory.

Two mechanisms of the Linux kernel do it, and both hold until the process ends:

- Landlock restricts the files that the process can open (kernel 5.13, docs.kernel.org/userspace-api/landlock.html).
- A seccomp filter allows only the system calls in `_CALLS`, and answers all others with EPERM (seccomp(2)).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

# System call -> its numbers on x86_64 and aarch64; None where the architecture does not have it. A process that has loaded
# torch and reads open files needs no more. `clone`, `clone3` and `execve` are absent: nothing can be started.
_CALLS: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "close": (3, 57),
    "openat": (257, 56),
    "fstat": (5, 80),
    "stat": (4, None),
    "lstat": (6, None),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "lseek": (8, 62),
    "getdents64": (217, 61),
    "readlink": (89, None),
    "readlinkat": (267, 78),
    "access": (21, None),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "getcwd": (79, 17),
    "fcntl": (72, 25),
    "ioctl": (16, 29),
    "dup": (32, 23),
    "poll": (7, None),
    "ppoll": (271, 73),
    "fadvise64": (221, 223),
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mprotect": (10, 226),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "brk": (12, 214),
    "futex": (202, 98),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "membarrier": (324, 283),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "gettimeofday": (96, 169),
    "getrusage": (98, 165),
    "getrandom": (318, 278),
    "gettid": (186, 178),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "getcpu": (309, 168),
    "sysinfo": (99, 179),
    "uname": (63, 160),
    "exit": (60, 93),
    "exit_group": (231, 94),
}

# Machine -> column of `_CALLS`, and the AUDIT_ARCH value that a seccomp filter compares with.
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

# Landlock's system calls have these numbers on every architecture.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_SECCOMP = {"x86_64": 317, "aarch64": 277}

_READ_FILE, _READ_DIRECTORY = 1 << 2, 1 << 3
# Access rights that each ABI version of Landlock knows: the first 13, then refer (2), truncate (3), ioctl on devices (5).
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}
_TCP_RIGHTS = 0b11  # bind and connect, from ABI 4
_SCOPES = 0b11  # abstract UNIX sockets and signals, from ABI 6

_PR_SET_NO_NEW_PRIVS = 38
_ALLOW, _DENY, _KILL = 0x7FFF0000, 0x00050000 | errno.EPERM, 0x80000000


class Unsupported(Exception):
    """This system has no Landlock or no seccomp."""


def support() -> str | None:
    """Return None if `confine` works on this system, else the reason why not."""
    if sys.platform != "linux" or platform.machine() not in _MACHINES:
        return f"{platform.system()} on {platform.machine()} has no sandbox that ligo-convert knows"
    if _landlock_version() < 1:
        return "the kernel has no Landlock (Linux 5.13 or newer has it, unless it is turned off)"
    return None


def confine(*, descriptors: Iterable[int], directories: Iterable[Path]) -> None:
    """Restrict this process for the rest of its life.

    After the call the process can open, for reading, the files of `descriptors` and everything below `directories`. It keeps its
    open descriptors. It can open nothing for writing, start no process, send no signal to another process, and use no socket.

    Args:
        descriptors: open files that may be opened again, for example through `/proc/self/fd`.
        directories: directories of files that libraries may still load.

    Raises:
        Unsupported: the kernel lacks Landlock or seccomp. The process may then be restricted in part.
    """
    reason = support()
    if reason is not None:
        raise Unsupported(reason)
    libc = _libc()
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise Unsupported(f"prctl: {os.strerror(ctypes.get_errno())}")
    _restrict_files(list(descriptors), [folder for folder in directories if folder.is_dir()])
    _restrict_calls()


def limit(*, memory: int, cpu_seconds: int) -> None:
    """Limit this process: `memory` bytes of address space, seconds of CPU time, no core file, no written file above 1 MiB."""
    for kind, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 1 << 20),
    ):
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def address_space() -> int:
    """Return the size of this process's address space, in bytes (Linux)."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _system_call(number: int, *arguments: object) -> int:
    """Make a system call and return its result. Raises Unsupported if it fails."""
    result = int(_libc().syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        raise Unsupported(f"system call {number}: {os.strerror(ctypes.get_errno())}")
    return result


def _landlock_version() -> int:
    return int(_libc().syscall(ctypes.c_long(_CREATE_RULESET), None, ctypes.c_size_t(0), ctypes.c_uint(1)))


def _restrict_files(descriptors: Sequence[int], directories: Sequence[Path]) -> None:
    version = _landlock_version()
    rights = (1 << _FILE_RIGHTS[max(known for known in _FILE_RIGHTS if known <= version)]) - 1
    tcp, scopes = _TCP_RIGHTS if version >= 4 else 0, _SCOPES if version >= 6 else 0
    # An older kernel refuses a longer structure, so the structure is as long as the version knows it.
    fields = struct.pack("=Q", rights) + (struct.pack("=Q", tcp) if tcp else b"")
    fields += struct.pack("=Q", scopes) if scopes else b""
    ruleset = _system_call(_CREATE_RULESET, fields, ctypes.c_size_t(len(fields)), ctypes.c_uint(0))
    try:
        opened = [os.open(folder, os.O_PATH | os.O_CLOEXEC) for folder in directories]
        try:
            for descriptor in descriptors:
                _allow(ruleset, descriptor, _READ_FILE)
            for descriptor in opened:
                _allow(ruleset, descriptor, _READ_FILE | _READ_DIRECTORY)
        finally:
            for descriptor in opened:
                os.close(descriptor)
        _system_call(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint(0))
    finally:
        os.close(ruleset)


def _allow(ruleset: int, descriptor: int, rights: int) -> None:
    rule = struct.pack("=Qi", rights, descriptor)
    _system_call(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(1), rule, ctypes.c_uint(0))


def _restrict_calls() -> None:
    """Load a filter of the classic BPF machine: kill another architecture, allow the calls of the table, refuse all others."""
    column, architecture = _MACHINES[platform.machine()]
    numbers = sorted(number for pair in _CALLS.values() if (number := pair[column]) is not None)
    load, equal, answer = 0x20, 0x15, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_RET|K
    # `struct seccomp_data` starts with the number of the call, 4 bytes, and the architecture, 4 bytes.
    program = [(load, 0, 0, 4), (equal, 1, 0, architecture), (answer, 0, 0, _KILL), (load, 0, 0, 0)]
    for number in numbers:
        program += [(equal, 0, 1, number), (answer, 0, 0, _ALLOW)]
    program.append((answer, 0, 0, _DENY))
    code = b"".join(struct.pack("=HBBI", *line) for line in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    _system_call(_SECCOMP[platform.machine()], ctypes.c_uint(1), ctypes.c_uint(0), header)
