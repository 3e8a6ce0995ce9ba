"""Endpoints on this machine that speak the OpenAI protocol, as far as a judge needs it."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class LongerIsBetter(BaseHTTPRequestHandler):
    """Prefers the longer of two responses, whichever is shown first."""

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["messages"][0]["content"]
        a, _, rest = question.partition("[Response A]\n")[2].partition("\n\n[Response B]\n")
        b = rest.partition("\n\n[End")[0]
        verdict = "tie" if len(a) == len(b) else "A" if len(a) > len(b) else "B"
        body = json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": verdict}}]}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


class Refusing(LongerIsBetter):
    """Wants a key that nobody has."""

    def do_POST(self) -> None:
        self.send_error(401)


@contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1"
        server.shutdown()
