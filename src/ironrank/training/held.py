"""What one training holds while it runs, how that is taken up from a checkpoint and written into one."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ironrank.artifact import Layout, layout_of, load_model, of_ones_own, restore, save_model
from ironrank.data import Images, Stream, mix, split
from ironrank.errors import IronrankError
from ironrank.files import write_json
from ironrank.methods import Method
from ironrank.optim import clip_steps
from ironrank.settings import encode
from ironrank.surgery import last_parameters
from ironrank.training.average import Average
from ironrank.training.checkpoint import (
    Progress,
    laid_out_as,
    load_checkpoint,
    restore_optimizer,
    save_checkpoint,
)
from ironrank.training.folder import add_line, keep_lines
from ironrank.training.guards import strengthened
from ironrank.training.processes import barrier, process
from ironrank.training.progress import Event
from ironrank.training.remarks import remarks
from ironrank.training.run import Run
from ironrank.training.start import check_answers, fresh, initial_model

CHECKPOINT = "checkpoint.safetensors"


class Held:
    """Model, optimizer, the method's state, the objective's memory, the average, and how far the training has come.

    Args:
        run: What to train.
        out: The run folder.
        start: Folder of the earlier stage, or None.
        given: The user's own dense module, or None.
    """

    def __init__(self, run: Run, out: Path, start: str | None, given: nn.Module | None) -> None:
        self.run, self.out, self.start, self.given = run, out, start, given
        self.rank, self.world = process()
        self.train_images, self.validation = self._load()
        self.stream = Stream(
            self.train_images, run.batch_size, run.seed, run.data.augment, (self.rank, self.world)
        )
        if self.world > 1 and run.objective.keeps_tensors:
            raise IronrankError(
                f"objective '{run.objective.label()}' keeps a tensor for its own images: train with one process"
            )
        self.take_up()
        if given is not None:
            check_answers(self.model, self.train_images, run.data.spec.classes)

    def take_up(self) -> None:
        """Hold what the checkpoint holds, or what a training begins with where there is none."""
        run, saved = self.run, self.out / CHECKPOINT
        checkpoint = load_checkpoint(saved) if saved.is_file() else None
        torch.manual_seed(mix(run.seed, "init"))
        if checkpoint is not None:
            model = restore(fresh(run, self.given), checkpoint.layout, checkpoint.model, str(saved))
        else:
            model = run.method.prepare(initial_model(run, self.start, self.given))
        memory_format = torch.channels_last if run.channels_last else torch.contiguous_format
        self.model = model.to(run.device).to(memory_format=memory_format).train()  # type: ignore[call-overload]
        self.optimizer = run.optimizer.build(run.method.groups(self.model), last_parameters(self.model))
        if run.clip:
            clip_steps(self.optimizer, run.clip)
        if checkpoint is None:
            self.state, self.progress = run.method.init(self.model), Progress()
        else:
            self.state, self.progress = self._here(checkpoint.state), checkpoint.progress
            restore_optimizer(self.optimizer, checkpoint)
        self.objective = strengthened(run.objective, self.progress.stronger)
        self.memory = self.objective.begin(self._teacher)
        self.memory.tensors |= self._here(checkpoint.objective) if checkpoint else {}
        mean = self._here(checkpoint.average) if checkpoint else None
        if mean:
            weights = self.model.state_dict()
            mean = {name: laid_out_as(weights.get(name, tensor), tensor) for name, tensor in mean.items()}
        self.average = Average(self.model, run.average, mean) if run.average else None

    def _teacher(self, folder: str) -> nn.Module:
        """Load a trained model; one whose folder names no architecture has that of the module given."""
        own = self.given is not None and of_ones_own(folder)
        return load_model(folder, model=self.given if own else None).to(self.run.device)

    def _here(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor.to(self.run.device) for name, tensor in tensors.items()}

    @property
    def epoch_steps(self) -> int:
        """Steps of one epoch: one for each batch, or as many as the objective takes on it."""
        return self.stream.steps_per_epoch * self.objective.steps_per_batch

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.run.epochs * self.epoch_steps

    @property
    def ended(self) -> bool:
        """Whether all epochs are done, or so many without a better one that patience is at its end."""
        waited = self.progress.epoch - self.progress.best_epoch
        patient = self.run.guard.patience == 0 or not len(self.validation) or waited < self.run.guard.patience
        return self.progress.epoch >= self.run.epochs or not patient

    @property
    def judged(self) -> nn.Module:
        """The weights that are judged and saved: the average, where there is one."""
        return self.model if self.average is None else self.average.model(self.model, self.run.method)

    def final(self, model: nn.Module) -> nn.Module:
        """Return the form that a model would be given if training ended here: that is what is worth judging.

        Args:
            model: The model; it stays as it is.

        Returns:
            A copy in its final form, or the model itself where the method gives none.
        """
        method = self.run.method
        if type(method).finish is Method.finish:
            return model
        return method.finish(copy.deepcopy(model), self.state)

    def open_folder(self) -> list[Event]:
        """Write run.json, and metrics.jsonl without lines whose steps are taken again; return what it begins with."""
        if self.rank == 0:
            write_json(self.out / "run.json", encode(self.run))
            keep_lines(self.out, self.progress.lines)
        said = [] if self.progress.lines else remarks(self.run, self.start, self.steps)
        for event in said:
            self.log(event)
        barrier()
        return said

    def _load(self) -> tuple[Images, Images]:
        images = self.run.data.load("train")
        train_images, validation = split(images, self.run.data.validation)
        return train_images.to(self.run.device), validation.to(self.run.device)

    def layout(self, model: nn.Module) -> Layout:
        """Describe a model; one of the user's own has no architecture that could be named."""
        named = self.given is None
        return layout_of(model, self.run.model if named else None, self.run.data.spec if named else None)

    def _save(self, name: str, model: nn.Module) -> None:
        if self.rank == 0:
            save_model(self.out / name, model, self.layout(model))

    def checkpoint(self, name: str = CHECKPOINT, model: nn.Module | None = None) -> None:
        """Write all that the training holds into one file of the run folder; or another model in place of its own."""
        model = self.model if model is None else model
        if self.rank == 0:
            more = {"objective": self.memory.tensors, "average": self.average.tensors if self.average else {}}
            layout = self.layout(model)
            save_checkpoint(self.out / name, model, self.optimizer, self.state, layout, self.progress, more)

    def log(self, line: dict[str, Any]) -> None:
        """Append a line to metrics.jsonl."""
        self.progress.lines += 1
        if self.rank == 0:
            add_line(self.out, line)
