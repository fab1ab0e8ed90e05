"""The server: guard, viewer routes and the Gradio page in one ASGI application."""

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from medqua.core.vision.image import Decoder
from medqua.ui.audit import AuditLog, default_log
from medqua.ui.findings import BundleReader, Reader
from medqua.ui.guard import Guard
from medqua.ui.routes import viewer_routes
from medqua.ui.studies import Sessions

SWEEP_SECONDS = 15.0


@dataclass(frozen=True)
class Settings:
    """How the server is run."""

    bundle: Path | None = None
    """Bundle to read studies with; None shows pictures alone."""
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


def create_app(settings: Settings, reader: Reader | None = None) -> FastAPI:
    """Build the application.

    Args:
        settings: How it is run.
        reader: Gives findings; by default that of `settings.bundle`.

    Raises:
        ConfigError: If the audit log cannot be written.
    """
    audit = AuditLog(settings.audit)
    sessions = Sessions(keep_seconds=settings.keep_hours * 3600)
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(sessions.uploads)
    os.environ["HF_HUB_OFFLINE"] = "1"
    import gradio as gr  # reads the environment; takes seconds

    from medqua.ui.page import build_page

    decoder = Decoder()
    if reader is None and settings.bundle is not None:
        reader = BundleReader(settings.bundle, settings.device)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await run_in_threadpool(decoder.start)
        sweeping = asyncio.create_task(_sweep(sessions))
        try:
            yield
        finally:
            sweeping.cancel()
            with suppress(asyncio.CancelledError):
                await sweeping
            decoder.close()
            sessions.close()

    app = FastAPI(lifespan=lifespan, openapi_url=None, routes=viewer_routes(sessions))
    app.add_middleware(Guard, sessions=sessions, hosts=settings.host_names)
    page = build_page(sessions, decoder, audit, reader, samples=settings.samples)
    sans, mono = ["system-ui", "DejaVu Sans", "sans-serif"], ["ui-monospace", "monospace"]
    theme = gr.themes.Default(font=sans, font_mono=mono)  # none that is fetched
    gr.mount_gradio_app(
        app,
        page,
        path="",
        theme=theme,
        css_paths=Path(__file__).parent / "page.css",
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        show_error=False,
        max_file_size=settings.upload_bytes,
    )
    return app


async def _sweep(sessions: Sessions) -> None:
    """Delete what is over, for ever."""
    while True:
        await asyncio.sleep(SWEEP_SECONDS)
        await run_in_threadpool(sessions.sweep)


def is_loopback(hosts: Iterable[str]) -> bool:
    """Tell whether all addresses are reached from this machine alone."""
    return all(host in ("127.0.0.1", "localhost", "::1") for host in hosts)
