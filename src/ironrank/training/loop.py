"""The one training loop: every method, objective, model and data set passes through it."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from ironrank.artifact import WHICH, Layout, layout_of, read_layout, restore, save_model
from ironrank.audit.accuracy import accuracy, robust_accuracy
from ironrank.data import Images, Stream, mix, split
from ironrank.errors import IronrankError
from ironrank.files import read_json, read_tensors, write_json, write_text
from ironrank.linalg import condition_number
from ironrank.models import Given
from ironrank.optim import set_lr
from ironrank.settings import encode
from ironrank.surgery import factored_layers, weight_matrices
from ironrank.training.checkpoint import Progress, load_checkpoint, restore_optimizer, save_checkpoint
from ironrank.training.processes import average_gradients, barrier, join, process
from ironrank.training.progress import watching
from ironrank.training.run import Run, decode_run

CHECKPOINT = "checkpoint.safetensors"
BEST = "best.partial.safetensors"  # the best epoch so far, until its final form is made


def train(
    run: Run,
    out: Path | str,
    *,
    model: nn.Module | None = None,
    resume: bool = False,
    until: int | None = None,
    console: Console | None = None,
) -> Path:
    """Train, and leave a run folder behind (see `ironrank.artifact`).

    Every random choice is a function of the run's seed and the step, so that a training that is stopped and
    resumed ends with the same bits as one that is not.

    Args:
        run: What to train.
        out: The run folder; made if needed.
        model: The dense module of your own that the run's model `ironrank.models.Given` stands for, in every stage
            and again on resume; a copy of it is trained, from the weights that it has.
        resume: Go on from the folder's checkpoint, if there is one.
        until: Stop after this many epochs, to be resumed later.
        console: Where to show progress; None for nowhere.

    Returns:
        The run folder.

    Raises:
        IronrankError: If the folder holds another run or cannot be written, the data is missing, or the loss is not
            finite.
    """
    join()
    out = Path(out)
    _check_model(run, model)
    _check_folder(out, run, resume)
    barrier()
    start = run.start
    if isinstance(start, Run):
        run.method.prepare(_fresh(run, model))  # a mistake in this stage shows before the first is trained
        if not (out / "start" / WHICH["best"]).is_file() or not (out / CHECKPOINT).is_file():
            train(start, out / "start", model=model, resume=True, console=console)
        start = str(out / "start")
    job = _Job(
        run, out, start, model
    )  # whatever is wrong with data or settings shows here, before anything is written
    job.open_folder()
    with watching(console, job.steps, job.progress.step) as watcher:
        while job.progress.epoch < run.epochs and not (until is not None and job.progress.epoch >= until):
            job.epoch(watcher)
    if job.progress.epoch >= run.epochs:
        job.finish()
    barrier()
    return out


class _Job:
    """What one training holds while it runs."""

    def __init__(self, run: Run, out: Path, start: str | None, given: nn.Module | None) -> None:
        self.run, self.out, self.given = run, out, given
        self.rank, self.world = process()
        self.train_images, self.validation = self._load()
        self.stream = Stream(
            self.train_images, run.batch_size, run.seed, run.data.augment, (self.rank, self.world)
        )
        self.steps = run.epochs * self.stream.steps_per_epoch
        saved = out / CHECKPOINT
        checkpoint = load_checkpoint(saved) if saved.is_file() else None
        torch.manual_seed(mix(run.seed, "init"))
        if checkpoint is not None:
            model = restore(_fresh(run, given), checkpoint.layout, checkpoint.model, str(saved))
        else:
            model = run.method.prepare(initial_model(run, start, given))
        memory_format = torch.channels_last if run.channels_last else torch.contiguous_format
        self.model = model.to(run.device).to(memory_format=memory_format).train()  # type: ignore[call-overload]
        self.optimizer = run.optimizer.build(run.method.groups(self.model))
        if checkpoint is None:
            self.state, self.progress = run.method.init(self.model), Progress()
        else:
            self.state = {name: tensor.to(run.device) for name, tensor in checkpoint.state.items()}
            self.progress = checkpoint.progress
            restore_optimizer(self.optimizer, checkpoint)

    def open_folder(self) -> None:
        """Write run.json, and metrics.jsonl without lines whose steps are taken again."""
        if self.rank == 0:
            path = self.out / "metrics.jsonl"
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.is_file() else []
            write_json(self.out / "run.json", encode(self.run))
            write_text(path, "".join(lines[: self.progress.lines]))
        barrier()

    def _load(self) -> tuple[Images, Images]:
        images = self.run.data.load("train")
        train_images, validation = split(images, self.run.data.validation, self.run.seed)
        return train_images.to(self.run.device), validation.to(self.run.device)

    def epoch(self, watcher: Any) -> None:
        """Take the steps of one epoch, validate, log, and write the checkpoint."""
        began, total = time.perf_counter(), torch.zeros((), dtype=torch.float64)
        for k in range(self.stream.steps_per_epoch):
            loss = self.step()
            total += loss.cpu()
            speed = (k + 1) * self.run.batch_size / (time.perf_counter() - began)
            watcher.step(f"loss {loss.item():.4f}  {speed:.0f} images/s")
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.model.parameters()):
            raise IronrankError(self._blown_up("not finite in its weights"))
        self.progress.epoch += 1
        seconds = time.perf_counter() - began
        line = {"epoch": self.progress.epoch, "step": self.progress.step, "loss": float(total) / (k + 1)}
        line |= {"lr": self.optimizer.param_groups[0]["lr"], **self.validate(), **self.watch()}
        self.log(line | {"seconds": round(seconds, 3)})
        watcher.epoch(line)
        self.checkpoint()

    def step(self) -> Tensor:
        """Take one step; return its loss."""
        run, t = self.run, self.progress.step
        set_lr(self.optimizer, run.schedule.factor(t / self.steps))
        x, y = self.stream.batch(t)
        if run.channels_last:
            x = x.to(memory_format=torch.channels_last)

        def backward() -> Tensor:
            self.model.zero_grad(set_to_none=True)
            torch.manual_seed(
                mix(run.seed, "step", t, self.rank)
            )  # dropout: the same however often it is asked for
            noise = torch.Generator().manual_seed(mix(run.seed, "attack", t, self.rank))
            with torch.autocast(x.device.type, torch.bfloat16, enabled=run.precision == "bfloat16"):
                loss = run.objective(self.model, x, y, generator=noise) + run.method.penalty(
                    self.model, self.state
                )
            if not torch.isfinite(loss):
                raise IronrankError(self._blown_up(str(loss.item())))
            loss.backward()
            average_gradients(self.model, len(y))
            return loss.detach()

        torch.manual_seed(mix(run.seed, "method", t))
        try:
            loss = run.method.step(self.model, self.optimizer, self.state, backward, t)
        except torch.linalg.LinAlgError:
            raise IronrankError(self._blown_up("about to become infinite")) from None
        self.progress.step += 1
        if self.progress.step % run.log_every == 0:
            lr = self.optimizer.param_groups[0]["lr"]
            self.log({"step": self.progress.step, "loss": loss.item(), "lr": lr, **self.watch()})
        return loss

    def watch(self) -> dict[str, float]:
        """Return what the method watches."""
        return self.run.method.watch(self.model, self.state)

    def validate(self) -> dict[str, float]:
        """Return clean and robust accuracy on the held-out images, and keep the best model."""
        if not len(self.validation):
            return {}  # the last epoch will be the best
        attacked = self.validation.first(self.run.validate_images)
        robust = robust_accuracy(self.model, attacked, self.run.validate, seed=mix(self.run.seed, "validate"))
        scores = (robust, accuracy(self.model, self.validation))
        if scores >= self.progress.best:
            self.progress.best = scores
            self.checkpoint(BEST)
        return {"val_robust": scores[0], "val_clean": scores[1]}

    def finish(self) -> None:
        """Give the last and the best model their final form."""
        self.model = self.run.method.finish(self.model, self.state)
        self._save(WHICH["last"], self.model)
        if (best := self.out / BEST).is_file() and self.rank == 0:
            kept = load_checkpoint(best)
            model = restore(_fresh(self.run, self.given), kept.layout, kept.model, str(best)).to(
                self.run.device
            )
            state = {name: tensor.to(self.run.device) for name, tensor in kept.state.items()}
            self._save(WHICH["best"], self.run.method.finish(model, state))
        elif not (self.out / WHICH["best"]).is_file():
            self._save(WHICH["best"], self.model)
        if self.rank == 0:
            best.unlink(missing_ok=True)
            write_json(self.out / "layout.json", self.layout(self.model))

    def layout(self, model: nn.Module) -> Layout:
        """Describe a model; one of the user's own has no architecture that could be named."""
        named = self.given is None
        return layout_of(model, self.run.model if named else None, self.run.data.spec if named else None)

    def _save(self, name: str, model: nn.Module) -> None:
        if self.rank == 0:
            save_model(self.out / name, model, self.layout(model))

    def checkpoint(self, name: str = CHECKPOINT) -> None:
        """Write all that the training holds into one file of the run folder."""
        if self.rank == 0:
            layout = self.layout(self.model)
            save_checkpoint(self.out / name, self.model, self.optimizer, self.state, layout, self.progress)

    def log(self, line: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        self.progress.lines += 1
        if self.rank == 0:
            with (self.out / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def _blown_up(self, loss: str) -> str:
        where = ""
        ranks = {name: layer.rank for name, layer in factored_layers(self.model)}
        conds = {name: _width(matrix, ranks.get(name)) for name, matrix in weight_matrices(self.model)}
        if conds:
            widest = max(conds, key=lambda name: conds[name])
            where = (
                f"; the layer with the widest spectrum is '{widest}' (condition number {conds[widest]:.3g})"
            )
        return (f"the loss is {loss} at step {self.progress.step}{where}; lower optimizer.lr or clip the schedule, "
                f"then start again or resume from the last epoch in {self.out}")  # fmt: skip


def _width(matrix: Tensor, rank: int | None) -> float:
    """Return the condition number of a layer's matrix; infinite where an entry is not finite."""
    return float(condition_number(matrix, rank)) if bool(torch.isfinite(matrix).all()) else float("inf")


def _fresh(run: Run, given: nn.Module | None) -> nn.Module:
    """Return a dense model to start from: freshly built, or a copy of the user's own."""
    return run.model.build(run.data.spec) if given is None else copy.deepcopy(given)


def initial_model(run: Run, start: str | None, given: nn.Module | None = None) -> nn.Module:
    """Return the model that the method of a run is handed first.

    Args:
        run: The run.
        start: Folder or file of the earlier stage; layers that it left factored stay so.
        given: The module of the user's own, where the run's model is `ironrank.models.Given`.

    Returns:
        A new model, on the CPU.

    Raises:
        IronrankError: If the earlier stage is not there or has another architecture.
    """
    model = _fresh(run, given)
    if start is None:
        return model
    path = Path(start) / WHICH["best"] if Path(start).is_dir() else Path(start)
    tensors, notes = read_tensors(path)
    layout = read_layout(notes, path)
    try:
        return restore(model, layout, tensors)
    except IronrankError:
        raise IronrankError(f"start={start}: that run has another architecture than this one") from None


def _check_model(run: Run, model: nn.Module | None) -> None:
    """Refuse a module that the run does not ask for, or that is factored already."""
    if model is None:
        return
    if not isinstance(run.model, Given):
        raise IronrankError(
            f"model=...: the run builds its own, {run.model.label()}; take model=Given() in the run"
        )
    if factored_layers(model):
        raise IronrankError(
            "the module given holds factors: pass the dense one, and start='folder' of ironrank.save(module, 'folder')"
        )


def _check_folder(out: Path, run: Run, resume: bool) -> None:
    """Refuse a folder that is a file, holds a run that shall not go on, or holds another run."""
    there = out / "run.json"
    if out.exists() and not out.is_dir():
        raise IronrankError(f"{out} is a file: name a folder for the run")
    if there.is_file():
        if not resume:
            raise IronrankError(f"{out} holds a run already: choose another folder, or resume it (--resume)")
        old, new = (_identity(encode(value)) for value in (decode_run(read_json(there)), run))
        if old != new:
            names = [key for key, value in new.items() if old[key] != value]
            raise IronrankError(
                f"{out} holds another run (it differs in {', '.join(names)}): choose another folder"
            )


def _identity(value: Any) -> Any:
    """Return an encoded run without the places that may differ on another machine: device and data folder."""
    if not isinstance(value, dict):
        return value
    return {
        key: _identity(item) for key, item in value.items() if key not in ("device", "folder", "download")
    }
