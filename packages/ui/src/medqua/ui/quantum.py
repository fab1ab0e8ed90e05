"""The quantum page, for researchers: circuit, routes and depths of the study in view, targets."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from medqua.core.errors import MedQuaError
from medqua.serve.inference.circuits import MOST_SHOTS, MOST_TOKENS, CircuitLab, offered
from medqua.ui import pieces
from medqua.ui.findings import Reading

NOTHING = "Open a study that the model reads: its circuits, routes and depths are shown here."

_WIDE = """(name) => {
  document.getElementById("work").classList.add("wide");
  return name;
}"""
_IF_WIDE = "(name) => (document.getElementById('work').classList.contains('wide') ? name : '')"
_NARROW = "() => document.getElementById('work').classList.remove('wide')"

Ask = Callable[[str, gr.Request], Reading | None]
"""Gives the reading of a study, by its name, to the session that asks."""


def quantum_tab(opened: gr.Textbox, looked_at: gr.Textbox, ask: Ask) -> None:
    """Add the page as a tab of the tabs under construction.

    Args:
        opened: Name of the study in view.
        looked_at: The same while the tab is in view, else empty.
        ask: Gives its reading.
    """
    acts = _Acts(ask)
    with gr.Tab("Quantum") as tab:
        layer = gr.Radio([], label="Adapter", elem_id="adapter")
        drawn = gr.HTML(pieces.no_findings(NOTHING), elem_id="circuit")
        with gr.Row():
            target = gr.Dropdown(
                [known.name for known in offered()], value="ionq-emulated", label="CUDA-Q target"
            )
            shots = gr.Number(1000, label="Shots", precision=0, minimum=1, maximum=MOST_SHOTS)
            tokens = gr.Slider(1, MOST_TOKENS, 6, step=1, label="Tokens")
            noise = gr.Slider(0, 0.2, 0, step=0.005, label="Error after a CNOT")
        run = gr.Button("Run on the target", size="sm", elem_id="run")
        compared = gr.HTML(elem_id="compared")
    # Gradio sends what one change starts one by one: figures nobody looks at would hold findings up
    tab.select(None, opened, looked_at, js=_WIDE, api_visibility="private")
    opened.change(None, opened, looked_at, js=_IF_WIDE, api_visibility="private")
    looked_at.change(
        acts.show, [looked_at, layer], [layer, drawn, compared],
        show_progress="hidden", api_visibility="private", trigger_mode="always_last",
    )  # fmt: skip
    layer.input(
        acts.show, [opened, layer], [layer, drawn, compared], show_progress="hidden",
        api_visibility="private",
    )  # fmt: skip
    run.click(
        acts.compare, [opened, layer, target, shots, tokens, noise], compared,
        concurrency_limit=2, api_visibility="private",
    )  # fmt: skip


def narrow_on(tab: gr.Tab) -> None:
    """Give the picture its place back when another tab is chosen."""
    tab.select(None, None, None, js=_NARROW, api_visibility="private")


class _Acts:
    """What the page does."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.lab = CircuitLab()

    def show(self, opened: str, layer: int | None, request: gr.Request) -> tuple[Any, str, str]:
        reading = self.ask(opened, request) if opened else None
        if reading is None or reading.routes is None or not reading.routes.layers:
            return gr.Radio([], value=None), pieces.no_findings(NOTHING), ""
        from medqua.ui import figures  # matplotlib takes half a second

        layers = reading.routes.layers
        number = layer if layer is not None and layer < len(layers) else 0
        shown = figures.circuit(layers[number]) + figures.histograms(reading.routes)
        radio = gr.Radio(figures.titles(layers), value=number)
        return radio, pieces.of_study(opened, shown), ""

    def compare(
        self,
        opened: str,
        layer: int | None,
        target: str,
        shots: float | None,
        tokens: float,
        noise: float,
        request: gr.Request,
    ) -> str:
        reading = self.ask(opened, request) if opened else None
        if reading is None or reading.routes is None or layer is None:
            return pieces.no_findings(NOTHING)
        from medqua.ui import figures

        try:
            told = self.lab.compare(
                reading.routes.layers[layer],
                target,
                shots=int(shots or 0),
                tokens=int(tokens),
                noise=noise,
            )
        except MedQuaError as error:
            shown = figures.problem(f"{str(error)[:1].upper()}{str(error)[1:]}.")
        else:
            shown = figures.comparison(told)
        return pieces.of_study(opened, shown)
