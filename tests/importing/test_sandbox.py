"""The sandbox holds: a confined process cannot read, write, connect, start or signal anything."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ligo_convert.importing.sandbox import support

pytestmark = pytest.mark.skipif(support() is not None, reason=str(support()))

# Each attempt is an expression; the process prints the name of the exception, or "allowed".
_ATTEMPTS = {
    "read the allowed file": "open(f'/proc/self/fd/{allowed}').read()",
    "read a library": "open(os.__file__).read()",
    "read another file": "open(secret).read()",
    "list a folder": "os.listdir(os.path.dirname(secret))",
    "write a file": "open(secret + '.new', 'w')",
    "overwrite the allowed file": "open(f'/proc/self/fd/{allowed}', 'w')",
    "delete": "os.unlink(secret)",
    "rename": "os.rename(secret, secret + '.moved')",
    "make a folder": "os.mkdir(secret + '.d')",
    "change a mode": "os.chmod(secret, 0o777)",
    "link": "os.symlink('/etc', secret + '.link')",
    "internet socket": "socket.socket()",
    "unix socket": "socket.socket(socket.AF_UNIX)",
    "socket pair": "socket.socketpair()",
    "fork": "os.fork()",
    "start a program": "os.execv('/bin/true', ['true'])",
    "spawn a program": "os.posix_spawn('/bin/true', ['true'], {})",
    "start a thread": "threading.Thread(target=int).start()",
    "signal the parent": "os.kill(os.getppid(), 0)",
    "trace the parent": "libc.ptrace(16, os.getppid(), 0, 0) and raise_errno()",
    "new namespace": "libc.unshare(0x10000000) and raise_errno()",
    "raise a limit": "resource.setrlimit(resource.RLIMIT_CORE, (1 << 20, 1 << 20))",
    "memory above the limit": "bytearray(1 << 30)",
}

_PROGRAM = """
import ctypes, json, os, pathlib, resource, socket, sys, threading
from ligo_convert.importing.sandbox import address_space, confine, limit
request = json.loads(sys.stdin.read())
secret, allowed = request["secret"], os.open(request["allowed"], os.O_RDONLY)
libc = ctypes.CDLL(None, use_errno=True)
def raise_errno():
    raise OSError(ctypes.get_errno(), "refused")
limit(memory=address_space() + (1 << 28), cpu_seconds=60)
confine(descriptors=[allowed], directories=[pathlib.Path(os.__file__).parent])
outcomes = {}
for name, attempt in request["attempts"].items():
    try:
        eval(attempt)
        outcomes[name] = "allowed"
    except (OSError, RuntimeError, MemoryError, ValueError) as error:
        outcomes[name] = type(error).__name__
os.write(1, json.dumps(outcomes).encode())
os._exit(0)
"""


def test_a_confined_process_reads_its_file_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "allowed").write_text("weights")
    (tmp_path / "secret").write_text("token")
    request = {"secret": str(tmp_path / "secret"), "allowed": str(tmp_path / "allowed"), "attempts": _ATTEMPTS}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM],
        input=json.dumps(request).encode(),
        capture_output=True,
        timeout=60,
        env={**os.environ},
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    outcomes = json.loads(done.stdout)
    may = {"read the allowed file", "read a library"}
    assert {name for name, outcome in outcomes.items() if outcome == "allowed"} == may
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["allowed", "secret"]
    assert (tmp_path / "allowed").read_text() == "weights"
