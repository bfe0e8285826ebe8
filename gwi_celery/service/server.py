"""Runs the application with uvicorn: the push service in the main thread, health checks in another."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from gwi_celery.config import Settings
from gwi_celery.exits import end_now
from gwi_celery.service.app import create_app
from gwi_celery.service.connections import limited, most_connections
from gwi_celery.service.limits import MAX_HEAD

logger = logging.getLogger(__name__)

DEFAULT_PORT = 8080
#: Seconds an idle connection is kept. Longer than Google's front end keeps it, so that it never sends a
#: request on a connection that is just being closed.
_KEEP_ALIVE = 620
#: Connections at a time: as many as Cloud Run has requests for one instance; and of probes.
_CONNECTIONS, _HEALTH_CONNECTIONS = 1000, 100


def run(app: Any, settings: Settings, *, loglevel: str = "INFO") -> None:
    """Serve until SIGTERM or SIGINT. Raises ConfigurationError before it listens."""
    application = create_app(app, settings)
    app.log.setup(loglevel=loglevel)
    # uvicorn raises the signal again once it has stopped; but a stop on request is a success.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server = Server(
        _config(application, settings.effective_host, settings.port or DEFAULT_PORT, _CONNECTIONS)
    )
    server.run()
    # A job's threads that didn't end must not keep the process alive.
    logging.shutdown()
    end_now(0 if server.started else 3)


class Server(uvicorn.Server):
    """uvicorn, whose sockets stay out of the pool's children."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._pid = os.getpid()
        os.register_at_fork(after_in_child=self._close_in_child)

    def _close_in_child(self) -> None:
        # A child that outlives this process would keep its port, and its callers' connections.
        for sock in self._sockets():
            with contextlib.suppress(OSError):
                # Detached, so that its object never closes the descriptor's next owner.
                os.close(getattr(sock, "_sock", sock).detach())

    def _sockets(self) -> list[socket.socket]:
        listening = [s for server in getattr(self, "servers", ()) for s in server.sockets]
        connections = [
            c.transport.get_extra_info("socket")
            for c in list(self.server_state.connections)
            if getattr(c, "transport", None) is not None
        ]
        return [s for s in (*listening, *connections) if s is not None and s.fileno() >= 0]


def _config(application: ASGIApp, host: str, port: int, connections: int) -> uvicorn.Config:
    most = most_connections(connections)
    return uvicorn.Config(
        application,
        host=host,
        port=port,
        http=limited(most),  # on h11, which limits a request's head
        backlog=most,  # accepted in one go, before any of them can be closed
        proxy_headers=False,  # the caller is whoever connects: anybody can send X-Forwarded-For
        h11_max_incomplete_event_size=2 * MAX_HEAD,
        ws="none",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE,
        timeout_graceful_shutdown=2,
    )


class BackgroundServer:
    """The same server in a thread, for a pull worker. Raises nothing once it has started."""

    def __init__(self, application: ASGIApp, host: str, port: int) -> None:
        self._server = Server(_config(application, host, port, _HEALTH_CONNECTIONS))
        self._thread = threading.Thread(target=self._run, name="gwi-health", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=3)

    def _run(self) -> None:
        try:
            self._server.run()
        except SystemExit:
            logger.error(
                "the health endpoints can't listen on port %s: is it in use? The worker goes on "
                "without them",
                self._server.config.port,
            )
        except Exception:
            logger.exception("the health endpoints have failed; the worker goes on without them")
