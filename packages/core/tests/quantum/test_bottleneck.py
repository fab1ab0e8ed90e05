import copy
import io
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from medqua.core import NoiseModel, VariationalBottleneck
from medqua.core.errors import ConfigError, QuantumError, ShapeError

ENGINES = ("fourier", "dense")


@pytest.fixture(params=ENGINES)
def bottleneck(request):
    torch.manual_seed(0)
    return VariationalBottleneck(4, 3, engine=request.param)


def random_angles(tokens, n=4, dtype=torch.float32):
    return torch.rand(tokens, n, dtype=dtype).mul(2).sub(1).mul(torch.pi)


def test_depth_zero_is_the_cosine(bottleneck):
    angles = random_angles(5)
    torch.testing.assert_close(bottleneck(angles, 0), angles.cos())


def test_values_are_expectations(bottleneck):
    assert bottleneck(random_angles(200), 3).abs().max() <= 1 + 1e-6


@settings(max_examples=20, deadline=None)
@given(
    engine=st.sampled_from(ENGINES),
    depths=st.lists(st.integers(0, 3), max_size=12),
    shuffle=st.randoms(use_true_random=False),
)
def test_mixed_depths_equal_each_token_alone_in_any_order(engine, depths, shuffle):
    bottleneck = VariationalBottleneck(3, 3, engine=engine)
    angles = random_angles(len(depths), 3, torch.float64)
    mixed = bottleneck(angles, torch.tensor(depths, dtype=torch.int64))
    for row, depth in enumerate(depths):
        alone = bottleneck(angles[row : row + 1], depth)[0]
        torch.testing.assert_close(mixed[row], alone, rtol=0, atol=1e-12)
    order = list(range(len(depths)))
    shuffle.shuffle(order)
    permuted = bottleneck(angles[order], torch.tensor(depths, dtype=torch.int64)[order])
    torch.testing.assert_close(permuted, mixed[order], rtol=0, atol=1e-12)


def test_gradients_reach_angles_and_live_parameters_of_every_depth(bottleneck):
    angles = random_angles(8).requires_grad_()
    bottleneck(angles, torch.arange(8) % 4).square().sum().backward()
    assert angles.grad.abs().min() > 0
    assert bottleneck.theta.grad[:, :, :2].abs().min() > 0
    assert bottleneck.theta.grad[:2, :, 2].abs().min() > 0
    assert not bottleneck.theta.grad[-1, :, 2].any()


def test_the_dead_rotation_starts_at_zero_and_training_leaves_it_there(bottleneck):
    optimiser = torch.optim.AdamW(bottleneck.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        bottleneck(random_angles(4), 3).sum().backward()
        optimiser.step()
    assert not bottleneck.theta[-1, :, 2].any()


@pytest.mark.parametrize("depth", [2, torch.zeros(0, dtype=torch.int64)])
def test_no_token_still_gives_every_parameter_a_gradient(bottleneck, depth):
    angles = torch.zeros(0, 4, requires_grad=True)
    z = bottleneck(angles, depth)
    assert z.shape == (0, 4)
    z.sum().backward()
    assert angles.grad.shape == (0, 4)
    assert not bottleneck.theta.grad.any()


def test_depth_zero_alone_still_gives_every_parameter_a_gradient(bottleneck):
    bottleneck(random_angles(3), 0).sum().backward()
    assert not bottleneck.theta.grad.any()


def test_autocast_and_bfloat16_keep_float32_inside(bottleneck):
    angles = random_angles(6)
    expected = bottleneck(angles, 3)
    with torch.autocast("cpu", torch.bfloat16):
        inside = bottleneck(angles, 3)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, expected)
    low = bottleneck(angles.bfloat16(), 3)
    assert low.dtype == torch.float32
    assert torch.equal(low, bottleneck(angles.bfloat16().float(), 3))


def test_float64_angles_give_float64(bottleneck):
    assert bottleneck(random_angles(2, dtype=torch.float64), 1).dtype == torch.float64


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compute_the_same(bottleneck, copier):
    angles = random_angles(3)
    twin = copier(bottleneck)
    assert torch.equal(twin(angles, 3), bottleneck(angles, 3))
    with torch.no_grad():
        twin.theta.add_(1)
    assert not torch.equal(twin(angles, 3), bottleneck(angles, 3))


def test_state_dict_is_theta_alone_and_loads(bottleneck):
    assert list(bottleneck.state_dict()) == ["theta"]
    buffer = io.BytesIO()
    torch.save(bottleneck.state_dict(), buffer)
    buffer.seek(0)
    twin = VariationalBottleneck(4, 3, engine="dense")
    twin.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(twin.theta, bottleneck.theta)


def test_second_derivatives_are_refused(bottleneck):
    angles = random_angles(2).requires_grad_()
    with pytest.raises(QuantumError, match="no second derivatives"):
        torch.autograd.grad(bottleneck(angles, 2).sum(), angles, create_graph=True)


def test_programs_are_kept_in_evaluation_and_follow_every_change_of_theta(bottleneck):
    bottleneck.eval()
    angles = random_angles(3)
    with torch.no_grad():
        first = bottleneck(angles, 3)
        assert torch.equal(bottleneck(angles, 3), first)
        programs = [program for _, program in bottleneck._cache.values()]
        bottleneck(angles, 3)
        assert [program for _, program in bottleneck._cache.values()] == programs
        bottleneck.theta.data.add_(0.1)
        assert not torch.equal(bottleneck(angles, 3), first)
    with torch.inference_mode():
        bottleneck(angles, 2)
    bottleneck.requires_grad_(False)
    saliency = angles.clone().requires_grad_()
    bottleneck(saliency, 2).sum().backward()
    assert saliency.grad.abs().min() > 0


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's own
def test_the_surrounding_model_compiles(bottleneck):
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh())
    angles = random_angles(3)

    def run(x):
        return bottleneck(model(x), 2).sum()

    torch.testing.assert_close(torch.compile(run, backend="eager")(angles), run(angles))


@pytest.mark.parametrize("n", [2, 3, 8])
def test_few_tokens_in_evaluation_equal_training(n):
    bottleneck = VariationalBottleneck(n, 2, engine="fourier")
    angles = random_angles(5, n)
    trained = bottleneck(angles, 2)
    with torch.no_grad():
        torch.testing.assert_close(bottleneck.eval()(angles, 2), trained, rtol=0, atol=1e-6)


@pytest.mark.parametrize("engine", [*ENGINES, "gates"])
def test_threads_share_a_bottleneck_in_evaluation(engine):
    bottleneck = VariationalBottleneck(6, 2, engine=engine).eval()
    batches = [random_angles(1 + k % 20, 6) for k in range(200)]
    with torch.no_grad():
        expected = [bottleneck(batch, 2) for batch in batches]

    @torch.no_grad()
    def values(batch):
        return bottleneck(batch, 2)

    with ThreadPoolExecutor(4) as threads:
        for got, value in zip(threads.map(values, batches), expected, strict=True):
            torch.testing.assert_close(got, value, rtol=0, atol=1e-6)


def test_values_of_an_earlier_call_stay_as_they_were():
    bottleneck = VariationalBottleneck(4, 2, engine="fourier").eval()
    with torch.inference_mode():
        first = bottleneck(random_angles(5), 2)
        copied = first.clone()
        bottleneck(random_angles(5), 2)
    with torch.no_grad():  # buffers made in inference mode serve outside it too
        bottleneck(random_angles(5), 2)
    assert torch.equal(first, copied)


@pytest.mark.parametrize("engine", [*ENGINES, "gates"])
def test_two_forwards_before_their_backwards_do_not_disturb_each_other(engine):
    bottleneck = VariationalBottleneck(4, 3, engine=engine)
    one, two = (random_angles(7).requires_grad_() for _ in range(2))
    for angles in (one, two):
        bottleneck(angles, 3).square().sum().backward()
    alone = one.grad, two.grad, bottleneck.theta.grad
    one.grad = two.grad = bottleneck.theta.grad = None
    first, second = bottleneck(one, 3), bottleneck(two, 3)
    first.square().sum().backward()
    second.square().sum().backward()
    for got, expected in zip((one.grad, two.grad, bottleneck.theta.grad), alone, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("engine", [*ENGINES, "gates"])
def test_recomputation_gives_the_same_gradients(engine):
    bottleneck = VariationalBottleneck(4, 3, engine=engine)
    angles, depth = random_angles(9).requires_grad_(), torch.arange(9) % 4
    bottleneck(angles, depth).square().sum().backward()
    expected = angles.grad, bottleneck.theta.grad
    angles.grad = bottleneck.theta.grad = None
    again = checkpoint(bottleneck, angles, depth, use_reentrant=False)
    again.square().sum().backward()
    for got, value in zip((angles.grad, bottleneck.theta.grad), expected, strict=True):
        torch.testing.assert_close(got, value, rtol=0, atol=1e-5)


@pytest.mark.parametrize("engine", [*ENGINES, "gates"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_change_of_theta_before_backward_is_right_or_refused(engine, dtype):
    bottleneck = VariationalBottleneck(4, 3, engine=engine)
    angles = random_angles(5, dtype=dtype).requires_grad_()
    bottleneck(angles, 3).sum().backward()
    expected, bottleneck.theta.grad = bottleneck.theta.grad, None
    z = bottleneck(angles, 3).sum()
    with torch.no_grad():
        bottleneck.theta.add_(1.0)
    try:
        z.backward()
    except RuntimeError as error:
        assert "modified by an inplace operation" in str(error)  # noqa: PT017 - either is right
    else:
        torch.testing.assert_close(bottleneck.theta.grad, expected, rtol=0, atol=1e-5)


def test_shots_have_the_mean_and_variance_of_measurements():
    bottleneck = VariationalBottleneck(2, 1, shots=50, seed=3)
    exact = VariationalBottleneck(2, 1)
    exact.load_state_dict(bottleneck.state_dict())
    angles = random_angles(1, 2).expand(20_000, 2)
    z, expected = bottleneck(angles, 1), exact(angles, 1)[0]
    error = z.mean(0) - expected
    assert (error.abs() < 5 * ((1 - expected**2) / 50 / 20_000).sqrt()).all()
    torch.testing.assert_close(z.var(0), (1 - expected**2) / 50, rtol=0.05, atol=1e-4)
    torch.testing.assert_close((z + 1) * 25, ((z + 1) * 25).round(), rtol=0, atol=1e-4)


def test_shots_are_seeded_differ_from_call_to_call_and_train_like_exact_values():
    torch.manual_seed(0)
    bottleneck = VariationalBottleneck(3, 2, shots=10, seed=1)
    twin = copy.deepcopy(bottleneck)
    exact = VariationalBottleneck(3, 2)
    exact.load_state_dict(bottleneck.state_dict())
    angles = random_angles(4, 3)
    first, second = bottleneck(angles, 2), bottleneck(angles, 2)
    assert not torch.equal(first, second)
    assert torch.equal(twin(angles, 2), first)
    first.sum().backward()
    exact(angles, 2).sum().backward()
    torch.testing.assert_close(bottleneck.theta.grad, exact.theta.grad)


@pytest.mark.parametrize(
    ("angles", "depth", "message"),
    [
        (torch.zeros(3, 5), 1, r"needs floating point \[tokens, 4\]"),
        (torch.zeros(4), 1, r"shape \[4\]"),
        (torch.zeros(2, 4, dtype=torch.int64), 1, "int64"),
        (torch.zeros(2, 4), 4, r"depth is 4: the bottleneck has circuits of 0\.\.3"),
        (torch.zeros(2, 4), -1, "depth is -1"),
        (torch.zeros(2, 4), torch.tensor([0, 4]), r"1 of 2 depths are outside 0\.\.3"),
        (torch.zeros(2, 4), torch.tensor([-1, -7]), "2 of 2 depths"),
        (torch.zeros(2, 4), torch.tensor([1]), "one int64 depth for each of the 2 tokens"),
        (torch.tensor([[0.0, 0.0, torch.nan, 0.0]]), 2, "angles hold NaN or infinity"),
        (torch.tensor([[0.0, torch.inf, 0.0, 0.0]]), torch.tensor([1]), "NaN or infinity"),
    ],
)
def test_bad_input_is_refused(angles, depth, message):
    with pytest.raises(ShapeError, match=message):
        VariationalBottleneck(4, 3)(angles, depth)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "quantum"}, "engine is 'quantum': choose one of 'auto', 'fourier'"),
        ({"target": "nvidia", "engine": "dense"}, "target 'nvidia' is for engine='cudaq'"),
        ({"shots": 0}, "shots is 0: at least 1"),
        ({"seed": 1}, "exact values need no seed"),
        ({"noise": NoiseModel(), "engine": "dense"}, "engine 'dense' is noiseless"),
        ({"entangler": "star"}, "entangler is 'star'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        VariationalBottleneck(4, 3, **options)
