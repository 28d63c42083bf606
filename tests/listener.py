"""A client's own HTTP server on loopback."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.waiting import wait_until


class Listener:
    """A client's own server: takes webhooks and uploads, and fails as often as is set."""

    def __init__(self) -> None:
        self.received: list[tuple[str, str, str, bytes]] = []
        self.headers: list[dict[str, str]] = []
        self.num_failures = 0
        self.failure_status = 500
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                status = outer.failure_status if outer.num_failures > 0 else 200
                outer.num_failures -= 1
                if status == 200:
                    outer.headers.append({k.lower(): v for k, v in self.headers.items()})
                    kind = self.headers["content-type"]
                    outer.received.append((self.command, self.path, kind, body))
                self.send_response(status)
                self.send_header("content-length", "0")
                self.end_headers()

            do_POST = do_PUT = handle_any

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def wait_for(self, count: int, timeout_s: float = 60) -> list[tuple[str, str, str, bytes]]:
        wait_until(lambda: len(self.received) >= count, timeout_s)
        return self.received
