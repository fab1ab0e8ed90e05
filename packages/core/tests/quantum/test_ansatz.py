import pytest

from medqua.core import Ansatz
from medqua.core.errors import ConfigError


def test_the_circuit_of_depth_two_gate_by_gate():
    assert [str(gate) for gate in Ansatz(2, 3).gates(2)] == [
        "ry(phi[0]) q0",
        "ry(phi[1]) q1",
        "rx(theta[0, 0, 0]) q0",
        "ry(theta[0, 0, 1]) q0",
        "rz(theta[0, 0, 2]) q0",
        "rx(theta[0, 1, 0]) q1",
        "ry(theta[0, 1, 1]) q1",
        "rz(theta[0, 1, 2]) q1",
        "cx q0, q1",
        "cx q1, q0",
        "rx(theta[1, 0, 0]) q0",
        "ry(theta[1, 0, 1]) q0",
        "rx(theta[1, 1, 0]) q1",
        "ry(theta[1, 1, 1]) q1",
        "cx q0, q1",
        "cx q1, q0",
    ]


@pytest.mark.parametrize(
    ("entangler", "pairs"),
    [
        ("ring", ((0, 1), (1, 2), (2, 0))),
        ("line", ((0, 1), (1, 2))),
        ("all", ((0, 1), (0, 2), (1, 2))),
        ("none", ()),
    ],
)
def test_entanglers(entangler, pairs):
    assert Ansatz(3, 1, entangler=entangler).pairs == pairs


def test_every_prefix_is_the_beginning_of_the_next_but_for_the_dead_rotation():
    ansatz = Ansatz(3, 4)
    for depth in range(1, 4):
        longer = [g for g in ansatz.layers(depth + 1) if g.parameter not in ansatz.dead(depth)]
        shorter = list(ansatz.layers(depth))
        assert longer[: len(shorter)] == shorter
        used = {g.parameter for g in ansatz.layers(depth) if g.parameter}
        assert not used & set(ansatz.dead(depth))
        assert len(used) + len(ansatz.dead(depth)) == 3 * 4 * 3


def test_depth_zero_is_the_encoding_alone():
    assert Ansatz(3, 2, encoding="rx").gates(0) == Ansatz(3, 2, encoding="rx").encoder()


def test_text_names_the_dead_parameters():
    assert str(Ansatz(2, 1)).splitlines()[-1] == "dead, left out: theta[0, 0, 2], theta[0, 1, 2]"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_qubits": 1, "max_depth": 2}, "n_qubits is 1: it must be an integer in 2..24"),
        ({"n_qubits": True, "max_depth": 2}, "n_qubits is True"),
        ({"n_qubits": 4, "max_depth": 0}, "max_depth is 0"),
        ({"n_qubits": 4, "max_depth": 1, "entangler": "star"}, "choose one of 'ring', 'line'"),
        ({"n_qubits": 4, "max_depth": 1, "encoding": "rz"}, "choose one of 'ry', 'rx'"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(ConfigError, match=message):
        Ansatz(**options)


def test_depth_out_of_range_is_refused():
    with pytest.raises(ConfigError, match=r"circuits of 0\.\.2 layers"):
        Ansatz(2, 2).gates(3)
