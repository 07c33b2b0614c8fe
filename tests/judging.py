"""A server on this machine that plays a judge."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any, dict[str, str]] | None
"""Status, body and headers; None closes the connection without a word."""


def completion(content: Any, tokens: list[tuple[str, dict[str, float]]] | None = None) -> Reply:
    """An answer, with the probabilities of the likeliest tokens at each of its places where they are given."""
    usage = {"prompt_tokens": 10, "completion_tokens": 2}
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": content}}
    if tokens is not None:
        choice["logprobs"] = {
            "content": [
                {"token": token, "top_logprobs": [{"token": t, "logprob": math.log(p)} for t, p in tops.items()]}
                for token, tops in tokens
            ]
        }
    return 200, {"choices": [choice], "usage": usage}, {}


def refusal(status: int, message: str, **headers: str) -> Reply:
    return status, {"error": {"message": message}}, {name.replace("_", "-"): value for name, value in headers.items()}


class Server:
    """Plays a judge; ``play`` is given each request's body and how many came before it."""

    def __init__(self, port: int = 0) -> None:
        self.play: Callable[[dict[str, Any], int], Reply] = lambda body, number: completion('{"score": 3}')
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.busy = self.most = 0
        self.released = threading.Event()
        lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number = len(server.bodies)
                    server.bodies.append(body)
                    server.headers.append({"path": self.path, **self.headers})
                    server.busy += 1
                    server.most = max(server.most, server.busy)
                played = server.play(body, number)
                with lock:
                    server.busy -= 1
                if played is None:
                    self.close_connection = True
                    return
                status, reply, headers = played
                raw = (reply if isinstance(reply, str) else json.dumps(reply)).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(raw))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *words: Any) -> None:
                """Nothing."""

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *about: Any) -> None:
                """A client that gave up is what some tests are about."""

        self.http = Quiet(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/v1"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def asked(self, number: int) -> str:
        return str(self.bodies[number]["messages"][-1]["content"])

    def close(self) -> None:
        self.released.set()
        self.http.shutdown()
        self.http.server_close()
