"""The training loop: through Accelerate, seeded, resumable, watched on development data, and safe against divergence."""

from __future__ import annotations

import json
import math
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport.errors import StepFailed

from ._examples import Example

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

SAVE_SECONDS = 60.0
EVALUATIONS = 10  # over the whole training, where there are development data
WARMUP = 0.05  # of all steps, in which the learning rate rises
LAST_RATE = 0.02  # of the learning rate, at the last step
LARGEST_NORM = 1.0  # of a step's gradients
SORTED_BATCHES = 20  # of a window that is sorted by length, so that a batch holds little padding
RESTARTS = 3  # from the last good state, each with half the learning rate


@dataclass(frozen=True)
class Schedule:
    """How long and how fast to train.

    Attributes:
        epochs: passes over the data.
        batch: texts a step, of all processes together.
        learning_rate: the highest.
        patience: end after so many evaluations on development data without a better one.
        seed: of the order of the texts.
    """

    epochs: float
    batch: int
    learning_rate: float
    patience: int
    seed: int


@dataclass
class Progress:
    """How far training is; what is kept across an interruption besides weights and optimizer.

    Attributes:
        step: steps done.
        best: lowest distance on development data; None before the first.
        waited: evaluations since then.
        rate_factor: what the learning rate is multiplied by, after divergence.
        restarts: how often it diverged.
        history: (step, distance) of each evaluation.
    """

    step: int = 0
    best: float | None = None
    waited: int = 0
    rate_factor: float = 1.0
    restarts: int = 0
    history: list[tuple[int, float]] | None = None


class Trainer:
    """Trains a model in place."""

    def __init__(self, model: PreTrainedModel, schedule: Schedule, examples: Sequence[Example], scratch: Path,
                 report: Callable[[float | None, str], None]) -> None:
        """Prepare, and go on from what `scratch` holds.

        Args:
            model: what to train; parameters that do not require gradients stay.
            schedule: how long and how fast.
            examples: what to train on.
            scratch: keeps the state, so that an interrupted training goes on.
            report: told how far it is.
        """
        import torch
        from accelerate import Accelerator
        from accelerate.utils import DistributedDataParallelKwargs

        # Losses are added up in float32, whatever the user's configuration has for other trainings.
        self.accelerator = Accelerator(mixed_precision="no", kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
        self._schedule, self._examples, self._scratch, self._report = schedule, examples, scratch, report
        per_epoch = max(1, len(examples) // schedule.batch)
        self.steps = max(1, round(schedule.epochs * per_epoch))
        self._per_epoch = per_epoch
        optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=schedule.learning_rate)
        self.model, self._optimizer = self.accelerator.prepare(model, optimizer)
        self.progress = Progress(history=[])
        self._epoch_of_order = -1
        self._order: list[list[int]] = []
        self._state: str | None = None
        self._resume()
        self._saved = time.monotonic()
        self._due = self._state is None

    def run(self, loss_of: Callable[[PreTrainedModel, list[Example]], torch.Tensor],
            distance: Callable[[PreTrainedModel], float] | None) -> Progress:
        """Train to the end, or until development data see no progress any more; the model is then as it was at its best.

        Args:
            loss_of: loss of a batch.
            distance: how far the model is from its goal on development data, lower being better; None without such data.

        Raises:
            StepFailed: the loss is no number again and again, also at a lower learning rate.
        """
        every = max(1, self.steps // EVALUATIONS)
        if distance is not None and not self.progress.history:
            # A model that training makes worse stays as it was.
            found = self._measured(distance)
            if not math.isfinite(found):
                raise StepFailed("Training cannot begin.", why="the answers of the untrained student are no numbers",
                                 hint="are there infinite numbers in its weights?")
            self._improves(found)
        begun, first = time.monotonic(), self.progress.step
        while self.progress.step < self.steps:
            loss = self._step(loss_of)
            if not math.isfinite(loss):
                self._restart()
                continue
            self.progress.step += 1
            step = self.progress.step
            if distance is not None and (step % every == 0 or step == self.steps):
                found = self._measured(distance)
                if not math.isfinite(found):
                    self._restart()
                    continue
                if not self._improves(found):
                    break
                self._due = True
            left = (time.monotonic() - begun) / (step - first) * (self.steps - step)
            self._report(step / self.steps, self._words(loss, left))
        if self.progress.best is not None:
            self._load_best()
        return self.progress

    def _words(self, loss: float, left: float) -> str:
        progress = self.progress
        words = f"epoch {min(progress.step / self._per_epoch, self._schedule.epochs):.1f} of {self._schedule.epochs:g}, loss {loss:.4f}"
        if progress.history:
            words += f", development {progress.history[-1][1]:.4f}"
        return f"{words}, {left / 60:.0f} min left"

    def _step(self, loss_of: Callable[[PreTrainedModel, list[Example]], torch.Tensor]) -> float:
        """One step of the optimizer; returns the loss, or nan where loss or gradients are no numbers.

        A state is kept here, before the weights change, because only now it is known to be good: weights that diverge give numbers that are
        none one step later.
        """
        import torch

        for group in self._optimizer.param_groups:
            group["lr"] = self._schedule.learning_rate * self.progress.rate_factor * rate(self.progress.step / self.steps)
        self.model.train()
        loss = loss_of(self.model, self._batch())
        self._optimizer.zero_grad()
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), LARGEST_NORM)
        # All processes get the same two numbers, so that they decide alike.
        due = torch.tensor(float(self._due or time.monotonic() - self._saved > SAVE_SECONDS), device=loss.device)
        value, due_somewhere = self.accelerator.reduce(torch.stack([loss.detach(), due]), "mean").tolist()
        if not math.isfinite(value) or not bool(torch.isfinite(torch.as_tensor(norm))):
            return math.nan
        if due_somewhere and self._state != self._name():
            self._save()
        self._optimizer.step()
        return float(value)

    def _batch(self) -> list[Example]:
        """The share of the next batch that is this process's."""
        epoch, number = divmod(self.progress.step, self._per_epoch)
        if epoch != self._epoch_of_order:
            self._order = batches([example.length for example in self._examples], self._schedule.batch, self._schedule.seed + epoch)
            self._epoch_of_order = epoch
        batch = self._order[number]
        mine = batch[self.accelerator.process_index::self.accelerator.num_processes] or batch
        return [self._examples[i] for i in mine]

    def _measured(self, distance: Callable[[PreTrainedModel], float]) -> float:
        """The distance on development data, the same number in all processes."""
        import torch

        self.model.eval()
        found = torch.tensor(distance(self.accelerator.unwrap_model(self.model)), device=self.accelerator.device)
        return float(self.accelerator.reduce(found, "mean"))

    def _improves(self, found: float) -> bool:
        """Note a distance, and keep the best model; False where there was no progress for too long.

        The first steps may well lead away from a good beginning, so that is nothing that progress is measured by.
        """
        progress = self.progress
        assert progress.history is not None
        trained = [distance for step, distance in progress.history if step]
        progress.history.append((progress.step, found))
        progress.waited = 0 if not trained or found < min(trained) else progress.waited + 1
        if progress.best is None or found < progress.best:
            progress.best = found
            self._save_best()
        return progress.waited < self._schedule.patience

    # -- what lasts

    def _save_best(self) -> None:
        import torch

        if self.accelerator.is_local_main_process:
            new = self._scratch / "best.new"
            torch.save(self.accelerator.unwrap_model(self.model).state_dict(), new)
            new.replace(self._scratch / "best.pt")

    def _load_best(self) -> None:
        import torch

        self.accelerator.wait_for_everyone()
        self.accelerator.unwrap_model(self.model).load_state_dict(torch.load(self._scratch / "best.pt", weights_only=True))

    def _save(self) -> None:
        """Keep the state; what is there stays valid until the new one is whole."""
        name = self._name()
        self.accelerator.save_state(str(self._scratch / name), safe_serialization=False)
        self._point_to(name)
        if self.accelerator.is_local_main_process:
            for old in self._scratch.glob("state-*"):
                if old.name != name:
                    shutil.rmtree(old, ignore_errors=True)
        self._due, self._saved = False, time.monotonic()

    def _name(self) -> str:
        return f"state-{self.progress.step}"

    def _point_to(self, state: str) -> None:
        """Say which state to go on from, and how far it is."""
        if self.accelerator.is_local_main_process:
            new = self._scratch / "progress.new"
            new.write_text(json.dumps({"state": state, **asdict(self.progress)}), encoding="utf-8")
            new.replace(self._scratch / "progress.json")
        self._state = state
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        """Go on from the state that is kept, if there is one."""
        path = self._scratch / "progress.json"
        if not path.is_file():
            return
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        self._state = str(kept.pop("state"))
        self.accelerator.load_state(str(self._scratch / self._state))
        self.progress = Progress(**kept)
        self._report(self.progress.step / self.steps, f"going on after step {self.progress.step:,}")

    def _restart(self) -> None:
        """Go back to the last good state, and on with half the learning rate.

        Raises:
            StepFailed: it did not help, or there is no good state.
        """
        before = self.progress
        if self._state is None:
            raise StepFailed("Training cannot begin.", why="the loss of the untrained student is no number",
                             hint="are there infinite numbers in the weights of student or teacher?")
        if before.restarts == RESTARTS:
            raise StepFailed("Training diverges.", why=f"the loss was no number at step {before.step + 1:,}, at "
                             f"{self._schedule.learning_rate * before.rate_factor:.1e} too", hint="lower compress.distill.learning_rate")
        self._resume()
        # What was found best before the loss was no number is on disk and stays good.
        self.progress.restarts, self.progress.rate_factor, self.progress.best = before.restarts + 1, before.rate_factor / 2, before.best
        self._report(self.progress.step / self.steps,
                     f"the loss was no number: back at step {self.progress.step:,} with half the learning rate")
        self._point_to(self._state)


def rate(done: float) -> float:
    """The learning rate as a share of the highest, when a share of all steps is done: up in a line, then down in a line."""
    return min(1.0, (done + 1e-3) / WARMUP) * max(LAST_RATE, (1 - done) / (1 - WARMUP) if done > WARMUP else 1.0)


def batches(lengths: Sequence[int], size: int, seed: int) -> list[list[int]]:
    """All examples in a random order as full batches, of about equally long texts each."""
    order = list(range(len(lengths)))
    generator = random.Random(seed)
    generator.shuffle(order)
    window = size * SORTED_BATCHES
    found = []
    for start in range(0, len(order), window):
        inside = sorted(order[start:start + window], key=lambda i: lengths[i])
        found += [inside[i:i + size] for i in range(0, len(inside), size)]
    full = [batch for batch in found if len(batch) == size] or found
    generator.shuffle(full)
    return full
