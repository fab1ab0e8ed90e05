"""The application's page: worklist, viewer, findings, header and help, as Gradio Blocks."""

import logging
from typing import Any

import gradio as gr

from medqua.ui import panel, pieces, workplace
from medqua.ui.audit import AuditLog
from medqua.ui.cookies import COOKIE
from medqua.ui.desk import Desk
from medqua.ui.findings import Occluder, Reading
from medqua.ui.overlay import occlusion_text, overlay_text
from medqua.ui.quantum import narrow_on, quantum_tab
from medqua.ui.studies import Session, Sessions
from medqua.ui.worklist import Worklist

REVEAL, HIDE = "Reveal personal data", "Hide personal data"
NO_MODEL = "No model is loaded: start without --pictures-only to see findings."
ENDED = "This session has ended. Reload the page."

_OVERLAY_TO_VIEWER = """(text) => {
  if (!text) return;
  const frame = document.getElementById("viewer");
  frame.contentWindow.postMessage({overlay: JSON.parse(text)}, location.origin);
}"""

_FROM_VIEWER = """() => window.addEventListener("message", (event) => {
  const frame = document.getElementById("viewer");
  if (event.source !== frame.contentWindow || event.origin !== location.origin) return;
  if (event.data?.explain) document.querySelector("#explain")?.click();
})"""

logger = logging.getLogger("medqua.ui")


def build_page(
    sessions: Sessions,
    worklist: Worklist,
    audit: AuditLog,
    desk: Desk,
    *,
    samples: bool = False,
) -> gr.Blocks:
    """Build the page.

    Args:
        sessions: Where studies are kept.
        worklist: Opens the samples.
        audit: Told when personal data are revealed.
        desk: Gives findings.
        samples: Open the sample phantoms in every new session.
    """
    acts = _Acts(sessions, worklist, audit, desk, samples=samples)
    page = gr.Blocks(
        title="MedQua", analytics_enabled=False, fill_width=True, delete_cache=(300, 600)
    )
    with page:
        gr.HTML(workplace.BANNER)
        opened = gr.Textbox("", visible="hidden", elem_id="opened", show_label=False)
        again = gr.Textbox("", visible="hidden", elem_id="again", show_label=False)
        overlay = gr.Textbox("", visible="hidden", elem_id="overlay", show_label=False)
        looked_at = gr.Textbox("", visible="hidden", elem_id="looked-at", show_label=False)
        explain = gr.Button("Explain", visible="hidden", elem_id="explain")
        with gr.Row(elem_id="work"):
            with gr.Column(scale=2, min_width=240, elem_id="left"):
                gr.HTML(workplace.LEFT)
            with gr.Column(scale=6, min_width=380, elem_id="middle"):
                gr.HTML(pieces.VIEWER)
            with gr.Column(scale=3, min_width=300, elem_id="right"), gr.Tabs():
                with gr.Tab("Findings") as first:
                    findings = gr.HTML(pieces.no_findings("Open a study."), elem_id="reading")
                with gr.Tab("Header") as second:
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
                with gr.Tab("Out") as third:
                    gr.HTML(workplace.OUT)
                quantum_tab(opened, looked_at, acts.reading)
                with gr.Tab("Help") as last:
                    gr.Markdown(pieces.HELP)
                for tab in (first, second, third, last):
                    narrow_on(tab)
    with page:
        opened.change(
            acts.header, [opened, look], [tags, reveal], show_progress="hidden",
            concurrency_limit=None, api_visibility="private",
        )  # fmt: skip
        look.change(
            acts.header, [opened, look], [tags, reveal], show_progress="hidden",
            trigger_mode="always_last", api_visibility="private",
        )  # fmt: skip
        gr.on(
            [opened.change, again.change], acts.read, opened, [findings, overlay],
            concurrency_limit=4, api_visibility="private",
        )  # fmt: skip
        overlay.change(None, overlay, None, js=_OVERLAY_TO_VIEWER, api_visibility="private")
        explain.click(
            acts.explain, opened, overlay, show_progress="hidden", api_visibility="private"
        )
        page.load(None, None, None, js=_FROM_VIEWER, api_visibility="private")
        reveal.click(
            acts.reveal, [opened, look], [tags, reveal], show_progress="hidden",
            api_visibility="private",
        )  # fmt: skip
        page.load(acts.arrive, None, None, show_progress="hidden", api_visibility="private")
        page.unload(acts.leave)
    return page


class _Acts:
    """What the page does, for the session that asks."""

    def __init__(
        self,
        sessions: Sessions,
        worklist: Worklist,
        audit: AuditLog,
        desk: Desk,
        *,
        samples: bool,
    ) -> None:
        self.sessions, self.worklist, self.audit, self.desk = sessions, worklist, audit, desk
        self.samples = samples

    def arrive(self, request: gr.Request) -> None:
        session = self._session(request)
        session.tabs.add(str(request.session_hash))
        if self.samples:
            self.worklist.arrive(session)

    def leave(self, request: gr.Request) -> None:
        token = _token(request)
        if token is not None:
            self.sessions.leave(token, str(request.session_hash))

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
        elif study is not None and not session.user.may("reveal"):
            gr.Warning("This needs the role `reveal`.")
        elif study is not None:
            client = request.client.host if request.client else ""
            try:
                self.audit.write("reveal", who=session.who, client=client, study=study.digest)
            except OSError:
                logger.error("the audit log cannot be written: personal data stay masked")
                gr.Warning("The audit log cannot be written, so personal data stay masked.")
            else:
                session.revealed.add(opened)
        return self.header(opened, look, request)

    def read(self, opened: str, request: gr.Request) -> tuple[str, str]:
        session = self._session(request)
        study = session.studies.get(opened)
        if study is None:
            return pieces.no_findings("Open a study."), ""
        reading = self.desk.read(session, study)
        if reading is None:
            return pieces.no_findings(NO_MODEL), ""
        return panel.findings(reading), overlay_text(study, reading)

    def reading(self, opened: str, request: gr.Request) -> Reading | None:
        """Return the reading of one of the session's studies; None where there is none."""
        session = self._session(request)
        study = session.studies.get(opened)
        return None if study is None else self.desk.read(session, study)

    def explain(self, opened: str, request: gr.Request) -> str:
        study = self._session(request).studies.get(opened)
        if study is None or not isinstance(self.desk.reader, Occluder):
            return ""
        return occlusion_text(study, self.desk.reader)

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
