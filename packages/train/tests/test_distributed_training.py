"""One process against two, DDP against FSDP2, processes that die, stop or resume."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from PIL import Image
from rich.console import Console

from medqua.core.errors import ConfigError, DataError, MedQuaError
from medqua.train.processes import distributed
from medqua.train.recipe import Recipe, load_recipe
from medqua.train.run import train
from medqua.train.trainer.checkpoint import Checkpoints
from medqua.train.trainer.trainer import MedQuaTrainer

WORKER = Path(__file__).with_name("two_ranks.py")
QUIET = Console(quiet=True)
BRIEF = (
    *("evaluation.bootstrap=0", "evaluation.plots=false", "evaluation.untrained=false"),
    *("run.trackers=[]", "optim.batch_size=10", "adapter.gamma_init=0.3"),
)

DRAWS = ("adapter.relaxation=gumbel", "adapter.shots=64", "adapter.seed=3")
NINE = ("optim.max_steps=9", "run.checkpoint_every=2", *DRAWS)
"""Nine steps, three an epoch, a checkpoint every two; draws in the forward pass."""

pytestmark = pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)


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


class Launcher:
    """A process that has imported everything and forks ranks; see `two_ranks.py`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def __call__(self, folder: Path, ranks: int = 2, **runs: dict[str, Any]) -> list[int]:
        """Do runs one after the other; the exit codes by rank."""
        folder.mkdir(exist_ok=True)
        plan = {"folder": str(folder), "ranks": ranks, "runs": runs}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(plan) + "\n")
        self.process.stdin.flush()
        codes: list[int] = json.loads(self.process.stdout.readline())
        return codes


@pytest.fixture(scope="module")
def launch() -> Iterator[Launcher]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, str(WORKER)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        yield Launcher(process)
        assert process.stdin is not None
        process.stdin.close()


def said(folder: Path) -> str:
    """What all ranks of the last launch wrote to standard error."""
    return "".join(path.read_text() for path in sorted(folder.glob("rank-*.err")))


def record(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found


@pytest.fixture(scope="module")
def shared(
    keys: Callable[..., list[str]], launch: Launcher, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Runs of one and of two processes, eight steps of a global batch of ten."""
    folder = tmp_path_factory.mktemp("shared")
    eight = keys("optim.max_steps=8")
    ended = (
        launch(folder, ddp={"keys": eight}, fsdp={"keys": [*eight, "run.parallel=fsdp"]}),
        launch(folder, 1, one={"keys": eight}),
    )
    assert ended == ([0, 0], [0]), said(folder)[-4000:]
    return folder


def losses(run: Path) -> list[tuple[float, float]]:
    return [
        (line["step"], value)
        for line in logged(run)
        for name, value in line.items()
        if name in ("loss", "eval_loss", "eval_macro_auroc")
    ]


def logged(run: Path) -> list[dict[str, float]]:
    """The log, without what a clock says and the mean loss of the steps since the last start."""
    state = json.loads((run / "trainer_state" / "trainer_state.json").read_text())
    clock = ("runtime", "per_second", "train_loss")
    return [
        {name: value for name, value in line.items() if not name.endswith(clock)}
        for line in state["log_history"]
    ]


def told(folder: Path, name: str, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / f"{name}-{rank}.json").read_text())
    return found


def differing(folder: Path, *names: str) -> list[str]:
    """Tensors that are not the same bits in two of the files that ranks left."""
    first, second = (torch.load(folder / f"{name}.pt") for name in names)
    assert first.keys() == second.keys()
    return [key for key, value in first.items() if not value.equal(second[key])]


def test_two_processes_have_the_losses_of_one(shared: Path) -> None:
    one, two = losses(shared / "one"), losses(shared / "ddp")
    assert len(one) >= 10
    assert [step for step, _ in one] == [step for step, _ in two]
    assert [v for _, v in two] == pytest.approx([v for _, v in one], abs=1e-6)
    assert len({round(v, 4) for _, v in one}) > 5  # it does learn


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_processes_agree_to_the_bit(shared: Path, name: str) -> None:
    assert not differing(shared, f"{name}-0", f"{name}-1")
    assert told(shared, name, 0)["thresholds"] == told(shared, name, 1)["thresholds"]
    one = told(shared, "one", 0)["thresholds"]
    assert told(shared, name, 0)["thresholds"] == pytest.approx(one, abs=1e-4)


def test_fsdp_has_the_losses_and_weights_of_ddp(shared: Path) -> None:
    whole, parts = losses(shared / "ddp"), losses(shared / "fsdp")
    assert [v for _, v in parts] == pytest.approx([v for _, v in whole], abs=1e-5)
    first, second = (torch.load(shared / f"{name}-0.pt") for name in ("ddp", "fsdp"))
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.allclose(value.double(), second[key].double(), rtol=0, atol=1e-5), key


def test_fsdp_shards_everything_and_ddp_nothing(shared: Path) -> None:
    fsdp = told(shared, "fsdp", 0)
    assert fsdp["parameters"] == ["DTensor"]  # of those that are no scalars
    assert fsdp["blocks"] == ["FSDPQuasarBlock"]
    assert fsdp["adapter"] == ["torch.float32"]
    assert fsdp["wrapped"] == "FSDPMedQuaClassifier"
    assert told(shared, "ddp", 0)["wrapped"] == "DistributedDataParallel"


def test_a_sharded_run_leaves_a_bundle_like_any_other(shared: Path) -> None:
    both = [pl.read_parquet(shared / name / "predictions.parquet") for name in ("ddp", "fsdp")]
    for name in ("Mass logit", "Edema logit"):
        assert both[0][name].to_list() == pytest.approx(both[1][name].to_list(), abs=1e-3)
    assert (shared / "fsdp" / "bundle" / "bundle.json").is_file()


@pytest.mark.slow
def test_a_bfloat16_backbone_in_parts_trains_a_float32_adapter(
    keys: Callable[..., list[str]], launch: Launcher, tmp_path: Path
) -> None:
    half = ("backbone.tune=adapter", "backbone.dtype=bfloat16", "optim.micro_batch_size=1")
    frozen = ("backbone.gradient_checkpointing=true", "optim.max_steps=2", "run.parallel=fsdp")
    assert launch(tmp_path, half={"keys": keys(*half, *frozen)}) == [0, 0], said(tmp_path)
    assert told(tmp_path, "half", 0)["adapter"] == ["torch.float32"]
    state = torch.load(tmp_path / "half-0.pt")
    floats = {value.dtype for value in state.values() if value.is_floating_point()}
    assert floats == {torch.float32}
    assert all(np.isfinite(value) for _, value in losses(tmp_path / "half"))


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_rank_that_routes_nothing_takes_part(
    keys: Callable[..., list[str]], launch: Launcher, tmp_path: Path, parallel: str
) -> None:
    run = {"keys": keys("optim.max_steps=3", f"run.parallel={parallel}"), "empty": 1}
    assert launch(tmp_path, run=run) == [0, 0], said(tmp_path)[-4000:]
    assert not differing(tmp_path, "run-0", "run-1")
    assert all(np.isfinite(value) for _, value in losses(tmp_path / "run"))


@pytest.mark.slow
def test_a_rank_that_dies_ends_the_others_and_the_run_resumes(
    keys: Callable[..., list[str]], launch: Launcher, tmp_path: Path
) -> None:
    eight = keys("optim.max_steps=8", "run.checkpoint_every=2")
    codes = launch(tmp_path, run={"keys": eight, "signal": [1, 5, signal.SIGKILL]})
    assert codes == [2, -signal.SIGKILL]  # it noticed: `STUCK` of two_ranks.py would kill it too
    assert "rank 0 lost another process" in said(tmp_path)
    assert "--resume" in said(tmp_path)
    assert record(tmp_path / "run")["state"] == "failed"
    assert record(tmp_path / "run")["error"].endswith("on rank 0")
    resumed = {"run": {"keys": eight, "resume": True}, "alone": {"keys": eight}}
    assert launch(tmp_path, **resumed) == [0, 0], said(tmp_path)[-4000:]
    assert not differing(tmp_path, "run-1", "alone-1")
    assert logged(tmp_path / "run") == logged(tmp_path / "alone")


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_with_a_checkpoint(
    keys: Callable[..., list[str]], launch: Launcher, tmp_path: Path
) -> None:
    nine = keys(*NINE)
    codes = launch(tmp_path, run={"keys": nine, "signal": [1, 4, signal.SIGTERM]})
    assert codes == [130, 130], said(tmp_path)[-4000:]
    assert record(tmp_path / "run")["state"] == "interrupted"
    last = Checkpoints(tmp_path / "run" / "trainer_state").last()
    assert last is not None
    assert last.name == "checkpoint-5"  # the step that was under way, amid the second epoch
    resumed = {"run": {"keys": nine, "resume": True}, "alone": {"keys": nine}}
    assert launch(tmp_path, **resumed) == [0, 0], said(tmp_path)[-4000:]
    assert not differing(tmp_path, "run-0", "alone-0")
    assert logged(tmp_path / "run") == logged(tmp_path / "alone")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_starts_again_where_it_was(
    keys: Callable[..., list[str]], tmp_path: Path, rank: int, patience: float
) -> None:
    run = {
        "keys": keys("optim.max_steps=6", "run.checkpoint_every=2"),
        "signal": [rank, 3, signal.SIGKILL],
    }
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps({"folder": str(tmp_path), "runs": {"run": run}}))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
    ended = subprocess.run(
        [*command, "--standalone", "--max-restarts=1", str(WORKER), str(plan)],
        capture_output=True,
        text=True,
        timeout=patience,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    assert record(tmp_path / "run")["state"] == "complete"
    assert len(record(tmp_path / "run")["resumed"]) == 1


@pytest.fixture(scope="module")
def whole(
    keys: Callable[..., list[str]], launch: Launcher, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    assert launch(folder, 1, run={"keys": keys(*NINE)}) == [0], said(folder)[-4000:]
    return folder / "run"


def same(first: Path, second: Path) -> None:
    """Check that two runs of nine steps left the same bits and the same log."""
    both = [pl.read_parquet(path / "predictions.parquet") for path in (first, second)]
    assert both[0].equals(both[1])
    last = [Checkpoints(path / "trainer_state").path(9) for path in (first, second)]
    for name in ("model.safetensors", "optimizer.pt", "scheduler.pt", "shots.json"):
        assert (last[0] / name).read_bytes() == (last[1] / name).read_bytes(), name
    random = [torch.load(path / "rng_state.pth", weights_only=False) for path in last]
    assert random[0]["cpu"].equal(random[1]["cpu"])
    assert (random[0]["numpy"][1] == random[1]["numpy"][1]).all()
    assert logged(first) == logged(second)


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 5, 8])
def test_a_killed_run_resumes_to_the_same_bits(
    keys: Callable[..., list[str]], launch: Launcher, whole: Path, tmp_path: Path, step: int
) -> None:
    kill = {"keys": keys(*NINE), "signal": [0, step, signal.SIGKILL]}
    assert launch(tmp_path, 1, run=kill) == [-signal.SIGKILL]
    assert record(tmp_path / "run")["state"] == "running"  # it had no time to say otherwise
    assert launch(tmp_path, 1, run={"keys": keys(*NINE), "resume": True}) == [0], said(tmp_path)
    assert record(tmp_path / "run")["state"] == "complete"
    same(whole, tmp_path / "run")


@pytest.mark.slow
def test_a_damaged_checkpoint_costs_only_steps(
    keys: Callable[..., list[str]], launch: Launcher, whole: Path, tmp_path: Path
) -> None:
    kill = {"keys": keys(*NINE), "signal": [0, 7, signal.SIGKILL]}
    assert launch(tmp_path, 1, run=kill) == [-signal.SIGKILL]
    last = Checkpoints(tmp_path / "run" / "trainer_state").last()
    assert last is not None
    weights = bytearray((last / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (last / "model.safetensors").write_bytes(weights)
    assert launch(tmp_path, 1, run={"keys": keys(*NINE), "resume": True}) == [0], said(tmp_path)
    same(whole, tmp_path / "run")


class KilledError(Exception):
    """In the place of SIGKILL, at a step of a run in this process."""


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
