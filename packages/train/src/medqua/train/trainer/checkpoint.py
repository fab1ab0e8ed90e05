"""Checkpoints: written beside and renamed, so that each is whole; checked by hash before use.

trainer_state/
    checkpoint-120/
        model.safetensors     what is trained, and every buffer (thresholds among them)
        optimizer.pt          moments of AdamW
        scheduler.pt          learning rates
        rng_state*.pth        random states of each process
        shots.json            position in the seeded stream of shots, where there is one
        trainer_state.json    step, log, best step
        checkpoint.json       SHA-256 of each file; written last
    .checkpoint-130.partial/  being written, or left by a process that died: never read
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from medqua.core.errors import DataError, MedQuaError
from medqua.core.model.manifest import sha256
from medqua.train.processes import distributed

WEIGHTS = "model.safetensors"
"""Trained weights and buffers of a checkpoint; frozen ones are the backbone's."""

RECORD = "checkpoint.json"
"""What a checkpoint holds, with hashes; without it a folder is no checkpoint."""

VERSION = 1
"""Of the layout above."""

Say = Callable[[str], None]


class Checkpoints:
    """The checkpoints of one run.

    Every method is called by all processes together; rank 0 decides, and an error of one is raised
    on all. With several machines the folder has to be one that all of them see.

    Args:
        folder: `trainer_state` of the run.
        say: Called on rank 0 with what a person should know.
        keep: Newest checkpoints that stay, beside the best.
    """

    def __init__(self, folder: Path, say: Say = lambda _: None, keep: int = 2) -> None:
        self.folder = folder
        self.say = say
        self.keep = keep

    def path(self, step: int) -> Path:
        """Folder of the checkpoint of an optimiser step."""
        return self.folder / f"checkpoint-{step}"

    @contextmanager
    def writing(self, step: int) -> Iterator[Path]:
        """Write a checkpoint: give the folder to write into, then make it a checkpoint.

        The block must hold no collective: a process that fails in it leaves it early.

        Raises:
            MedQuaError: It could not be written; the checkpoints before are untouched.
        """
        partial = self.folder / f".checkpoint-{step}.partial"
        problem = ""
        try:
            distributed.on_main(lambda: _empty(partial))
            yield partial
        except (OSError, RuntimeError, SafetensorError, MedQuaError) as error:
            problem = _reason(error)
        problem = next(filter(None, distributed.gather(problem)), "")
        if not problem:
            try:
                distributed.on_main(lambda: _seal(partial, self.path(step), step))
            except (OSError, RuntimeError, MedQuaError) as error:
                problem = _reason(error)
        if problem:
            last = distributed.on_main(lambda: self._given_up(partial))
            raise MedQuaError(
                f"the checkpoint of step {step} could not be written to {self.folder}: {problem}. "
                + (f"{last} is whole and stays the last" if last else "There is none before it")
                + ": free or mend the disk, then go on with --resume"
            )

    def last(self) -> Path | None:
        """The newest checkpoint that is whole; damaged ones are named and passed over.

        Raises:
            DataError: There are checkpoints, and every one is damaged.
        """
        return distributed.on_main(self._last)

    def is_whole(self, step: int | None) -> bool:
        """Whether the checkpoint of a step is there and undamaged; if not, say so."""
        return step is not None and distributed.on_main(lambda: not self._damage(self.path(step)))

    def remove_old(self, best: int | None) -> None:
        """Keep the newest checkpoints and the best."""

        def remove() -> None:
            kept = {best, *sorted(self._steps())[-self.keep :]}
            for step in self._steps():
                if step not in kept:
                    shutil.rmtree(self.path(step), ignore_errors=True)

        distributed.on_main(remove)

    def _last(self) -> Path | None:
        for partial in self.folder.glob(".checkpoint-*.partial"):
            shutil.rmtree(partial, ignore_errors=True)
        steps = sorted(self._steps(), reverse=True)
        for step in steps:
            if not self._damage(self.path(step)):
                return self.path(step)
        if steps:
            raise DataError(
                f"no checkpoint in {self.folder} is whole, of {len(steps)} that are there: start a "
                "new run with another --output"
            )
        return None

    def _damage(self, path: Path) -> bool:
        try:
            verify(path)
        except DataError as error:
            self.say(f"Passing over {path.name}: {error}")
            return True
        return False

    def _steps(self) -> list[int]:
        names = (path.name.removeprefix("checkpoint-") for path in self.folder.glob("checkpoint-*"))
        return [int(name) for name in names if name.isdigit()]

    def _given_up(self, partial: Path) -> str:
        shutil.rmtree(partial, ignore_errors=True)
        return f"checkpoint-{max(self._steps())}" if self._steps() else ""


def verify(folder: Path) -> None:
    """Check every file of a checkpoint against its hash.

    Raises:
        DataError: It is incomplete, altered or of another version; the file is named.
    """
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
        files = dict(record["files"])
        version = record["version"]
    except FileNotFoundError as error:
        raise DataError(f"{folder} holds no {RECORD}: it is no whole checkpoint") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder / RECORD} cannot be read") from error
    if version != VERSION:
        raise DataError(f"{folder} is of version {version!r}: needed {VERSION}")
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise DataError(f"{path} is missing")
        if sha256(path) != expected:
            raise DataError(f"{path} was altered: its SHA-256 is not the recorded one")


def trained_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters that are trained, and all persistent buffers, whole and on the CPU.

    For a sharded model all processes call it together.
    """
    return {
        name: _whole(tensor.detach()).cpu().contiguous().clone()
        for name, tensor in _trained(model).items()
    }


def load_trained_state(model: nn.Module, folder: Path) -> None:
    """Load the weights of a checkpoint into the model that it was made from.

    Args:
        model: The classifier, sharded or not.
        folder: A checkpoint.

    Raises:
        DataError: The checkpoint is of another model or recipe.
    """
    path = folder / WEIGHTS
    if not path.is_file():
        raise DataError(f"no {WEIGHTS} in {folder}: it is no checkpoint of MedQua")
    put_trained_state(model, load_file(path), str(path))


@torch.no_grad()
def put_trained_state(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Put what `trained_state` gave into a model of the same recipe.

    Raises:
        DataError: It is of another model or recipe; `source` is named.
    """
    needed = _trained(model)
    wrong = sorted(
        name
        for name in state.keys() | needed.keys()
        if name not in state or name not in needed or state[name].shape != needed[name].shape
    )
    if wrong:
        raise DataError(
            f"{source} is of another model: {len(wrong)} tensors differ, among them {wrong[0]}; "
            "resume with the recipe that it was made by"
        )
    for name, tensor in needed.items():
        if isinstance(tensor, DTensor):
            _put_part(tensor, state[name])
        else:
            tensor.copy_(state[name])


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """The tensors themselves: parameters that are trained, and all persistent buffers."""
    for module in model.modules():  # an evaluation leaves the outermost parameters gathered
        if isinstance(module, FSDPModule):
            module.reshard()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    buffers = {name for name, _ in model.named_buffers(remove_duplicate=False)}
    own: dict[str, Tensor] = model.state_dict(keep_vars=True)
    return {**trained, **{name: b for name, b in own.items() if name in buffers}}


def _put_part(tensor: DTensor, whole: Tensor) -> None:
    """Copy this process's part of a tensor; every process has the whole, so nothing is sent."""
    part = distribute_tensor(
        whole.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None
    )
    tensor.to_local().copy_(part.to_local())


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)


def _seal(partial: Path, final: Path, step: int) -> None:
    """Record the hashes, force everything to the disk, and give the folder its name."""
    names = sorted(path.name for path in partial.iterdir())
    record = {
        "version": VERSION,
        "step": step,
        "processes": distributed.world_size(),
        "files": {name: sha256(partial / name) for name in names},
    }
    (partial / RECORD).write_text(json.dumps(record, indent=2) + "\n", "utf-8")
    for path in (*partial.iterdir(), partial):
        _force(path)
    if final.exists():  # a damaged one, passed over at the start of this run
        shutil.rmtree(final)
    partial.rename(final)
    _force(final.parent)


def _force(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: Exception) -> str:
    """One line that says what went wrong."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
