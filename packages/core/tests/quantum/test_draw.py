import re
import subprocess
import sys

import pytest
import torch

from medqua.core.__main__ import app
from medqua.core.console import run
from medqua.core.errors import ConfigError
from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.draw import diagram, figure, moments

TWO_QUBITS = """\
q0: ─┤RY φ0├─┤RX θ000├─┤RY θ001├─●─⊕──⟨Z⟩
                                 │ │
q1: ─┤RY φ1├─┤RX θ010├─┤RY θ011├─⊕─●──⟨Z⟩"""


def test_the_text_of_two_qubits():
    assert diagram(Ansatz(2, 1)) == TWO_QUBITS


def test_a_cnot_crosses_the_wires_between_its_qubits():
    lines = diagram(Ansatz(3, 1), 1).splitlines()
    column = lines[0].rindex("⊕")
    assert [line[column] for line in lines] == ["⊕", "│", "┼", "│", "●"]


@pytest.mark.parametrize("entangler", ["ring", "line", "all", "none"])
def test_columns_hold_every_gate_once_and_in_the_order_of_its_wires(entangler):
    ansatz = Ansatz(5, 3, entangler=entangler)
    columns = moments(ansatz)
    drawn = [gate for column in columns for gate in column]
    assert sorted(map(str, drawn)) == sorted(map(str, ansatz.gates()))
    for q in range(5):
        own = [gate for gate in ansatz.gates() if q in gate.qubits]
        assert [gate for gate in drawn if q in gate.qubits] == own
    for column in columns:
        spans = [q for g in column for q in range(min(g.qubits), max(g.qubits) + 1)]
        assert len(spans) == len(set(spans))


@pytest.mark.parametrize("width", [1, 40, 80, 100])
def test_text_is_folded_to_the_width_and_loses_nothing(width):
    ansatz = Ansatz(4, 3)
    lines = diagram(ansatz, width=width).splitlines()
    wires = {q: "".join(x[5:] for x in lines if x.startswith(f"q{q}: ")) for q in range(4)}
    for q in range(4):
        rotations = [g for g in ansatz.gates() if g.parameter and g.qubits == (q,)]
        assert re.findall(r"┤(R[XYZ])", wires[q]) == [g.name.upper() for g in rotations]
        assert wires[q].endswith("⟨Z⟩")
    if width >= 40:
        assert max(map(len, lines)) <= width


def test_values_are_shown_in_the_place_of_names():
    theta = torch.full((1, 2, 3), -1.23456)
    assert "┤RX -1.23├" in diagram(Ansatz(2, 1), theta=theta)
    assert "θ0,10,1" in diagram(Ansatz(11, 1))


def test_the_figure_has_a_box_for_each_rotation_and_marks_for_each_cnot(tmp_path):
    ansatz = Ansatz(4, 2)
    drawn = figure(ansatz)
    names = [patch.__class__.__name__ for patch in drawn.axes[0].patches]
    gates = ansatz.gates()
    assert names.count("FancyBboxPatch") == sum(gate.parameter is not None for gate in gates)
    assert names.count("Circle") == 2 * sum(gate.name == "cx" for gate in gates)
    texts = [text.get_text() for text in drawn.axes[0].texts]
    assert {"φ3", "θ131", "θ002"} <= set(texts)
    assert "θ102" not in texts  # the dead RZ
    drawn.savefig(tmp_path / "circuit.png")
    assert (tmp_path / "circuit.png").read_bytes()[:4] == b"\x89PNG"


def test_a_depth_out_of_range_is_refused():
    with pytest.raises(ConfigError, match="depth is 9"):
        diagram(Ansatz(2, 1), 9)


def command(*arguments):
    return run(app, ["draw", *arguments])


def test_the_command_prints_text_and_programs(capsys):
    assert command("--qubits", "2", "--depth", "1") == 0
    assert TWO_QUBITS in capsys.readouterr().out
    assert command("--qubits", "2", "--depth", "1", "--format", "qasm") == 0
    assert capsys.readouterr().out.startswith("OPENQASM 3.0;\n")


@pytest.mark.parametrize(
    ("name", "magic"),
    [("c.png", b"\x89PNG"), ("c.SVG", b"<?xml"), ("c.qasm", b"OPENQASM"), ("c.txt", b"q0: ")],
)
def test_the_command_writes_what_the_suffix_says(name, magic, tmp_path):
    assert command("--qubits", "3", "--depth", "1", "--output", str(tmp_path / name)) == 0
    assert (tmp_path / name).read_bytes().startswith(magic)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--qubits", "40"], "n_qubits is 40"),
        (["--depth", "-1"], "depth is -1"),
        (["--format", "png"], "give --output FILE"),
        (["--output", "absent/c.png"], "no such folder absent"),
        (["--output", "c.gif"], "format is '.gif'"),
    ],
)
def test_the_command_refuses_what_it_cannot_draw(arguments, message, capsys):
    assert command(*arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_program_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "medqua.core", "draw", "--help"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0
    assert "medqua-core draw --qubits 8 --depth 4 --output circuit.png" in done.stdout
