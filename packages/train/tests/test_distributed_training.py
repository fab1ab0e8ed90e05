"""One process against two, DDP against FSDP2, a process that dies, and kill -9 at a step."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from rich.console import Console

from medqua.core.errors import ConfigError, DataError, MedQuaError
from medqua.train import distributed
from medqua.train.checkpoint import Checkpoints
from medqua.train.recipe import Recipe, load_recipe
from medqua.train.run import train
from medqua.train.trainer import MedQuaTrainer

WORKER = Path(__file__).with_name("two_ranks.py")
QUIET = Console(quiet=True)
BRIEF = (
    *("evaluation.bootstrap=0", "evaluation.plots=false", "evaluation.untrained=false"),
    *("run.tensorboard=false", "optim.batch_size=10", "adapter.gamma_init=0.3"),
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.slow,  # launches processes
]


@pytest.fixture(scope="module")
def gaps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty images; two of three have no label `Edema`, so batches differ in what is known."""
    root = tmp_path_factory.mktemp("gaps")
    rng = np.random.default_rng(0)
    lines = ["file,patient_id,Mass,Edema"]
    for i in range(40):
        image = rng.integers(0, 90, (64, 64), dtype=np.uint8)
        if i % 2:
            image[20:40, 20:40] += 120
        Image.fromarray(image).save(root / f"{i}.png")
        lines.append(f"{i}.png,p{i},{i % 2},{'' if i % 3 else int(rng.integers(0, 2))}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def keys(small: tuple[str, ...], gaps: Path) -> Callable[..., list[str]]:
    return lambda *more: [*small, *BRIEF, f"data.root={gaps}", *more]


def launch(plan: Path, *options: str, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}"]
    return subprocess.run(
        [*command, "--standalone", *options, str(WORKER), str(plan)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def write_plan(folder: Path, **runs: dict[str, Any]) -> Path:
    plan = folder / "plan.json"
    plan.write_text(json.dumps({"folder": str(folder), "runs": runs}))
    return plan


@pytest.fixture(scope="module")
def shared(keys: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of one and of two processes, eight steps of a global batch of ten."""
    folder = tmp_path_factory.mktemp("shared")
    steps = "optim.max_steps=8"
    half = ("backbone.tune=adapter", "backbone.dtype=bfloat16", "optim.micro_batch_size=1")
    frozen = ("backbone.gradient_checkpointing=true", "optim.max_steps=2")
    plan = write_plan(
        folder,
        ddp={"keys": keys(steps)},
        fsdp={"keys": keys(steps, "run.parallel=fsdp")},
        half={"keys": keys(*half, *frozen, "run.parallel=fsdp")},
    )
    ended = launch(plan)
    assert ended.returncode == 0, ended.stderr[-4000:]
    train(load_recipe("folder", keys(steps)), folder / "one", QUIET)
    return folder


def losses(run: Path) -> list[tuple[float, float]]:
    state = json.loads((run / "trainer_state" / "trainer_state.json").read_text())
    return [
        (line["step"], value)
        for line in state["log_history"]
        for name, value in line.items()
        if name in ("loss", "eval_loss", "eval_macro_auroc")
    ]


def told(folder: Path, name: str, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}-{rank}.json").read_text())
    return found


def test_two_processes_have_the_losses_of_one(shared: Path) -> None:
    one, two = losses(shared / "one"), losses(shared / "ddp")
    assert len(one) >= 10
    assert [step for step, _ in one] == [step for step, _ in two]
    assert [v for _, v in two] == pytest.approx([v for _, v in one], abs=1e-6)
    assert len({round(v, 4) for _, v in one}) > 5  # it does learn


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_processes_agree_to_the_bit(shared: Path, name: str) -> None:
    first, second = (torch.load(shared / f"{name}-{rank}.pt") for rank in (0, 1))
    assert all(value.equal(second[key]) for key, value in first.items())
    assert told(shared, name, 0)["thresholds"] == told(shared, name, 1)["thresholds"]


def test_fsdp_has_the_losses_and_weights_of_ddp(shared: Path) -> None:
    whole, parts = losses(shared / "ddp"), losses(shared / "fsdp")
    assert [v for _, v in parts] == pytest.approx([v for _, v in whole], abs=1e-5)
    first, second = (torch.load(shared / f"{name}-0.pt") for name in ("ddp", "fsdp"))
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.allclose(value.double(), second[key].double(), atol=1e-4), key


def test_fsdp_shards_everything_and_ddp_nothing(shared: Path) -> None:
    assert told(shared, "fsdp", 0)["parameters"] == ["DTensor"]  # of those that are no scalars
    assert told(shared, "fsdp", 0)["blocks"] == ["FSDPQuasarBlock"]
    assert told(shared, "fsdp", 0)["wrapped"] == "FSDPMedQuaClassifier"
    assert told(shared, "ddp", 0)["wrapped"] == "DistributedDataParallel"


def test_a_bfloat16_backbone_in_parts_trains_a_float32_adapter(shared: Path) -> None:
    state = torch.load(shared / "half-0.pt")
    floats = {value.dtype for value in state.values() if value.is_floating_point()}
    assert floats == {torch.float32}
    assert all(np.isfinite(value) for _, value in losses(shared / "half"))


def test_a_sharded_run_leaves_a_bundle_like_any_other(shared: Path) -> None:
    both = [pl.read_parquet(shared / name / "predictions.parquet") for name in ("ddp", "fsdp")]
    for name in ("Mass logit", "Edema logit"):
        assert both[0][name].to_list() == pytest.approx(both[1][name].to_list(), abs=1e-3)
    assert (shared / "fsdp" / "bundle" / "bundle.json").is_file()


@pytest.mark.slow
def test_a_process_that_dies_ends_the_others_and_the_run_resumes(
    keys: Callable[..., list[str]], tmp_path: Path
) -> None:
    every = keys("optim.max_steps=8", "run.checkpoint_every=2")
    plan = write_plan(tmp_path, run={"keys": every, "dies": [1, 5]})
    started = time.monotonic()
    ended = launch(plan)
    assert ended.returncode != 0
    assert time.monotonic() - started < 120
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["state"] == "failed"
    assert record["error"].endswith("on rank 0")
    assert "--resume" in ended.stderr
    resumed = launch(write_plan(tmp_path, run={"keys": every, "resume": True}))
    assert resumed.returncode == 0, resumed.stderr[-4000:]
    undisturbed = launch(write_plan(tmp_path, alone={"keys": every}))
    assert undisturbed.returncode == 0, undisturbed.stderr[-4000:]
    first, second = (torch.load(tmp_path / f"{name}-1.pt") for name in ("run", "alone"))
    assert all(value.equal(second[key]) for key, value in first.items())


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_starts_again_where_it_was(
    keys: Callable[..., list[str]], tmp_path: Path, rank: int
) -> None:
    every = keys("optim.max_steps=6", "run.checkpoint_every=2")
    ended = launch(write_plan(tmp_path, run={"keys": every, "dies": [rank, 3]}), "--max-restarts=1")
    assert ended.returncode == 0, ended.stderr[-4000:]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["state"] == "complete"
    assert len(record["resumed"]) == 1


class KilledError(Exception):
    """In the place of SIGKILL, at a step of a run in this process."""


@pytest.fixture(scope="module")
def whole(keys: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbs: nine steps, three an epoch, a checkpoint every two."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(stochastic(keys), folder, QUIET)
    return folder


def stochastic(keys: Callable[..., list[str]], *more: str) -> Recipe:
    """A recipe with draws in the forward pass: seeded shots, Gumbel gates."""
    draws = ("adapter.relaxation=gumbel", "adapter.shots=64", "adapter.seed=3")
    return load_recipe("folder", keys("optim.max_steps=9", "run.checkpoint_every=2", *draws, *more))


def killed(recipe: Recipe, folder: Path, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Do a run until a step, and leave no chance to write anything after it."""
    go = MedQuaTrainer.training_step

    def until(trainer: MedQuaTrainer, *args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step == step:
            raise KilledError
        return go(trainer, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(MedQuaTrainer, "training_step", until)
        with pytest.raises(KilledError):
            train(recipe, folder, QUIET)


@pytest.mark.parametrize("step", [1, 5, 8])
def test_a_killed_run_resumes_to_the_same_bits(
    keys: Callable[..., list[str]],
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: int,
) -> None:
    folder = tmp_path / "run"
    killed(stochastic(keys), folder, step, monkeypatch)
    assert json.loads((folder / "run.json").read_text())["state"] == "failed"
    train(stochastic(keys), folder, QUIET, resume=True)
    record = json.loads((folder / "run.json").read_text())
    assert record["state"] == "complete"
    assert "error" not in record
    both = [pl.read_parquet(path / "predictions.parquet") for path in (whole, folder)]
    assert both[0].equals(both[1])
    last = [Checkpoints(path / "trainer_state").path(9) for path in (whole, folder)]
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "shots.json"):
        assert (last[0] / name).read_bytes() == (last[1] / name).read_bytes(), name
    random = [torch.load(path / "rng_state.pth", weights_only=False) for path in last]
    assert random[0]["cpu"].equal(random[1]["cpu"])
    assert (random[0]["numpy"][1] == random[1]["numpy"][1]).all()


def test_a_damaged_checkpoint_costs_only_steps(
    keys: Callable[..., list[str]], whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    killed(stochastic(keys), folder, 7, monkeypatch)
    last = Checkpoints(folder / "trainer_state").last()
    assert last is not None
    weights = bytearray((last / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (last / "model.safetensors").write_bytes(weights)
    train(stochastic(keys), folder, QUIET, resume=True)
    both = [pl.read_parquet(path / "predictions.parquet") for path in (whole, folder)]
    assert both[0].equals(both[1])


def test_other_data_than_at_the_start_is_refused(
    keys: Callable[..., list[str]], gaps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    for path in gaps.iterdir():
        (root / path.name).write_bytes(path.read_bytes())
    recipe = load_recipe("folder", keys("optim.max_steps=2", f"data.root={root}"))
    killed(recipe, tmp_path / "run", 1, monkeypatch)
    lines = (root / "labels.csv").read_text().splitlines()
    lines[1] = lines[1].replace(",0,", ",1,")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(DataError, match="the data has changed since this run began"):
        train(recipe, tmp_path / "run", QUIET, resume=True)


def test_nan_stops_before_the_step(
    keys: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = MedQuaTrainer.compute_loss

    def poisoned(trainer: MedQuaTrainer, *args: Any, **kwargs: Any) -> Any:
        return loss(trainer, *args, **kwargs) * (
            float("nan") if trainer.state.global_step == 3 else 1.0
        )

    monkeypatch.setattr(MedQuaTrainer, "compute_loss", poisoned)
    recipe = load_recipe("folder", keys("optim.max_steps=6", "run.checkpoint_every=1"))
    with pytest.raises(MedQuaError, match="is nan at step 4, which was not taken"):
        train(recipe, tmp_path / "run", QUIET)
    last = Checkpoints(tmp_path / "run" / "trainer_state").last()
    assert last is not None
    assert last.name == "checkpoint-3"


def test_more_processes_than_gpus_are_refused() -> None:
    with pytest.raises(ConfigError, match="8 processes on a machine of 4 GPUs"):
        distributed.check_devices(8, 4)
    distributed.check_devices(4, 4)


def test_one_process_has_nothing_to_shard(keys: Callable[..., list[str]], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="'fsdp' with one process"):
        train(load_recipe("folder", keys("run.parallel=fsdp")), tmp_path / "run", QUIET)


def test_a_launcher_that_starts_again_is_noticed() -> None:
    assert distributed.restarted({"TORCHELASTIC_RESTART_COUNT": "1"})
    assert distributed.restarted({"SLURM_RESTART_COUNT": "2"})
    assert not distributed.restarted({"TORCHELASTIC_RESTART_COUNT": "0"})
    assert not distributed.restarted({})


def test_what_fails_on_the_main_process_keeps_its_kind() -> None:
    def fail() -> None:
        raise DataError("no")

    with pytest.raises(DataError, match="no"):
        distributed.on_main(fail)
    assert distributed.on_main(lambda: 3) == 3
