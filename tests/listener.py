"""A client's own HTTP server on loopback."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.waiting import wait_until


class Listener:
    """A client's own server: takes webhooks and uploads, and fails as often as is set.

    A GET gets `content` with `answer_headers`, or silence.
    """

    def __init__(self) -> None:
        self.received: list[tuple[str, str, str, bytes]] = []
        self.headers: list[dict[str, str]] = []
        self.num_failures = 0
        self.failure_status = 500
        self.content = b""
        self.answer_headers: dict[str, str] = {}
        self.is_silent = False
        self.num_silent = 0
        self._is_hung_up = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                if outer.is_silent:
                    outer.num_silent += 1
                    outer._is_hung_up.wait()
                    return
                status = outer.failure_status if outer.num_failures > 0 else 200
                outer.num_failures -= 1
                if status == 200:
                    outer.headers.append({k.lower(): v for k, v in self.headers.items()})
                    kind = self.headers.get("content-type", "")
                    outer.received.append((self.command, self.path, kind, body))
                self.send_response(status)
                content = outer.content if self.command == "GET" else b""
                headers = {"content-length": str(len(content)), **outer.answer_headers}
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = handle_any

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def hang_up(self) -> None:
        """End the connections that wait for an answer."""
        self._is_hung_up.set()

    def close(self) -> None:
        self.hang_up()
        self._server.shutdown()
        self._server.server_close()

    def wait_for(self, count: int, timeout_s: float = 60) -> list[tuple[str, str, str, bytes]]:
        wait_until(lambda: len(self.received) >= count, timeout_s)
        return self.received
