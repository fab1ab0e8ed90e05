import pytest

from medqua.core import Ansatz, NoiseModel, VariationalBottleneck
from medqua.core.errors import ConfigError
from medqua.core.quantum.cost import cheapest


@pytest.mark.parametrize(
    ("n", "tokens", "options", "expected"),
    [
        (4, 65_536, {}, "fourier"),
        (8, 65_536, {}, "fourier"),
        (8, 200, {}, "dense"),  # too few tokens to pay for a table
        (8, 200, {"prepared": True}, "fourier"),  # the table is there already
        (8, 200, {"noisy": True}, "fourier"),
        (12, 65_536, {}, "dense"),
        (16, 1, {}, "cudaq"),
    ],
)
def test_the_cheapest_engine(n, tokens, options, expected):
    options = {"noisy": False, "prepared": False} | options
    assert cheapest(Ansatz(n, 4), tokens, **options) == expected


def test_the_choice_can_be_asked_for():
    bottleneck = VariationalBottleneck(8, 4)
    assert bottleneck.engine_for(200) == "dense"
    assert bottleneck.engine_for(65_536) == "fourier"
    assert VariationalBottleneck(8, 4, engine="fourier").engine_for(1) == "fourier"


def test_sizes_that_would_not_fit_are_refused():
    with pytest.raises(ConfigError, match="'fourier' takes up to 11 qubits, not 14"):
        VariationalBottleneck(14, 1, engine="fourier")
    with pytest.raises(ConfigError, match="noise is for up to 11 qubits"):
        VariationalBottleneck(14, 1, noise=NoiseModel.depolarising(0.1, 0.1))
