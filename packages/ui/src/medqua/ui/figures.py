"""Pictures of the quantum page, drawn by matplotlib as SVG and embedded: nothing is fetched."""

import base64
from collections.abc import Sequence
from html import escape
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure

from medqua.serve.inference.circuits import Comparison, drawing
from medqua.ui.overlay import layer_title

if TYPE_CHECKING:
    from medqua.serve.inference.explain import LayerRoutes, Routes

INK, EXACT, TARGET = "#2b4c7e", "#1b1e23", "#b45309"


def circuit(layer: "LayerRoutes") -> str:
    """Draw an adapter's circuit with its trained angles."""
    if layer.ansatz is None:
        return problem("This adapter has a classical stand-in in the place of a circuit.")
    told = (
        f"{layer_title(layer.name)}: the circuit at its full depth of {layer.max_depth} layers, "
        "trained angles in radian; φ comes from the token. A token of less depth leaves out the "
        "last layers."
    )
    return _paper(drawing(layer), told)


def histograms(routes: "Routes") -> str:
    """Show how many tokens each adapter routed, and how deep."""
    layers, names = routes.layers, [layer_title(layer.name) for layer in routes.layers]
    drawn = Figure((7.2, 2.6), layout="constrained")
    left, right = drawn.subplots(1, 2)
    place = np.arange(len(layers))
    left.bar(place, [layer.routed.mean() for layer in layers], color=INK)
    for x, layer in zip(place, layers, strict=True):
        left.plot([x - 0.4, x + 0.4], [layer.target] * 2, color=TARGET, linewidth=2)
        left.annotate(
            f"{int(layer.routed.sum())} of {layer.routed.size}",
            (x, max(float(layer.routed.mean()), layer.target) + 0.01),
            ha="center",
            va="bottom",
            fontsize=8,
        )
    left.set(xticks=place, xticklabels=names, ylabel="share of visual tokens", ylim=(0, 1))
    left.set_title("Routed to the quantum path (line: target of training)", fontsize=8)
    depths = np.arange(max(layer.max_depth for layer in layers) + 1)
    wide = 0.8 / len(layers)
    for k, layer in enumerate(layers):
        counts = [(layer.depth == depth).sum() for depth in depths]
        shade = f"C{k}"
        right.bar(depths + (k - (len(layers) - 1) / 2) * wide, counts, wide, color=shade)
    right.legend(names, fontsize=7, frameon=False)
    right.set(xticks=depths, xlabel="circuit layers", ylabel="routed visual tokens")
    right.set_title("Depth", fontsize=8)
    text = sum(layer.others_routed for layer in layers)
    told = (
        f"The study in view. Of the tokens of the text {text} were routed, in all adapters "
        "together; the target counts them too."
    )
    return _paper(drawn, told)


def comparison(told: Comparison) -> str:
    """Show expectation values of a target beside the exact ones, with error bars."""
    tokens, qubits = told.exact.shape
    drawn = Figure((7.2, 2.9), layout="constrained")
    axes = drawn.subplots()
    place = np.arange(tokens * qubits) + np.repeat(np.arange(tokens), qubits)
    axes.plot(place, told.exact.ravel(), "_", color=EXACT, markersize=11, label="exact")
    bars = told.errors.ravel() if told.errors.any() else None
    axes.errorbar(
        place,
        told.values.ravel(),
        bars,
        fmt="o",
        color=TARGET,
        markersize=3.5,
        capsize=2.5,
        label=told.target,
    )
    middle = place.reshape(tokens, qubits).mean(1)
    names = [f"token {k + 1}\ndepth {depth}" for k, depth in enumerate(told.depth)]
    axes.set(xticks=middle, xticklabels=names, ylabel="⟨Z⟩ of each qubit", ylim=(-1.1, 1.1))
    axes.tick_params(axis="x", labelsize=7)
    axes.legend(fontsize=7, frameon=False, ncols=2, loc="upper right", bbox_to_anchor=(1, 1.14))
    axes.axhline(0, color="0.8", linewidth=0.7, zorder=0)
    return _paper(drawn, sentence(told))


def sentence(told: Comparison) -> str:
    """Say what a comparison shows."""
    how = "expectation values" if told.shots is None else f"{told.shots:,} shots a circuit"
    how += f", depolarising {told.noise:g} after each CNOT" if told.noise else ""
    far = f"largest deviation from exact {told.deviation:.2g}"
    if told.worst is not None:
        far += f", {told.worst:.1f} standard errors (bars: one standard error)"
    elif told.noise:
        far += ", which is the noise: the exact values are without it"
    return f"{told.target}, {how}: {far}; {told.seconds:.1f} s on the target."


def problem(text: str) -> str:
    """Say why there is no picture."""
    return f'<p class="problem" role="alert">{escape(text)}</p>'


def _paper(drawn: Figure, told: str) -> str:
    """Embed a figure with its caption, which is its text for those who do not see it."""
    stream = BytesIO()
    drawn.savefig(stream, format="svg", metadata={"Date": None})
    image = base64.b64encode(stream.getvalue()).decode()
    return (
        f'<figure class="paper"><img src="data:image/svg+xml;base64,{image}" alt="{escape(told)}">'
        f"<figcaption>{escape(told)}</figcaption></figure>"
    )


def titles(layers: Sequence["LayerRoutes"]) -> list[tuple[str, int]]:
    """Return the choices of a list of adapters: title and number."""
    return [(layer_title(layer.name), number) for number, layer in enumerate(layers)]
