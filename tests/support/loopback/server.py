"""A Hub on the loopback interface, for tests that drive the real client; run as a program, for people who try things out.

In go repositories (files, branches), accounts and faults; out comes an address for `HF_ENDPOINT`, and a record of every request
and every byte of body that was served. What is asked is answered by `reads`, what is written is done by
`writes`, and `state` is what there is. Large files carry their SHA-256 like files in Git LFS. Not here: datasets
and spaces, git's own protocol, discussions that propose nothing, lists in pages, and objects copied between repositories.

    python tests/support/loopback/server.py --port 8080 --token hf_x --account me --store chunks
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

if __name__ == "__main__":
    # As a program it finds its siblings wherever it is started.
    sys.path.insert(0, str(Path(__file__).parents[2]))

from support.loopback.reads import read
from support.loopback.state import (
    NOBODY_ELSE,
    Answer,
    Fault,
    Hub,
    Pull,
    Refused,
    Repository,
    Request,
    git_blob,
    is_large,
    one_commit,
)
from support.loopback.writes import write

__all__ = ["Fault", "Hub", "Pull", "Repository", "git_blob", "is_large", "one_commit", "serve"]

BLOCK = 1 << 16


@contextmanager
def serve(
    repositories: dict[str, Repository] | None = None,
    *,
    accounts: dict[str, tuple[str, ...]] | None = None,
    faults: list[Fault] | None = None,
    chunks: Path | None = None,
    port: int = 0,
) -> Iterator[Hub]:
    """Run a Hub while the block lasts. Without accounts everybody may do everything; `chunks`: see Hub."""
    with _Server(port) as server:
        hub = server.hub
        hub.repositories |= repositories or {}
        hub.accounts |= accounts or {}
        hub.faults += faults or []
        hub.chunks = chunks
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join(timeout=60)
            server.hang_up()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.hub = Hub(address=f"http://127.0.0.1:{self.server_address[1]}", repositories={})
        self._connections: set[socket.socket] = set()

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """End the connections that clients keep for later."""
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # That a client hangs up is what some tests are about.
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _serve(self) -> None:
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        hub.requests.append(f"{self.command} {path}")
        hub.tokens += [self.headers["Authorization"]] if "Authorization" in self.headers else []
        if hub.meanwhile is not None:
            hub.meanwhile(hub.requests[-1])
        fault = hub.fault(self.command, path)
        body = self._body(fault)
        if body is None:
            self.close_connection = True
        elif fault is not None and fault.kind == "status":
            self._send(Refused(fault.status, message=fault.message).answer, None)
        elif fault is not None and fault.kind == "page":
            self._send(Answer(body=fault.body), None)
        else:
            answer = self._answer(body, corrupt=fault is not None and fault.kind == "corrupt")
            if fault is not None and fault.kind == "lost":
                self.close_connection = True
            else:
                self._send(answer, fault)

    def _answer(self, body: bytes, *, corrupt: bool) -> Answer:
        hub = self.server.hub
        try:
            request = Request(
                method=self.command,
                target=self.path,
                headers=self.headers,
                body=body,
                account=self._account(),
                corrupt=corrupt,
            )
            with hub.lock:
                return (read if self.command in ("GET", "HEAD") else write)(hub, request)
        except Refused as refused:
            return refused.answer

    def _account(self) -> str | None:
        """Who asks. Raises Refused."""
        hub, token = self.server.hub, self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not hub.accounts:
            return NOBODY_ELSE
        if token and token not in hub.accounts:
            raise Refused(401, message="Invalid credentials in Authorization header")
        return hub.accounts[token][0] if token else None

    # Bodies.

    def _body(self, fault: Fault | None) -> bytes | None:
        """The request's body; None if it does not come whole."""
        size = int(self.headers.get("Content-Length") or 0)
        is_cut = fault is not None and fault.kind == "cut" and self.command not in ("GET", "HEAD")
        body = bytearray()
        for wanted in self._sizes(size):
            if is_cut and fault is not None:
                wanted = min(wanted, (wanted // 2 if fault.after is None else fault.after) - len(body))
            while wanted:
                if fault is not None and fault.kind == "slow":
                    time.sleep(fault.seconds)
                block = self.rfile.read(min(wanted, BLOCK))
                if not block:
                    return None
                body += block
                wanted -= len(block)
        return None if is_cut else bytes(body)

    def _sizes(self, size: int) -> Iterator[int]:
        """How much is to be read, piece by piece: a client may send what it reads from a file in chunks."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            yield size
            return
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield size
            self.rfile.readline()
        self.rfile.readline()

    def _send(self, answer: Answer, fault: Fault | None) -> None:
        data, hub, name = answer.data, self.server.hub, answer.name
        left = len(data)
        if fault is not None and fault.kind == "cut":
            left = min(left, len(data) // 2 if fault.after is None else fault.after)
            self.close_connection = True
        try:
            self.send_response(answer.status)
            headers = {"Content-Type": "application/json", **answer.headers, "Content-Length": str(len(data))}
            for key, value in headers.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            for at in range(0, left, BLOCK):
                if fault is not None and fault.kind == "slow":
                    time.sleep(fault.seconds)
                part = data[at : min(at + BLOCK, left)]
                self.wfile.write(part)
                hub.served[name] = hub.served.get(name, 0) + len(part)
        except ConnectionError:
            # The client has what it wanted and hung up.
            self.close_connection = True


def main() -> None:
    parser = argparse.ArgumentParser(
        description="A Hub on the loopback interface, empty at first, that forgets when it ends."
    )
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--token", help="Of the only account; default: everybody may do everything.")
    parser.add_argument("--account", default=NOBODY_ELSE, help="Its name, and that of its namespace.")
    parser.add_argument("--store", type=Path, help="A folder for what hf_xet stores; default: one that is taken away.")
    asked = parser.parse_args()
    accounts: dict[str, tuple[str, ...]] = {asked.token: (asked.account,)} if asked.token else {}
    with tempfile.TemporaryDirectory() as temporary:
        store = (asked.store or Path(temporary)).absolute()
        store.mkdir(parents=True, exist_ok=True)
        with serve(accounts=accounts, chunks=store if find_spec("hf_xet") else None, port=asked.port) as hub:
            print(f"HF_ENDPOINT={hub.address}", flush=True)
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()


if __name__ == "__main__":
    main()
