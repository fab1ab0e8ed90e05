"""The fused kernels against the engine they fuse; by the interpreter where there is no GPU."""

import os
import subprocess
import sys

import pytest
import torch

from medqua.core import Ansatz, NoiseModel, VariationalBottleneck
from medqua.core.errors import ConfigError, QuantumError
from medqua.core.quantum.exact.fourier import FourierEngine
from medqua.core.quantum.exact.triton_fourier import (
    Layout,
    TritonEngine,
    interpreted,
    runs_fused,
)
from medqua.core.quantum.noise import CHANNELS, Channel

CUDA = torch.cuda.is_available()
TOLERANCES = {torch.float64: (1e-10, 1e-9), torch.float32: (1e-6, 1e-5)}


def problem(n, tokens, dtype, depth=2, device="cpu"):
    generator = torch.Generator().manual_seed(n)
    shapes = (tokens, n), (depth, n, 3), (tokens, n)
    angles, theta, weights = (torch.randn(s, generator=generator, dtype=dtype) for s in shapes)
    device = "cuda" if CUDA and not interpreted() else device
    return angles.to(device), theta.to(device), weights.to(device)


def run(engine, angles, theta, weights, depth=2):
    """Return values, and the gradients in angles and parameters."""
    angles, theta = (value.clone().requires_grad_() for value in (angles, theta))
    value = engine.compile(theta, (depth,))[depth](angles)
    return value.detach(), *torch.autograd.grad((value * weights).sum(), (angles, theta))


def assert_same(ours, theirs, dtype, scale=1.0):
    value, gradient = TOLERANCES[dtype]
    for got, expected, tolerance in zip(ours, theirs, (value, gradient, gradient), strict=True):
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), expected.double(), rtol=0, atol=scale * tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 7, 8])
def test_equals_fourier_with_more_tokens_than_a_block(n, dtype):
    ansatz = Ansatz(n, 2)
    angles, theta, weights = problem(n, 33, dtype)
    double = FourierEngine(ansatz), angles.double(), theta.double(), weights.double()
    assert_same(run(TritonEngine(ansatz), angles, theta, weights), run(*double), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("n", [9, 10])
def test_equals_fourier_at_the_largest_sizes(n):
    ansatz = Ansatz(n, 2)
    case = problem(n, 5, torch.float64)
    assert_same(run(TritonEngine(ansatz), *case), run(FourierEngine(ansatz), *case), torch.float64)


@pytest.mark.parametrize("kind", CHANNELS)
def test_noise_equals_fourier(kind):
    ansatz = Ansatz(3, 2, encoding="rx", entangler="all")
    noise = NoiseModel((Channel(kind, 0.1),), (0.03, 0.01))
    case = problem(3, 4, torch.float64)
    ours, theirs = (run(engine(ansatz, noise), *case) for engine in (TritonEngine, FourierEngine))
    assert_same(ours, theirs, torch.float64)


def test_more_shares_of_tokens_than_one_add_up_and_repeat_bit_for_bit():
    ansatz = Ansatz(3, 1)
    case = problem(3, 300, torch.float32, 1)
    first, again = (run(TritonEngine(ansatz), *case, 1) for _ in range(2))
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a, b)
    double = run(FourierEngine(ansatz), *(value.double() for value in case), 1)
    torch.testing.assert_close(first[2].double(), double[2], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("trained", ["angles", "theta"])
def test_one_gradient_alone(trained):
    ansatz = Ansatz(3, 1)
    angles, theta, weights = problem(3, 4, torch.float64, 1)
    (angles if trained == "angles" else theta).requires_grad_()
    ours, theirs = (
        torch.autograd.grad(
            (engine(ansatz).compile(theta, (1,))[1](angles) * weights).sum(),
            angles if trained == "angles" else theta,
        )[0]
        for engine in (TritonEngine, FourierEngine)
    )
    torch.testing.assert_close(ours, theirs)


def test_no_tokens_and_angles_that_are_not_contiguous():
    ansatz = Ansatz(2, 1)
    angles, theta, _ = problem(2, 6, torch.float64, 1)
    theta.requires_grad_()
    program = TritonEngine(ansatz).compile(theta, (1,))[1]
    empty = program(angles[:0])
    assert empty.shape == (0, 2)
    (gradient,) = torch.autograd.grad(empty.sum(), theta)
    assert not gradient.any()
    turned = angles.T.contiguous().T
    torch.testing.assert_close(program(turned), program(angles))


def test_an_angle_that_is_not_finite_stays_with_its_token():
    angles, theta, _ = problem(3, 3, torch.float32, 1)
    clean = TritonEngine(Ansatz(3, 1)).compile(theta, (1,))[1]
    expected = clean(angles)
    angles[1, 2] = torch.nan
    value = clean(angles)
    assert value[1].isnan().any()
    torch.testing.assert_close(value[[0, 2]], expected[[0, 2]])


def test_padding_of_the_table_is_zero_and_has_no_gradient():
    for n in range(2, 11):
        layout = Layout.of(n)
        table = torch.ones(n, 3**n, requires_grad=True)
        padded = layout.pad(table)
        assert padded.shape == layout.shape
        assert padded.sum() == n * 3**n
        (gradient,) = torch.autograd.grad((padded * torch.ones_like(padded)).sum(), table)
        assert (gradient == 1).all()
        assert layout.group * layout.columns >= 16 <= layout.rows  # what tl.dot can take
        assert layout.lead <= 4


def test_a_second_derivative_is_refused():
    angles, theta, _ = problem(2, 2, torch.float64, 1)
    angles.requires_grad_()
    value = TritonEngine(Ansatz(2, 1)).compile(theta, (1,))[1](angles).sum()
    with pytest.raises(QuantumError, match="no second derivatives"):
        torch.autograd.grad(value, angles, create_graph=True)


def test_the_bottleneck_trains_through_it():
    torch.manual_seed(0)
    ours = VariationalBottleneck(3, 2, engine="triton")
    theirs = VariationalBottleneck(3, 2, engine="fourier")
    theirs.load_state_dict(ours.state_dict())
    angles, _, _ = problem(3, 7, torch.float32)
    depth = torch.tensor([0, 1, 2, 2, 1, 0, 2], device=angles.device)
    for model in (ours, theirs):
        model.to(angles.device)(angles, depth).square().sum().backward()
    torch.testing.assert_close(ours.theta.grad, theirs.theta.grad, rtol=0, atol=1e-5)


def test_sizes_and_names_it_does_not_have_are_refused():
    with pytest.raises(ConfigError, match="'triton' takes up to 10 qubits, not 11"):
        VariationalBottleneck(11, 1, engine="triton")
    with pytest.raises(ConfigError, match="choose one of 'ieee', 'tf32x3', 'tf32'"):
        TritonEngine(Ansatz(2, 1), precision="fp8")


def test_auto_takes_it_on_a_cuda_device_alone():
    assert all(runs_fused(n, torch.device("cuda", 1)) for n in range(2, 11))
    assert not runs_fused(11, torch.device("cuda"))
    assert not runs_fused(4, torch.device("cpu"))
    assert VariationalBottleneck(4, 1).engine_for(64) != "triton"


WITHOUT_A_DEVICE = """
from medqua.core import VariationalBottleneck
try:
    VariationalBottleneck(2, 1, engine="triton")
except Exception as error:
    print(type(error).__name__, error)
import sys
print("medqua.core.quantum.exact.triton_kernels" in sys.modules)
"""


def test_without_a_device_it_is_refused_and_its_kernels_are_not_loaded():
    environment = {**os.environ, "TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", WITHOUT_A_DEVICE]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    refusal, imported = done.stdout.splitlines()
    assert refusal.startswith("QuantumError engine 'triton' found no CUDA device: choose engine=")
    assert imported == "False"


COMPILE = """
import sys
import torch
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from medqua.core.quantum.exact import triton_kernels
from medqua.core.quantum.exact.triton_fourier import Layout, compiled_for

n, capability, precision = int(sys.argv[1]), int(sys.argv[2]), sys.argv[4]
dtype, pointer = {"32": (torch.float32, "*fp32"), "64": (torch.float64, "*fp64")}[sys.argv[3]]
for name in ("forward", "backward_angles", "backward_table"):
    kernel = getattr(triton_kernels, name)
    constants = compiled_for(name, Layout.of(n), dtype, precision)
    options = {key: constants.pop(key) for key in ("num_warps", "num_stages")}
    numbers = {"tokens": "i32", "share": "i32"}
    names = kernel.arg_names
    signature = {a: "constexpr" if a in constants else numbers.get(a, pointer) for a in names}
    constants = {(names.index(key),): value for key, value in constants.items()}
    pointers = [k for k, a in enumerate(names) if signature[a] == pointer]
    aligned = {(k,): [["tt.divisibility", 16]] for k in pointers}
    source = ASTSource(kernel, signature, constants, aligned)
    built = compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    print(name, built.metadata.shared, len(built.asm["cubin"]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "capability", "bits", "precision"),
    [
        *((n, 80, 32, "ieee") for n in range(2, 11)),
        *((n, 80, 64, "ieee") for n in (3, 6, 8, 10)),
        *((10, capability, 32, "ieee") for capability in (75, 86, 89, 90, 100, 120)),
        *((8, capability, 64, "ieee") for capability in (75, 89, 90)),
        *((8, 90, 32, precision) for precision in ("tf32x3", "tf32")),
    ],
)
def test_kernels_compile_to_machine_code_of_gpus(n, capability, bits, precision):
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", COMPILE, *map(str, (n, capability, bits, precision))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    built = [line.split() for line in done.stdout.splitlines()]
    assert [name for name, _, _ in built] == ["forward", "backward_angles", "backward_table"]
    for _, shared, size in built:
        assert 0 < int(shared) <= 48 * 1024  # what every GPU has, without asking for more
        assert int(size) > 0


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("n", range(2, 11))
def test_on_a_gpu_equals_fourier(n, dtype):
    ansatz = Ansatz(n, 3)
    case = problem(n, 5003, dtype, 3)
    double = [value.double() for value in case]
    # the gradient of theta is a sum over all tokens
    assert_same(
        run(TritonEngine(ansatz), *case, 3), run(FourierEngine(ansatz), *double, 3), dtype, 100
    )
    values = TritonEngine(ansatz).compile(case[1], (3,))[3](case[0])
    expected = FourierEngine(ansatz).compile(double[1], (3,))[3](double[0])
    torch.testing.assert_close(values.double(), expected, rtol=0, atol=TOLERANCES[dtype][0])


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize(("precision", "tolerance"), [("tf32x3", 1e-5), ("tf32", 1e-2)])
def test_on_a_gpu_tensor_cores_keep_their_precision(precision, tolerance):
    ansatz = Ansatz(8, 2)
    angles, theta, _ = problem(8, 1000, torch.float32)
    ours = TritonEngine(ansatz, precision=precision).compile(theta, (2,))[2](angles)
    theirs = FourierEngine(ansatz).compile(theta.double(), (2,))[2](angles.double())
    torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=tolerance)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
def test_on_a_gpu_auto_takes_it():
    bottleneck = VariationalBottleneck(4, 2).cuda()
    assert bottleneck.engine_for(1000) == "triton"
    angles = torch.randn(1000, 4, device="cuda")
    expected = VariationalBottleneck(4, 2, engine="fourier").cuda()
    expected.load_state_dict(bottleneck.state_dict())
    torch.testing.assert_close(bottleneck(angles, 2), expected(angles, 2), rtol=0, atol=1e-6)
