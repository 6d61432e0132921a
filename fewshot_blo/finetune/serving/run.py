"""Serves the application until a person ends it."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress

from fewshot_blo.errors import ConfigurationError, installed_by
from fewshot_blo.finetune.serving.app import application
from fewshot_blo.finetune.serving.guard import is_loopback
from fewshot_blo.finetune.serving.versions import Versions

with installed_by(".[serve]"):
    import uvicorn

_GRACE = 3
"""Seconds that requests have to end in."""


def serve(versions: Versions, host: str, port: int) -> None:
    """Prints the address and answers requests until Ctrl-C.

    Args:
        versions: the classifier, with what it learns.
        host: name or address of an interface of this machine.
        port: its port; 0 takes a free one.

    Raises:
        ConfigurationError: if the port is taken, or host and port cannot be used.
    """
    listening = _socket(host, port)
    with listening:
        port = listening.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        if not is_loopback(host):
            print(
                f"anyone who reaches {shown} can use this classifier, see its training images and "
                "teach it classes: leave out --host to serve this machine alone"
            )
        print(f"open http://{shown}:{port} in a browser; Ctrl-C ends the server", flush=True)
        config = uvicorn.Config(
            application(versions, host),
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            timeout_graceful_shutdown=_GRACE,
        )
        with suppress(KeyboardInterrupt):  # uvicorn ends requests, and then raises it.
            uvicorn.Server(config).run(sockets=[listening])
    print("ended")


def _socket(host: str, port: int) -> socket.socket:
    """A listening socket."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family)
    except (OSError, OverflowError) as error:
        if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
            reason = "another program listens there: choose another --port, or 0 for a free one"
        else:
            reason = f"{error}: choose another --host or --port"
        raise ConfigurationError(f"cannot serve on port {port} of {host}: {reason}") from error
