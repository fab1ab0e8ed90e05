"""The application's page as Gradio Blocks: its frame, its tabs, and the quantum tab.

Worklist, picture, findings and header are HTML that `static/` fills from routes of our own.
"""

import gradio as gr

from medqua.ui import pieces, workplace
from medqua.ui.cookies import COOKIE
from medqua.ui.desk import Desk
from medqua.ui.findings import Reading
from medqua.ui.quantum import narrow_on, quantum_tab
from medqua.ui.studies import Session, Sessions
from medqua.ui.worklist import Worklist

ENDED = "This session has ended. Reload the page."


def build_page(
    sessions: Sessions, worklist: Worklist, desk: Desk, *, samples: bool = False
) -> gr.Blocks:
    """Build the page.

    Args:
        sessions: Where studies are kept.
        worklist: Opens the samples.
        desk: Gives findings.
        samples: Open the sample phantoms in every new session.
    """
    acts = _Acts(sessions, worklist, desk, samples=samples)
    page = gr.Blocks(
        title="MedQua", analytics_enabled=False, fill_width=True, delete_cache=(300, 600)
    )
    with page:
        gr.HTML(workplace.BANNER)
        opened = gr.Textbox("", visible="hidden", elem_id="opened", show_label=False)
        looked_at = gr.Textbox("", visible="hidden", elem_id="looked-at", show_label=False)
        with gr.Row(elem_id="work"):
            with gr.Column(scale=2, min_width=240, elem_id="left"):
                gr.HTML(workplace.LEFT)
            with gr.Column(scale=6, min_width=380, elem_id="middle"):
                gr.HTML(pieces.VIEWER)
            with gr.Column(scale=3, min_width=300, elem_id="right"), gr.Tabs():
                with gr.Tab("Findings") as first:
                    gr.HTML(workplace.FINDINGS)
                with gr.Tab("Header", render_children=True) as second:
                    gr.HTML(workplace.HEADER)
                with gr.Tab("Out") as third:
                    gr.HTML(workplace.OUT)
                quantum_tab(opened, looked_at, acts.reading)
                with gr.Tab("Help") as last:
                    gr.Markdown(pieces.HELP)
                for tab in (first, second, third, last):
                    narrow_on(tab)
        page.load(acts.arrive, None, None, show_progress="hidden", api_visibility="private")
        page.unload(acts.leave)
    return page


class _Acts:
    """What the page does, for the session that asks."""

    def __init__(
        self, sessions: Sessions, worklist: Worklist, desk: Desk, *, samples: bool
    ) -> None:
        self.sessions, self.worklist, self.desk = sessions, worklist, desk
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

    def reading(self, opened: str, request: gr.Request) -> Reading | None:
        """Return the reading of one of the session's studies; None where there is none."""
        session = self._session(request)
        study = session.studies.get(opened)
        return None if study is None else self.desk.read(session, study)

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
