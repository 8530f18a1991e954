"""An example agent: serves HTTP, stays registered while it runs, and unregisters on SIGTERM or SIGINT.

Configured by ``$REGISTRY``, ``$AGENT_NAME``, ``$AGENT_PORT`` and ``$OSSA_REGISTRY_TOKEN``; see README.md.
"""

import asyncio
import os
import sys
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from registry_client import Registration, RegistrationState, RegistryClient, make_service

NAME = os.environ.get("AGENT_NAME") or "greeter-python"
TTL_SECONDS = 30


class Greeter(BaseHTTPRequestHandler):
    """Serves ``GET /greet?name=you``, and ``GET /health`` for the registry's probes."""

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        match url.path:
            case "/health":
                self._respond(200, "application/json", '{"status":"ok"}')
            case "/greet":
                self._respond(200, "text/plain", f"hello, {parse_qs(url.query).get('name', ['you'])[0]}\n")
            case _:
                self._respond(404, "text/plain", "")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named by the base class
        """Do not log the probes, which arrive every few seconds."""

    def _respond(self, status: int, kind: str, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


async def print_states(registration: Registration, endpoint: str) -> None:
    """Print changes of the registration state, until the registry rejects the service or another process replaces it.

    The SDK sends a heartbeat every third of the TTL on one stream, registers again if needed, and handles SIGTERM.
    """
    states: asyncio.Queue[RegistrationState] = asyncio.Queue()
    registration.on_change(states.put_nowait)
    final = (RegistrationState.REFUSED, RegistrationState.SUPERSEDED)
    while (state := await states.get()) not in final:
        if state is RegistrationState.REGISTERED:
            print(f"registered {NAME} at {endpoint}", flush=True)
        elif state is RegistrationState.AWAY:
            print(f"registry unavailable: {registration.error}", file=sys.stderr)
    raise SystemExit(f"{state.value}: {registration.error}")


async def main(port: int) -> None:
    endpoint = f"http://127.0.0.1:{port}"
    service = make_service(
        NAME,
        endpoint,
        version="1.0.0",
        group="greeter",  # shared by its replicas
        capabilities=["greet@1.0.0"],
        tags=["example"],
        labels={"language": "python"},
        ttl=TTL_SECONDS,
    )
    client = RegistryClient(
        os.environ.get("REGISTRY") or "localhost:50051", token=os.environ.get("OSSA_REGISTRY_TOKEN") or None
    )
    async with client, client.registration(service, wait=False) as registration:
        await print_states(registration, endpoint)
    print(f"unregistered {NAME}", flush=True)


if __name__ == "__main__":
    with ThreadingHTTPServer(("127.0.0.1", int(os.environ.get("AGENT_PORT") or 0)), Greeter) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with suppress(KeyboardInterrupt):  # the service is already unregistered
            asyncio.run(main(server.server_port))
        server.shutdown()
