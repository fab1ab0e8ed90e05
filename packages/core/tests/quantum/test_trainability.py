"""Every closed form against an independent computation, every measure against a closed form."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy.stats import chi2, unitary_group

from medqua.core.__main__ import app
from medqua.core.console import run
from medqua.core.errors import ConfigError
from medqua.core.quantum.ansatz import Ansatz
from medqua.core.quantum.engine import make_engine
from medqua.core.quantum.states import signs, states
from medqua.core.quantum.study import measures, report, theory
from medqua.core.quantum.study.cells import Study, load_or_measure, measure, open_folder

PAULIS = {
    "I": np.eye(2),
    "Z": np.diag([1.0, -1.0]),
    "X": np.array([[0.0, 1.0], [1.0, 0.0]]),
}


def pauli(label):
    result = np.eye(1)
    for letter in label:
        result = np.kron(result, PAULIS[letter])
    return result


@pytest.mark.parametrize(
    ("n", "observable", "generator"), [(1, "Z", "X"), (2, "ZI", "IX"), (3, "ZZZ", "XII")]
)
def test_the_two_design_variance_is_that_of_haar_random_circuits(n, observable, generator):
    """d<O>/dtheta = <psi| i/2 [P, U^+ O U] |psi> for a rotation by P between U and the state."""
    count, d = 20_000, 2**n
    before = unitary_group.rvs(d, count, random_state=1)[:, :, 0]
    after = unitary_group.rvs(d, count, random_state=2)
    seen = after.conj().transpose(0, 2, 1) @ pauli(observable) @ after
    commutator = pauli(generator) @ seen - seen @ pauli(generator)
    slopes = np.einsum("ki,kij,kj->k", before.conj(), 0.5j * commutator, before).real
    squares = slopes**2
    error = squares.std() / count**0.5
    assert abs(squares.mean() - theory.two_design_variance(n)) < 4 * error
    assert error < 0.03 * squares.mean()
    assert abs(slopes.mean()) < 4 * slopes.std() / count**0.5


def test_the_exponential_law_loses_a_factor_of_two_a_qubit():
    ratio = theory.two_design_variance(20) / theory.two_design_variance(21)
    assert ratio == pytest.approx(2, rel=1e-5)
    assert theory.two_design_variance(20) == pytest.approx(2.0**-21, rel=1e-5)


def test_the_spectrum_of_haar_random_observables_is_binomial():
    n, count = 2, 20_000
    after = unitary_group.rvs(4, count, random_state=3)
    seen = after.conj().transpose(0, 2, 1) @ pauli("ZI") @ after
    power = np.zeros((n + 1, count))
    for letters in itertools.product("IZX", repeat=n):
        coefficient = np.einsum("kij,ji->k", seen, pauli(letters)).real / 4
        degree = sum(letter != "I" for letter in letters)
        power[degree] += coefficient**2 / 2**degree
    expected = theory.two_design_spectrum(n)
    assert (abs(power.mean(1) - expected) < 4 * power.std(1) / count**0.5 + 1e-15).all()
    assert theory.two_design_spectrum(7).sum() == pytest.approx(1 / (2**7 + 1), rel=1e-12)


def grid(std, n):
    """Nodes and weights that average over theta (depth 1, RX and RY) and phi without error."""
    turn = (2 * math.pi * np.arange(3) / 3, np.full(3, 1 / 3))  # exact up to frequency 2
    if std is None:
        theta = turn
    else:
        nodes, weights = np.polynomial.hermite_e.hermegauss(11)
        theta = (std * nodes, weights / weights.sum())
    rules = [theta] * (2 * n) + [turn] * n
    points = np.stack([x.ravel() for x in np.meshgrid(*(r[0] for r in rules), indexing="ij")], 1)
    weights = np.prod(np.meshgrid(*(r[1] for r in rules), indexing="ij"), 0).ravel()
    angles = torch.from_numpy(points)
    both = angles[:, : 2 * n].view(-1, 1, n, 2)
    return torch.cat((both, torch.zeros_like(both[..., :1])), -1), angles[:, 2 * n :], weights


@pytest.mark.parametrize("encoding", ["ry", "rx"])
@pytest.mark.parametrize(
    ("n", "std", "entangler"),
    [(2, None, "ring"), (2, 0.4, "ring"), (2, 0.8, "line"), (3, None, "ring"), (3, None, "all")],
)
def test_one_layer_has_the_closed_form(n, std, entangler, encoding):
    ansatz = Ansatz(n, 1, encoding=encoding, entangler=entangler)
    theta, angles, weights = grid(std, n)
    theta.requires_grad_()
    probabilities = states(ansatz, theta, angles, 1).abs().square()
    z = signs(n, angles)
    variances, power = [], []
    for observable in (*z, z.prod(0)):
        values = probabilities @ observable
        (slope,) = torch.autograd.grad(values.sum(), theta, retain_graph=True)
        slope = slope[:, 0, :, :2].numpy()
        assert np.abs(np.tensordot(weights, slope, 1)).max() < 1e-12  # mean 0
        variances.append(np.tensordot(weights, slope**2, 1).mean())
        power.append(weights @ values.detach().numpy() ** 2)
    expected = theory.depth_one_variances(ansatz, std)
    assert np.mean(variances[:-1]) == pytest.approx(expected["local"], rel=1e-9)
    assert variances[-1] == pytest.approx(expected["global"], rel=1e-9)
    spectrum = theory.depth_one_spectrum(ansatz, std)
    assert spectrum.sum() == pytest.approx(np.mean(power[:-1]), rel=1e-9)


def test_the_ring_turns_one_readout_into_a_product_over_all_other_qubits():
    sizes = theory.supports(Ansatz(5, 1)).sum(1).tolist()
    assert sizes == [4, 2, 3, 4, 5, 2]  # Z_0 .. Z_4, and the product of all Z
    assert theory.supports(Ansatz(5, 1))[0].tolist() == [False, True, True, True, True]
    assert theory.supports(Ansatz(4, 1, entangler="none")).sum(1).tolist() == [1, 1, 1, 1, 4]


def random_circuits(ansatz, count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    theta = torch.rand(count, *ansatz.theta_shape, generator=generator, dtype=torch.float64)
    angles = torch.rand(count, ansatz.n_qubits, generator=generator, dtype=torch.float64)
    return 2 * torch.pi * theta, 2 * torch.pi * angles, generator


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_derivatives_are_those_of_the_engine_in_the_middle_layer(depth):
    ansatz, copies = Ansatz(3, 4), 4000
    theta, angles, generator = random_circuits(ansatz, 1)
    found, _ = measures.derivatives(
        ansatz, theta.expand(copies, -1, -1, -1), angles.expand(copies, -1), depth, generator
    )
    leaf = theta[0].requires_grad_()
    values = make_engine("fourier", ansatz).compile(leaf, (depth,))[depth](angles)[0]
    middle, live = (depth - 1) // 2, 2 if depth == 1 else 3
    each = [torch.autograd.grad(v, leaf, retain_graph=True)[0][middle, :, :live] for v in values]
    expected = torch.stack(each).square().mean().item()
    error = found["local"].std().item() / copies**0.5
    assert found["local"].mean().item() == pytest.approx(expected, abs=4 * error + 1e-12)
    assert found["global"].std().item() < 1e-12  # no signs in it
    squares = []
    for q, k in itertools.product(range(3), range(live)):  # by parameter shift
        moved = theta.detach().repeat(2, 1, 1, 1)
        moved[:, middle, q, k] += torch.tensor([1, -1]) * torch.pi / 2
        state = states(ansatz, moved, angles.expand(2, -1), depth)
        ends = state.abs().square() @ signs(3, angles).prod(0)
        squares.append(((ends[0] - ends[1]) / 2).item() ** 2)
    assert found["global"][0].item() == pytest.approx(np.mean(squares), rel=1e-9)


@pytest.mark.parametrize(("n", "init"), [(2, "uniform"), (4, "uniform"), (3, "initial")])
def test_deep_circuits_follow_the_exponential_law(n, init):
    cell = measure(Study(qubits=(n,), most=1500, least=1500, spectrum_qubits=4), n, 24, init)
    for squares in cell["squares"].values():
        error = np.std(squares) / len(squares) ** 0.5
        assert abs(np.mean(squares) - theory.two_design_variance(n)) < 4 * error
    assert cell["entanglement"]["mean"] == pytest.approx(
        theory.haar_meyer_wallach(n), abs=4 * cell["entanglement"]["std"] / 1500**0.5
    )
    np.testing.assert_allclose(cell["spectrum"], theory.two_design_spectrum(n), rtol=0.5, atol=1e-6)


def test_entanglement_of_known_states():
    def one(amplitudes):
        state = torch.tensor(amplitudes, dtype=torch.complex128)[None]
        return measures.meyer_wallach(state / state.abs().square().sum().sqrt()).item()

    assert one([1, 0, 0, 0, 0, 0, 0, 1]) == pytest.approx(1)  # GHZ
    assert one([1, 2, 3, 6]) == pytest.approx(0, abs=1e-12)  # (1, 3) x (1, 2)
    for n in (2, 3, 5):
        w = [float(s.bit_count() == 1) for s in range(2**n)]
        assert one(w) == pytest.approx(4 * (n - 1) / n**2)
    bell_and_product = np.kron([1, 0, 0, 1], [1, 1])
    assert one(bell_and_product.tolist()) == pytest.approx(2 / 3)


@pytest.mark.parametrize("n", [2, 5])
def test_haar_states_have_the_mean_entanglement_and_the_fidelities_of_theory(n):
    generator = torch.Generator().manual_seed(0)
    state = measures.haar_states(4000, n, generator, torch.float64)
    q = measures.meyer_wallach(state)
    error = q.std().item() / 4000**0.5
    assert q.mean().item() == pytest.approx(theory.haar_meyer_wallach(n), abs=4 * error)
    pairs = (state[::2].conj() * state[1::2]).sum(1).abs().square()  # independent
    edges = measures.haar_edges(n, 40)
    np.testing.assert_allclose(theory.haar_bins(edges, n), 1 / 40, rtol=1e-9)
    # twice the number of pairs times the divergence is a likelihood ratio: chi-square, 39 degrees
    statistic = 2 * len(pairs) * measures.expressibility(pairs, n, edges)
    assert 1e-4 < chi2.sf(statistic, 39) < 1 - 1e-4


def test_fidelities_of_every_pair():
    state = torch.tensor([[1, 0], [0, 1], [0.6, 0.8j]], dtype=torch.complex128)
    found = measures.fidelities(state)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.36, 0.64], dtype=torch.float64))


@pytest.mark.parametrize("n", [1, 2, 4])
def test_a_circuit_that_does_nothing_has_the_largest_divergence(n):
    """(2^n - 1) ln 75 in bins of equal width, as Sim et al. give for the idle circuit."""
    same = torch.ones(100)
    uniform = measures.expressibility(same, n, measures.uniform_edges())
    assert uniform == pytest.approx((2**n - 1) * math.log(75), rel=1e-9)
    equal = measures.expressibility(same, n, measures.haar_edges(n))
    assert equal == pytest.approx(math.log(75), rel=1e-6)


@pytest.mark.parametrize("encoding", ["ry", "rx"])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_the_spectrum_is_that_of_a_fourier_transform(depth, encoding):
    """<Z_i> on 3^n points of phi determines a polynomial of degree one in each angle."""
    n = 3
    ansatz = Ansatz(n, 3, encoding=encoding)
    theta, _, _ = random_circuits(ansatz, 1, seed=depth)
    line = 2 * math.pi * torch.arange(3, dtype=torch.float64) / 3
    angles = torch.cartesian_prod(*[line] * n)
    values = make_engine("dense", ansatz).compile(theta[0], (depth,))[depth](angles)
    expected = np.zeros(n + 1)
    for i in range(n):
        power = np.abs(np.fft.fftn(values[:, i].numpy().reshape(3, 3, 3)) / 27) ** 2
        for frequency in itertools.product(range(3), repeat=n):
            expected[sum(map(bool, frequency))] += power[frequency] / n
    found = measures.spectrum(ansatz, theta[0], depth)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_a_rate_is_found_with_its_interval():
    generator = np.random.default_rng(5)
    qubits = range(2, 8)
    squares = [2.0 ** (-1.3 * n) * generator.exponential(size=400) for n in qubits]
    fit = report.rate(qubits, squares, seed=1)
    assert fit["low"] < 1.3 < fit["high"]
    assert fit["high"] - fit["low"] < 0.15
    assert fit == report.rate(qubits, squares, seed=1)
    exact = report.rate(qubits, [np.full(5, 3.0 ** (-n)) for n in qubits], seed=1)
    for key in ("value", "low", "high"):
        assert exact[key] == pytest.approx(math.log2(3))


TINY = Study(qubits=(2, 3), depths=(1, 3), least=20, most=30, tables=9, spectrum_qubits=2, seed=4)


def test_a_stopped_study_goes_on_and_every_cell_has_its_own_random_numbers(tmp_path):
    folder = open_folder(TINY, tmp_path / "a")
    whole = [load_or_measure(TINY, folder, cell) for cell in TINY.grid()]
    files = sorted((tmp_path / "a" / "cells").iterdir())
    assert len(files) == 8
    before = [path.stat().st_mtime_ns for path in files]
    kept = files[3].read_text()
    files[3].unlink()
    files[5].write_text("{")  # a damaged file
    again = [load_or_measure(TINY, folder, cell) for cell in TINY.grid()]
    assert sorted((tmp_path / "a" / "cells").iterdir()) == files
    changed = [a != b.stat().st_mtime_ns for a, b in zip(before, files, strict=True)]
    assert [k for k, new in enumerate(changed) if new] == [3, 5]
    assert json.loads(files[3].read_text())["squares"] == json.loads(kept)["squares"]
    for one, two in zip(whole, again, strict=True):
        assert {**one, "seconds": 0} == {**two, "seconds": 0}
    alone = open_folder(replace(TINY, qubits=(3,)), tmp_path / "b")
    cell = load_or_measure(replace(TINY, qubits=(3,)), alone, (3, 3, "initial"))
    assert {**cell, "seconds": 0} == {
        **json.loads((tmp_path / "a/cells/n03-l003-initial.json").read_text()),
        "seconds": 0,
    }


def test_the_report_has_its_page_numbers_and_plots(tmp_path):
    summary = report.run(TINY, tmp_path, Console(quiet=True))
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["rates"] == summary["rates"]
    assert saved["study"]["seed"] == 4
    assert {"date", "machine", "seconds", "versions"} <= set(saved["made"])
    text = (tmp_path / "report.md").read_text()
    for name in ("gradient-qubits", "gradient-depth", "entanglement", "expressibility", "spectrum"):
        assert f"({name}.png)" in text
        assert (tmp_path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    shallow = theory.depth_one_variances(Ansatz(3, 1), 0.4)["local"]
    assert f"| 3 | initial | local | {shallow:.3e} |" in "\n".join(
        " | ".join((*line.split(" | ")[:3], *line.split(" | ")[4:5])) + " |"
        for line in text.splitlines()
    )


def test_a_folder_of_another_study_is_refused(tmp_path):
    open_folder(TINY, tmp_path)
    with pytest.raises(ConfigError, match="study with other settings"):
        open_folder(replace(TINY, seed=5), tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        open_folder(TINY, tmp_path / "file")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"qubits": (1, 2)}, "2 to 12 qubits"),
        ({"qubits": (13,)}, "2 to 12 qubits"),
        ({"depths": (0, 1)}, "at least 1 layer"),
        ({"depths": ()}, "must rise"),
        ({"qubits": (3, 2)}, "must rise"),
        ({"entangler": "star"}, "entangler is 'star'"),
        ({"seed": -1}, "seed that is not negative"),
        ({"least": 1}, "at least 2 circuits"),
        ({"initial_std": 0.0}, "initial_std is 0.0"),
        ({"initial_std": math.nan}, "initial_std is nan"),
    ],
)
def test_what_cannot_be_studied_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        Study(**options)


def test_the_command_refuses_an_unknown_entangler(tmp_path, capsys):
    assert run(app, ["trainability", "--output", str(tmp_path), "--entangler", "star"]) == 2
    assert "entangler is 'star'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_quick_command(tmp_path, capsys):
    assert run(app, ["trainability", "--output", str(tmp_path), "--quick", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary == json.loads((tmp_path / "report.json").read_text())
    fit = summary["rates"]["local, uniform"]
    assert fit["low"] - 0.05 < fit["two_design"] < fit["high"] + 0.05
