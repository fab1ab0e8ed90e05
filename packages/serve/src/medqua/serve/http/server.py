"""The app under uvicorn: one process that listens, its workers beside it, an orderly end.

On SIGTERM or Ctrl-C it takes no new connections, `/readyz` says so on open ones, requests under
way are answered within `listen.drain_seconds`, and jobs that are not done stay in the spool.
"""

import asyncio
import os
import socket
from pathlib import Path
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from medqua.serve.http.metrics import log
from medqua.serve.http.service import Service
from medqua.serve.settings import Settings

CONNECTIONS = 1000
"""Connections open at a time; the next is answered 503."""

KEEP_ALIVE = 10
"""Seconds for which an idle connection is kept."""

HEAD_SECONDS = 10.0
"""Seconds in which a request's head must have arrived, from its first byte or the connection on."""


class _Protocol(H11Protocol):
    """HTTP/1.1, which cuts a client that does not end its request's head."""

    _cut: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._unwatch()
        elif self._cut is None:
            self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        self._cut = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _unwatch(self) -> None:
        if self._cut is not None:
            self._cut.cancel()
            self._cut = None


class _Server(uvicorn.Server):
    """Uvicorn, which says where it listens and tells the service of its end."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say where."""
        await super().startup(sockets)
        if self.started:
            for server in self.servers:
                for listening in server.sockets:
                    host, port, *_ = listening.getsockname()
                    log.info("listening", extra={"told": {"host": host, "port": port}})

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end."""
        self._service.draining = True
        super().handle_exit(sig, frame)


def serve(app: FastAPI, settings: Settings) -> None:
    """Serve an app until a signal ends it.

    Args:
        app: As `create_app` builds it.
        settings: Where it listens.

    Raises:
        MedQuaError: The app could not start.
    """
    os.umask(0o077)  # what is kept on disk holds patient data
    listen = settings.listen
    service: Service = app.state.service
    config = uvicorn.Config(
        app,
        http=_Protocol,
        host=listen.host,
        port=listen.port,
        ssl_certfile=_text(listen.certificate),
        ssl_keyfile=_text(listen.private_key),
        ssl_ca_certs=_text(listen.client_authorities),
        ssl_cert_reqs=2 if listen.client_authorities else 0,  # ssl.CERT_REQUIRED, ssl.CERT_NONE
        log_config=None,
        access_log=False,  # it would log whole paths; the guard logs routes
        server_header=False,
        proxy_headers=False,
        limit_concurrency=CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=max(1, round(listen.drain_seconds)),
    )
    try:
        _Server(config, service).run()
    except SystemExit:
        if service.failure is None:
            raise
    if service.failure is not None:
        raise service.failure


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
