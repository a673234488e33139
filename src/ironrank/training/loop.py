"""The one training loop: every method, objective, model and data set passes through it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from ironrank.artifact import WHICH, restore
from ironrank.data import mix
from ironrank.errors import IronrankError
from ironrank.files import write_json
from ironrank.judge.accuracy import accuracy, robust_accuracy
from ironrank.optim import set_lr
from ironrank.training.checkpoint import load_checkpoint
from ironrank.training.diagnosis import blown_up
from ironrank.training.folder import check_folder
from ironrank.training.held import CHECKPOINT, Held
from ironrank.training.looking import Look, look
from ironrank.training.processes import agreed, average_gradients, barrier, everywhere, join, share_buffers
from ironrank.training.progress import Event, Watcher, watching
from ironrank.training.run import Run, check_radii, score
from ironrank.training.start import check_model, fresh

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
        IronrankError: If the folder holds another run or cannot be written, the data or a teacher is missing, or the
            loss is not finite.
    """
    join(run.device)
    out = Path(out)
    check_model(run, model)
    check_radii(run)
    check_folder(out, run, resume)
    barrier()
    start = run.start
    if isinstance(start, Run):
        run.method.prepare(fresh(run, model))  # a mistake in this stage shows before the first is trained
        if not (out / "start" / WHICH["best"]).is_file() or not (out / CHECKPOINT).is_file():
            train(start, out / "start", model=model, resume=True, console=console)
        start = str(out / "start")
    job = Job(
        run, out, start, model
    )  # whatever is wrong with data or settings shows here, before anything is written
    said = job.open_folder()
    with watching(console, job.steps, job.progress.epoch * job.epoch_steps) as watcher:
        for event in said:
            watcher.event(event)
        while not job.ended and not (until is not None and job.progress.epoch >= until):
            job.epoch(watcher)
    if job.ended:
        job.finish()
    barrier()
    return out


class Job(Held):
    """What one training does: steps, epochs, judgement, and what guards demand."""

    def epoch(self, watcher: Watcher) -> None:
        """Take the steps of one epoch, validate, log, and write the checkpoint."""
        began, total = time.perf_counter(), torch.zeros((), dtype=torch.float64)
        for k in range(self.epoch_steps):
            loss = self.step(k)
            total += loss.cpu()
            speed = (k + 1) * self.run.batch_size / (time.perf_counter() - began)
            watcher.step(f"loss {loss.item():.4f}  {speed:.0f} images/s")
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.model.parameters()):
            raise IronrankError(self._blown_up("not finite in its weights"))
        share_buffers(self.model)
        seen = self.look()
        if seen is not None and seen.gap > self.run.guard.gap:
            self.roll_back(seen, watcher)
            return
        self.progress.epoch += 1
        seconds = time.perf_counter() - began
        line = {"epoch": self.progress.epoch, "step": self.progress.step, "loss": float(total) / (k + 1)}
        line |= {"lr": self.optimizer.param_groups[0]["lr"], **self.validate(), **self.watch()}
        line |= {} if seen is None else {"guard_single": seen.single, "guard_multi": seen.multi}
        self.log(line | {"seconds": round(seconds, 3)})
        watcher.epoch(line)
        self.report_fall(line, watcher)
        self.checkpoint()

    def step(self, k: int) -> Tensor:
        """Take step k of the epoch; return its loss."""
        run, t = self.run, self.progress.step
        place = (
            self.progress.epoch * self.epoch_steps + k
        )  # t, unless an alarm has changed the steps of an epoch
        set_lr(self.optimizer, run.schedule.factor(place / self.steps))
        x, y = self.stream.batch(place // self.objective.steps_per_batch)
        if run.channels_last:
            x = x.to(memory_format=torch.channels_last)

        def backward() -> Tensor:
            self.model.zero_grad(set_to_none=True)
            torch.manual_seed(
                mix(run.seed, "step", t, self.rank)
            )  # dropout: the same however often it is asked for
            noise = torch.Generator().manual_seed(mix(run.seed, "attack", t, self.rank))
            with torch.autocast(x.device.type, torch.bfloat16, enabled=run.precision == "bfloat16"):
                loss = self.objective(self.model, x, y, generator=noise, memory=self.memory)
                loss = loss + run.method.penalty(self.model, self.state)
            if not everywhere(bool(torch.isfinite(loss)), x.device):
                here = bool(torch.isfinite(loss))
                raise IronrankError(
                    self._blown_up("not finite in another process" if here else str(loss.item()))
                )
            loss.backward()
            average_gradients(self.model, len(y))
            return loss.detach()

        torch.manual_seed(mix(run.seed, "method", t))
        try:
            loss = run.method.step(self.model, self.optimizer, self.state, backward, t)
        except (torch.linalg.LinAlgError, FloatingPointError):
            raise IronrankError(self._blown_up("about to become infinite")) from None
        self.objective.advance(self.memory)
        if self.average is not None:
            self.average.update(self.model, t)
        self.progress.step += 1
        if self.progress.step % run.log_every == 0:
            lr = self.optimizer.param_groups[0]["lr"]
            self.log({"step": self.progress.step, "loss": loss.item(), "lr": lr, **self.watch()})
        return loss

    def watch(self) -> dict[str, float]:
        """Return what the method watches."""
        try:
            return self.run.method.watch(self.model, self.state)
        except torch.linalg.LinAlgError:
            raise IronrankError(self._blown_up("not finite in its weights")) from None

    def validate(self) -> dict[str, float]:
        """Return clean and robust accuracy on the held-out images, and keep the best model."""
        if not len(self.validation):
            return {}  # the last epoch will be the best
        model, attacked = self.judged, self.validation.first(self.run.validate_images)
        final = self.final(model)
        robust = robust_accuracy(final, attacked, self.run.validate, seed=mix(self.run.seed, "validate"))
        robust, clean = agreed((robust, accuracy(final, self.validation)), self.run.device)
        scores = score(self.run, robust, clean)
        if scores >= self.progress.best:
            self.progress.best, self.progress.best_epoch = scores, self.progress.epoch
            self.checkpoint(BEST, model)
        line = {"val_robust": robust, "val_clean": clean}
        if self.objective.threat is not None:
            line["robust_fall"] = self.progress.best[0] - robust
        return line

    def look(self) -> Look | None:
        """Compare a weak and a strong attack on held-out images, where training could have learned to fool its own."""
        # in the ball of the next step: in a larger one a healthy net too is fooled by many steps and not by one
        threat, guard = self.objective.threat_now(self.memory), self.run.guard
        if threat is None or not guard.looks(self.objective) or not len(self.validation):
            return None
        seen = look(self.model, self.validation.first(guard.images), threat, mix(self.run.seed, "guard"))
        return Look(*agreed(seen, self.run.device))

    def roll_back(self, seen: Look, watcher: Watcher) -> None:
        """Go back to the last good checkpoint, and on from there with a stronger attack."""
        failed = self.progress.epoch + 1
        barrier()
        self.take_up()
        barrier()  # none may read what the first is about to write
        self.progress.stronger += 1
        self.objective = self.objective.stronger()
        self.open_folder()
        event: Event = {"event": "catastrophic overfitting", "at_epoch": failed, "guard_single": seen.single,
                 "guard_multi": seen.multi, "back_to_epoch": self.progress.epoch,
                 "goes_on_with": self.objective.describe()}  # fmt: skip
        self.log(event)
        watcher.event(event, self.progress.epoch * self.epoch_steps, self.steps)
        self.checkpoint()
        barrier()

    def report_fall(self, line: dict[str, Any], watcher: Watcher) -> None:
        """Say once that robust accuracy has fallen from its best, until there is a new best."""
        progress, fall = self.progress, line.get("robust_fall", 0.0)
        if progress.best_epoch == progress.epoch:
            progress.overfit = 0
        if fall <= self.run.guard.fall or progress.overfit:
            return
        progress.overfit = progress.epoch
        event: Event = {"event": "robust overfitting", "at_epoch": progress.epoch, "robust_fall": fall,
                 "best_epoch": progress.best_epoch}  # fmt: skip
        self.log(event)
        watcher.event(event)

    def finish(self) -> None:
        """Give the last and the best model their final form."""
        self.model = self.run.method.finish(self.judged, self.state)
        self._save(WHICH["last"], self.model)
        if self.rank == 0:
            write_json(self.out / "layout.json", self.layout(self.model))
        # the best comes last: where it is, the run is whole
        if (best := self.out / BEST).is_file() and self.rank == 0:
            kept = load_checkpoint(best)
            model = restore(fresh(self.run, self.given), kept.layout, kept.model, str(best))
            finished = self.run.method.finish(model.to(self.run.device), self._here(kept.state))
            self._save(WHICH["best"], finished)
        elif not (self.out / WHICH["best"]).is_file():
            self._save(WHICH["best"], self.model)
        if self.rank == 0:
            best.unlink(missing_ok=True)

    def _blown_up(self, loss: str) -> str:
        return blown_up(self.model, loss, self.progress.step, self.out)
