"""The application's page: worklist, viewer, findings, header and help, as Gradio Blocks."""

import logging
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import gradio as gr

from medqua.core.vision.image import Decoder
from medqua.ui import pieces
from medqua.ui.audit import AuditLog
from medqua.ui.findings import Reader
from medqua.ui.guard import COOKIE
from medqua.ui.intake import take_in
from medqua.ui.studies import Session, Sessions, Study

SAMPLES = Path(__file__).parent / "samples"
"""Synthetic radiographs, shipped with the package."""

REVEAL, HIDE = "Reveal personal data", "Hide personal data"
NO_MODEL = "No model is loaded: start with --bundle FOLDER to see findings."
ENDED = "This session has ended. Reload the page."

_TO_VIEWER = """(name) => {
  const frame = document.getElementById("viewer");
  const wish = name ? {open: name} : {close: true};
  const tell = () => frame.contentWindow.postMessage(wish, location.origin);
  if (frame.contentDocument?.readyState === "complete" && frame.contentWindow.viewer) tell();
  else window.addEventListener("message", function ready(event) {
    if (event.source !== frame.contentWindow || event.data?.viewer !== "ready") return;
    window.removeEventListener("message", ready);
    tell();
  });
}"""

logger = logging.getLogger("medqua.ui")


def build_page(
    sessions: Sessions,
    decoder: Decoder,
    audit: AuditLog,
    reader: Reader | None,
    *,
    samples: bool = False,
) -> gr.Blocks:
    """Build the page.

    Args:
        sessions: Where studies are kept.
        decoder: Reads every upload.
        audit: Told when personal data are revealed.
        reader: Gives findings; None without a model.
        samples: Open the sample phantoms in every new session.
    """
    acts = _Acts(sessions, decoder, audit, reader, samples=samples)
    page = gr.Blocks(
        title="MedQua", analytics_enabled=False, fill_width=True, delete_cache=(300, 600)
    )
    with page:
        gr.HTML(pieces.BANNER)
        opened = gr.Textbox("", visible="hidden", elem_id="opened", show_label=False)
        with gr.Row(elem_id="work"):
            with gr.Column(scale=2, min_width=240, elem_id="left"):
                files = gr.File(
                    label="Open files", file_count="multiple", elem_id="files", height=96
                )
                status = gr.HTML(elem_id="status")
                search = gr.Textbox(
                    value="",
                    placeholder="Filter",
                    label="Filter the studies",
                    show_label=False,
                    container=False,
                    elem_id="search",
                )
                studies = gr.Radio([], label="Studies", elem_id="studies")
                refused = gr.HTML()
                more = gr.Button("Open sample phantoms", size="sm")
                clear = gr.Button("Close all studies", size="sm", variant="secondary")
            with gr.Column(scale=6, min_width=380, elem_id="middle"):
                gr.HTML(pieces.VIEWER)
            with gr.Column(scale=3, min_width=300, elem_id="right"), gr.Tabs():
                with gr.Tab("Findings"):
                    findings = gr.HTML(pieces.no_findings("Open a study."), elem_id="reading")
                with gr.Tab("Header"):
                    reveal = gr.Button(REVEAL, size="sm", interactive=False)
                    look = gr.Textbox(
                        value="",
                        placeholder="Search tag, name or value",
                        label="Search the header",
                        show_label=False,
                        container=False,
                        elem_id="look",
                    )
                    tags = gr.HTML(pieces.no_findings("Open a study."), elem_id="tags")
                with gr.Tab("Help"):
                    gr.Markdown(pieces.HELP)
    taken = [files, studies, refused, status, opened]
    with page:
        files.upload(
            acts.upload, [files, search], taken, concurrency_limit=4, show_progress="hidden",
            api_visibility="private",
        )  # fmt: skip
        more.click(
            acts.open_samples, search, taken, show_progress="hidden", api_visibility="private"
        )
        studies.input(None, studies, opened, js="(name) => name", api_visibility="private")
        search.change(
            acts.filter, [search, opened], studies, show_progress="hidden",
            api_visibility="private",
        )  # fmt: skip
        opened.change(None, opened, None, js=_TO_VIEWER, api_visibility="private")
        opened.change(
            acts.header, [opened, look], [tags, reveal], show_progress="hidden",
            concurrency_limit=None, api_visibility="private",
        )  # fmt: skip
        look.change(
            acts.header, [opened, look], [tags, reveal], show_progress="hidden",
            trigger_mode="always_last", api_visibility="private",
        )  # fmt: skip
        opened.change(acts.read, opened, findings, concurrency_limit=4, api_visibility="private")
        reveal.click(
            acts.reveal, [opened, look], [tags, reveal], show_progress="hidden",
            api_visibility="private",
        )  # fmt: skip
        clear.click(acts.clear, None, taken, api_visibility="private")
        page.load(acts.arrive, None, taken, show_progress="hidden", api_visibility="private")
        page.unload(acts.leave)
    return page


class _Acts:
    """What the page does, for the session that asks."""

    def __init__(
        self,
        sessions: Sessions,
        decoder: Decoder,
        audit: AuditLog,
        reader: Reader | None,
        *,
        samples: bool,
    ) -> None:
        self.sessions, self.decoder, self.audit, self.reader = sessions, decoder, audit, reader
        self.samples = samples

    def arrive(self, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        session = self._session(request)
        session.tabs.add(str(request.session_hash))
        if self.samples and not session.studies:
            yield from self._take_in(session, _sample_copies(self.sessions.uploads), "")
            return
        first = next(iter(session.studies), "")
        yield None, _radio(session, "", first), pieces.refusals(session.refusals), "", first

    def leave(self, request: gr.Request) -> None:
        token = _token(request)
        if token is not None:
            self.sessions.leave(token, str(request.session_hash))

    def upload(
        self, files: list[str] | None, search: str, request: gr.Request
    ) -> Iterator[tuple[Any, ...]]:
        session = self._session(request)
        yield from self._take_in(session, [Path(file) for file in files or []], search)

    def open_samples(self, search: str, request: gr.Request) -> Iterator[tuple[Any, ...]]:
        session = self._session(request)
        yield from self._take_in(session, _sample_copies(self.sessions.uploads), search)

    def _take_in(
        self, session: Session, paths: list[Path], search: str
    ) -> Iterator[tuple[Any, ...]]:
        """Open files; the first that opens is shown at once."""
        opened, refused, shown = 0, 0, ""
        for result in take_in(session, paths, self.decoder):
            if isinstance(result, Study):
                opened += 1
                shown = shown or result.name
            else:
                refused += 1
            state = pieces.told(opened, refused, done=False)
            radio = _radio(session, search, shown) if shown else gr.skip()
            yield gr.skip(), radio, pieces.refusals(session.refusals), state, shown or gr.skip()
        state = pieces.told(opened, refused, done=True)
        radio = _radio(session, search, shown) if shown else gr.skip()
        yield None, radio, pieces.refusals(session.refusals), state, shown or gr.skip()

    def filter(self, search: str, opened: str, request: gr.Request) -> Any:
        return _radio(self._session(request), search, opened)

    def header(self, opened: str, look: str, request: gr.Request) -> tuple[str, Any]:
        session = self._session(request)
        study = session.studies.get(opened)
        if study is None:
            return pieces.no_findings("Open a study."), gr.Button(REVEAL, interactive=False)
        revealed = opened in session.revealed
        rows = study.tags()
        button = gr.Button(HIDE if revealed else REVEAL, interactive=bool(rows))
        return pieces.tag_table(rows, look, revealed=revealed), button

    def reveal(self, opened: str, look: str, request: gr.Request) -> tuple[str, Any]:
        session = self._session(request)
        study = session.studies.get(opened)
        if study is not None and opened in session.revealed:
            session.revealed.discard(opened)
        elif study is not None:
            public = sha256((_token(request) or "").encode()).hexdigest()[:12]
            who = request.username or f"session {public}"
            client = request.client.host if request.client else ""
            try:
                self.audit.write("reveal", who=who, client=client, study=study.digest)
            except OSError:
                logger.error("the audit log cannot be written: personal data stay masked")
                gr.Warning("The audit log cannot be written, so personal data stay masked.")
            else:
                session.revealed.add(opened)
        return self.header(opened, look, request)

    def read(self, opened: str, request: gr.Request) -> str:
        study = self._session(request).studies.get(opened)
        if study is None:
            return pieces.no_findings("Open a study.")
        if self.reader is None:
            return pieces.no_findings(NO_MODEL)
        return pieces.findings(self.reader.read(study.file, study.content.read_bytes()))

    def clear(self, request: gr.Request) -> tuple[Any, ...]:
        session = self._session(request)
        session.empty()
        return None, _radio(session, "", ""), "", "", ""

    def _session(self, request: gr.Request) -> Session:
        """Return the asking browser's session.

        Raises:
            gr.Error: If it has ended; shown to the user as a sentence.
        """
        session = self.sessions.get(_token(request))
        if session is None:
            raise gr.Error(ENDED, print_exception=False)
        return session


def _token(request: gr.Request) -> str | None:
    token = request.cookies.get(COOKIE)
    return None if token is None else str(token)


def _radio(session: Session, search: str, opened: str) -> Any:
    choices = pieces.worklist(session, search)
    names = [name for _, name in choices]
    return gr.Radio(choices=choices, value=opened if opened in names else None)


def _sample_copies(folder: Path) -> list[Path]:
    """Copy the samples to where uploads lie: what is taken in is deleted."""
    copies = []
    for sample in sorted(SAMPLES.glob("*.*")):
        if sample.suffix in (".dcm", ".png", ".jpg"):
            copy = folder / sample.name
            copy.write_bytes(sample.read_bytes())
            copies.append(copy)
    return copies
