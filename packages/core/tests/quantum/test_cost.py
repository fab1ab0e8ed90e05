import pytest

from medqua.core import Ansatz, NoiseModel, VariationalBottleneck
from medqua.core.errors import ConfigError
from medqua.core.quantum.cost import LARGEST, SECONDS, cheapest


@pytest.mark.parametrize(
    ("n", "tokens", "options", "expected"),
    [
        (4, 65_536, {}, "fourier"),
        (8, 65_536, {}, "fourier"),
        (8, 200, {}, "gates"),  # too few tokens to pay for a unitary
        (8, 2_048, {}, "dense"),  # too few to pay for a table
        (8, 200, {"prepared": True}, "fourier"),  # the table is there already
        (8, 200, {"noisy": True}, "fourier"),
        (10, 8_192, {}, "gates"),  # tables and unitaries of ten qubits take seconds
        (10, 8_192, {"prepared": True}, "fourier"),
        (10, 8_192, {"noisy": True}, "fourier"),
        (12, 1, {}, "gates"),
        (12, 65_536, {}, "gates"),
        (16, 1, {}, "gates"),
        (20, 65_536, {}, "gates"),
        (11, 1, {"noisy": True}, "fourier"),
        (12, 1, {"noisy": True}, "cudaq"),
        (21, 1, {}, "cudaq"),
    ],
)
def test_the_cheapest_engine(n, tokens, options, expected):
    options = {"noisy": False, "prepared": False} | options
    assert cheapest(Ansatz(n, 4), tokens, **options) == expected


def test_the_choice_can_be_asked_for():
    bottleneck = VariationalBottleneck(8, 4)
    assert bottleneck.engine_for(200) == "gates"
    assert bottleneck.engine_for(65_536) == "fourier"
    assert VariationalBottleneck(8, 4, engine="fourier").engine_for(1) == "fourier"


def test_every_size_up_to_the_largest_is_measured_or_left_to_gates():
    for n in range(2, 17):
        assert n in SECONDS["gates"]
        for name in ("fourier", "dense"):
            assert (n in SECONDS[name]) <= (n <= LARGEST[name])


def test_sizes_that_would_not_fit_are_refused():
    with pytest.raises(ConfigError, match="'fourier' takes up to 11 qubits, not 14"):
        VariationalBottleneck(14, 1, engine="fourier")
    with pytest.raises(ConfigError, match="'gates' takes up to 20 qubits, not 21"):
        VariationalBottleneck(21, 1, engine="gates")
    with pytest.raises(ConfigError, match="noise is for up to 11 qubits"):
        VariationalBottleneck(14, 1, noise=NoiseModel.depolarising(0.1, 0.1))
