"""The server: guard, viewer routes and the Gradio page in one ASGI application."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.routing import Mount

from medqua.core.errors import ConfigError
from medqua.core.vision.image import Decoder
from medqua.serve.pacs.errors import SpoolError
from medqua.ui import workplace
from medqua.ui.archive import Archive
from medqua.ui.audit import AuditLog, default_log
from medqua.ui.desk import Desk
from medqua.ui.exports import Exports, Outbox
from medqua.ui.findings import BundleReader, Reader
from medqua.ui.guard import Guard
from medqua.ui.login import Passwords
from medqua.ui.login_oidc import Provider, ProviderSettings
from medqua.ui.login_routes import Doors
from medqua.ui.opening import Page
from medqua.ui.panel_routes import Panel
from medqua.ui.routes import viewer_routes
from medqua.ui.server import Credentials, ServerReader
from medqua.ui.studies import Session, Sessions
from medqua.ui.worklist import Worklist

SWEEP_SECONDS = 15.0


@dataclass(frozen=True)
class Settings:
    """How the server is run."""

    bundle: Path | None = None
    """Bundle to read studies with; None shows pictures alone, unless there is a server."""
    server: str = ""
    """Address of a service that reads studies instead."""
    credentials: Credentials = field(default_factory=Credentials)
    """What is shown to it."""
    authorities: Path | None = None
    """Certificate authorities of service and archive, PEM; the system's by default."""
    archive: Archive | None = None
    """Archive to fetch studies from and to send reports to."""
    outbox: Path | None = None
    """Folder of reports on their way to the archive."""
    passwords: Path | None = None
    """Password file: with it, users log in."""
    oidc: Path | None = None
    """Settings of the identity provider: with them, users log in there."""
    device: str = "cpu"
    """Where the model runs."""
    samples: bool = False
    """Open the sample phantoms in every new session."""
    host_names: tuple[str, ...] = ()
    """Host names that it is served under, beside those of loopback."""
    audit: Path = field(default_factory=default_log)
    """Audit log."""
    keep_hours: float = 8.0
    """Hours without use after which a session's files are deleted."""
    upload_bytes: int = 2 << 30
    """Largest upload, in bytes."""
    login_hours: float = 12.0
    """Hours after which users log in again."""


def create_app(settings: Settings, reader: Reader | None = None) -> Starlette:
    """Build the application.

    Args:
        settings: How it is run.
        reader: Gives findings; by default that of `settings.bundle`.

    Raises:
        ConfigError: If the audit log cannot be written, or a file of settings is wrong.
    """
    audit = AuditLog(settings.audit)
    login = settings.passwords is not None or settings.oidc is not None
    passwords = None if settings.passwords is None else Passwords(settings.passwords)
    provider = None if settings.oidc is None else Provider(ProviderSettings.load(settings.oidc))
    if reader is None and settings.server:
        reader = ServerReader(
            settings.server, settings.credentials, authorities=settings.authorities
        )
    sessions = Sessions(
        keep_seconds=settings.keep_hours * 3600,
        longest_seconds=(settings.login_hours if login else 24 * 365) * 3600.0,
    )
    # Gradio reads them when it is imported, in `_build`
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(sessions.uploads)
    os.environ["HF_HUB_OFFLINE"] = "1"
    decoder = Decoder()
    if reader is None and settings.bundle is not None:
        reader = BundleReader(settings.bundle, settings.device)
    desk = Desk(reader, threads=4 if settings.server else 1)
    worklist = Worklist(
        sessions, decoder, desk, settings.archive, audit,
        upload_bytes=settings.upload_bytes, login=login,
    )  # fmt: skip
    outbox = None if settings.archive is None else _outbox(settings)
    exports = Exports(sessions, desk, audit, outbox)

    def make() -> Starlette:
        return _build(sessions, worklist, desk, samples=settings.samples)

    def arrive(session: Session) -> None:
        if settings.samples:
            worklist.arrive(session)

    page = Page(make, sessions, arrive)

    async def built() -> None:
        if isinstance(reader, BundleReader):
            reader.start()  # not before: both are imports, which take turns

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await run_in_threadpool(decoder.start)
        running = [asyncio.create_task(_sweep(sessions)), asyncio.create_task(page.run(built))]
        try:
            yield
        finally:
            if isinstance(reader, BundleReader):
                reader.stop()
            for task in running:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            await run_in_threadpool(desk.close)
            if isinstance(reader, BundleReader):
                await run_in_threadpool(reader.close)
            if outbox is not None:
                await run_in_threadpool(outbox.close)
            decoder.close()
            sessions.close()

    doors = Doors(sessions, audit, passwords, provider) if login else None
    panel = Panel(sessions, desk, audit)
    routes = [*worklist.routes(), *page.state_routes(), *panel.routes(), *exports.routes()]
    routes += viewer_routes(sessions)
    if doors is not None:
        routes += doors.routes()
    app = Starlette(lifespan=lifespan, routes=[*routes, Mount("", page)])
    app.add_middleware(Guard, sessions=sessions, hosts=settings.host_names, doors=doors)
    app.state.page = page
    return app


def _build(sessions: Sessions, worklist: Worklist, desk: Desk, *, samples: bool) -> Starlette:
    """Build Gradio's application, importing Gradio."""
    import gradio as gr
    from fastapi import FastAPI

    from medqua.ui.page import build_page

    page = build_page(sessions, worklist, desk, samples=samples)
    sans, mono = ["system-ui", "DejaVu Sans", "sans-serif"], ["ui-monospace", "monospace"]
    theme = gr.themes.Default(font=sans, font_mono=mono)  # none that is fetched
    whole: Starlette = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        page,
        path="",
        theme=theme,
        css_paths=Path(__file__).parent / "page.css",
        head=workplace.HEAD,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        show_error=False,
        max_file_size=1,  # files come in by our own route
    )
    return whole


def _outbox(settings: Settings) -> Outbox:
    """Open the folder of reports on their way.

    Raises:
        ConfigError: It cannot be had.
    """
    if settings.archive is None:
        raise ConfigError("an outbox needs --archive")
    folder = settings.outbox or settings.audit.with_name("outbox")
    try:
        return Outbox(folder, settings.archive)
    except (OSError, SpoolError):
        raise ConfigError(f"{folder} cannot be written; give another with --outbox") from None


async def _sweep(sessions: Sessions) -> None:
    """Delete what is over, for ever."""
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        await run_in_threadpool(sessions.sweep)


def is_loopback(hosts: Iterable[str]) -> bool:
    """Tell whether all addresses are reached from this machine alone."""
    return all(host in ("127.0.0.1", "localhost", "::1") for host in hosts)
