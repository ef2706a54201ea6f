"""uvicorn around the application, on a socket that is ours: a port that is taken is one line before any work."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import uvicorn

from maskrcnn.errors import InputError

if TYPE_CHECKING:
    from fastapi import FastAPI

_PATIENCE = 3  # seconds that open connections are given at the end
_CONNECTIONS = 200  # at once; more are told to come again


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. port: 0 takes a free one. Errors: `InputError`."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError, UnicodeError) as error:
        found = getattr(error, "strerror", None) or str(error)
        raise InputError(f"cannot listen on {host}:{port}", field="--host, --port", found=found) from None


def address(listening: socket.socket) -> str:
    """http://127.0.0.1:8000"""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(app: FastAPI, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until Ctrl-C or SIGTERM, which end it in order. ready: called once requests are answered."""

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            ready()

    config = uvicorn.Config(
        app,
        log_level="error",
        server_header=False,
        access_log=False,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=_PATIENCE,
    )
    try:
        Server(config).run(sockets=[listening])
    except KeyboardInterrupt:  # uvicorn hands on what stopped it
        pass
    finally:
        listening.close()
