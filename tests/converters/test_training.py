"""The training loop on a model of one matrix, against a loop of a few lines: the same steps, through interruption, divergence and early stopping."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from edgeexport.converters import _training
from edgeexport.converters._training import Progress, Schedule, Trainer, batches, rate
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeexport.errors import StepFailed

SCHEDULE = Schedule(epochs=5, batch=4, learning_rate=0.05, patience=3, seed=7)
Batch = Sequence[Any]


class Interrupted(Exception):
    """What stops a training here."""


def examples() -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    return [SimpleNamespace(length=1 + i % 9, x=torch.randn(5, generator=generator), y=torch.randn(3, generator=generator)) for i in range(42)]


def untrained() -> Any:
    torch.manual_seed(1)
    return torch.nn.Linear(5, 3)


def squares(model: Any, batch: Batch) -> torch.Tensor:
    return sum((((model(each.x) - each.y) ** 2).sum() for each in batch), torch.zeros(())) / len(batch)


def by_hand(schedule: Schedule, steps: int, factors: Callable[[int], float] = lambda step: 1.0) -> list[dict[str, torch.Tensor]]:
    """The weights after each step, of 50 in all, as plain PyTorch makes them."""
    model, everything = untrained(), examples()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1.0)
    found = [copy.deepcopy(model.state_dict())]
    for step in range(steps):
        done = step / 50
        up, down = (done + 0.001) / 0.05, 1.0 if done <= 0.05 else max(0.02, (1 - done) / 0.95)
        for group in optimizer.param_groups:
            group["lr"] = schedule.learning_rate * factors(step) * min(1.0, up) * down
        order = batches([each.length for each in everything], schedule.batch, schedule.seed + step // 10)
        loss = squares(model, [everything[i] for i in order[step % 10]])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        found.append(copy.deepcopy(model.state_dict()))
    return found


def same(model: Any, weights: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


def train(scratch: Path, loss_of: Any = squares, distance: Any = None, schedule: Schedule = SCHEDULE,
          told: list[str] | None = None) -> tuple[Any, Progress]:
    scratch.mkdir(exist_ok=True)
    model = untrained()

    def report(fraction: float | None, message: str) -> None:
        assert fraction is not None and 0 <= fraction <= 1
        if told is not None:
            told.append(message)

    return model, Trainer(model, schedule, examples(), scratch, report).run(loss_of, distance)


def failing(at: int, error: Any = Interrupted, times: int = 1) -> Any:
    """The loss, but at some calls it raises, or is no number."""
    calls = iter(range(10**6))

    def loss_of(model: Any, batch: Batch) -> torch.Tensor:
        if at <= next(calls) < at + times:
            if error is Interrupted:
                raise Interrupted
            return squares(model, batch) * error
        return squares(model, batch)

    return loss_of


def test_it_is_adamw_with_a_rising_and_falling_rate(tmp_path: Path) -> None:
    told: list[str] = []
    model, progress = train(tmp_path / "a", told=told)
    assert progress.step == 50 and progress.restarts == 0 and progress.best is None
    assert same(model, by_hand(SCHEDULE, 50)[-1])
    assert len(told) == 50 and told[9].startswith("epoch 1.0 of 5, loss ") and told[-1].endswith("0 min left")


@pytest.mark.parametrize("every_step", [True, False])
@pytest.mark.parametrize("watched", [True, False])
def test_an_interrupted_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every_step: bool, watched: bool) -> None:
    """From the last state that was kept, to the same bits."""
    if every_step:
        monkeypatch.setattr(_training, "SAVE_SECONDS", -1.0)

    def distance(model: Any) -> float:
        return float(squares(model, examples()).detach())

    judge = distance if watched else None
    whole, wanted = train(tmp_path / "whole", distance=judge)
    told: list[str] = []
    for at in (0, 3, 13, 20):
        with pytest.raises(Interrupted):
            train(tmp_path / "parts", failing(at), distance=judge, told=told)
    model, progress = train(tmp_path / "parts", distance=judge, told=told)
    assert same(model, whole.state_dict())
    assert progress.step == wanted.step and progress.best == wanted.best
    assert [tuple(each) for each in progress.history or ()] == [tuple(each) for each in wanted.history or ()]
    resumed = [message for message in told if message.startswith("going on after step")]
    assert len(resumed) == 3  # not after the one that had not begun
    assert [int(message.split()[-1]) for message in resumed] == ([2, 14, 33] if every_step else [0, 10, 25] if watched else [0, 0, 0])


def test_a_state_that_is_half_written_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither one that was cut off before anything points to it, nor one at the step that a restart goes back to."""
    from accelerate import Accelerator

    monkeypatch.setattr(_training, "SAVE_SECONDS", -1.0)
    save, count = Accelerator.save_state, iter(range(1000))

    def cut_off(self: Any, place: str, **options: Any) -> str:
        if next(count) == 20:
            Path(place).mkdir()
            (Path(place) / "pytorch_model.bin").write_bytes(b"half")
            raise Interrupted
        return str(save(self, place, **options))

    monkeypatch.setattr(Accelerator, "save_state", cut_off)
    with pytest.raises(Interrupted):
        train(tmp_path / "a")
    written: list[str] = []
    monkeypatch.setattr(Accelerator, "save_state", lambda self, place, **options: (written.append(Path(place).name), save(self, place, **options))[1])
    model, _ = train(tmp_path / "a")
    assert written[0] == "state-20", "what is pointed to, state-19, must not be written again"
    assert same(model, by_hand(SCHEDULE, 50)[-1])
    assert len(list((tmp_path / "a").glob("state-*"))) == 1


@pytest.mark.parametrize("error", [math.nan, math.inf])
def test_divergence_goes_back_and_halves_the_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: float) -> None:
    monkeypatch.setattr(_training, "SAVE_SECONDS", -1.0)
    told: list[str] = []
    model, progress = train(tmp_path / "a", failing(20, error), told=told)
    # Nineteen steps are kept, the twentieth changed the weights and is done again.
    assert "the loss was no number: back at step 19 with half the learning rate" in told
    assert (progress.restarts, progress.rate_factor, progress.step) == (1, 0.5, 50)
    assert same(model, by_hand(SCHEDULE, 50, lambda step: 1.0 if step < 19 else 0.5)[-1])


def test_gradients_that_are_no_numbers_count_too(tmp_path: Path) -> None:
    calls = iter(range(1000))

    def loss_of(model: Any, batch: Batch) -> torch.Tensor:
        loss = squares(model, batch)
        return loss + 0 * torch.sqrt(0 * model.weight.sum()) if next(calls) == 30 else loss  # finite, with infinite slope times 0

    model, progress = train(tmp_path / "a", loss_of)
    assert progress.restarts == 1 and progress.step == 50
    assert same(model, by_hand(SCHEDULE, 50, lambda step: 0.5)[-1])  # nothing but the beginning was kept within so few seconds


def test_a_state_is_good_only_if_its_loss_is_a_number(tmp_path: Path) -> None:
    """Weights that a step made useless must not be what training goes back to, though they were looked at and found best."""
    kept: list[int] = []

    def distance(model: Any) -> float:
        kept.append(len(kept))
        if len(kept) == 4:
            model.weight.data.fill_(math.nan)
        return 1.0 / len(kept)

    told: list[str] = []
    model, progress = train(tmp_path / "a", distance=distance, told=told)
    assert progress.restarts == 1
    assert "the loss was no number: back at step 10 with half the learning rate" in told
    assert all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters())


def test_a_distance_that_is_no_number_is_divergence(tmp_path: Path) -> None:
    found = iter([9.0, math.nan, 3.0, 2.0, 1.0, 4.0, *[5.0] * 20])
    _, progress = train(tmp_path / "a", distance=lambda model: next(found))
    assert progress.restarts == 1 and progress.best == 1.0
    with pytest.raises(StepFailed, match="cannot begin"):
        train(tmp_path / "b", distance=lambda model: math.nan)


def test_divergence_again_and_again_is_an_error(tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.raises(StepFailed, match="diverges") as caught:
        train(tmp_path / "a", failing(20, math.nan, 10**6), told=told)
    assert caught.value.why == "the loss was no number at step 1, at 6.3e-03 too"  # the last of four rates, from 0.05
    assert caught.value.hint == "lower compress.distill.learning_rate"
    assert sum("half the learning rate" in message for message in told) == _training.RESTARTS == 3

    with pytest.raises(StepFailed, match="diverges"):  # nor does it help to begin the step again
        train(tmp_path / "a", failing(0, math.nan, 10**6))


def test_a_loss_that_never_was_a_number_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="cannot begin"):
        train(tmp_path / "a", failing(0, math.nan, 10**6))


def test_the_best_is_kept_and_training_ends_early(tmp_path: Path) -> None:
    distances = [6.0, 5.0, 3.0, 4.0, 3.5, 3.0, 1.0]
    seen: list[dict[str, torch.Tensor]] = []

    def distance(model: Any) -> float:
        assert not model.training
        seen.append(copy.deepcopy(model.state_dict()))
        return distances[len(seen) - 1]

    model, progress = train(tmp_path / "a", distance=distance)
    assert progress.history == [(0, 6.0), (5, 5.0), (10, 3.0), (15, 4.0), (20, 3.5), (25, 3.0)]  # equal is no progress
    assert progress.best == 3.0 and progress.step == 25
    weights = by_hand(SCHEDULE, 25)
    assert same(model, weights[10]) and not same(model, weights[25])
    assert all(torch.equal(tensor, weights[10][name]) for name, tensor in seen[2].items())


def test_a_model_that_training_makes_worse_stays_as_it_was(tmp_path: Path) -> None:
    """Though training is let go on as long as it makes progress after its first steps."""
    distances = iter([1.0, 5.0, 4.0, 3.0, 3.5, 2.5, *[2.0] * 10])
    model, progress = train(tmp_path / "a", distance=lambda model: next(distances))
    assert progress.best == 1.0
    assert progress.step == 45  # best at 30, and then three times the same
    assert same(model, by_hand(SCHEDULE, 1)[0])


def test_the_last_step_is_looked_at(tmp_path: Path) -> None:
    _, progress = train(tmp_path / "a", distance=lambda model: float(random.random()), schedule=Schedule(0.7, 4, 0.01, 100, 0))
    assert [step for step, _ in progress.history or ()] == [0, 1, 2, 3, 4, 5, 6, 7]
    _, progress = train(tmp_path / "b", distance=lambda model: 1.0, schedule=Schedule(2.3, 4, 0.01, 100, 0))
    assert [step for step, _ in progress.history or ()] == [*range(0, 23, 2), 23]


@settings(max_examples=50, deadline=None)
@given(count=st.integers(1, 300), size=st.integers(1, 40), seed=st.integers(0, 5))
def test_batches(count: int, size: int, seed: int) -> None:
    lengths = [random.Random(i).randint(1, 50) for i in range(count)]
    found = batches(lengths, size, seed)
    assert found == batches(lengths, size, seed)
    flat = [i for batch in found for i in batch]
    assert len(set(flat)) == len(flat) and set(flat) <= set(range(count))
    assert len(found) == max(1, count // size)
    assert all(len(batch) == min(size, count) for batch in found)


def test_batches_are_of_about_equal_length() -> None:
    lengths = [random.Random(i).randint(1, 100) for i in range(4000)]
    orders = [batches(lengths, 16, seed) for seed in (0, 1)]
    assert orders[0] != orders[1]
    for order in orders:
        padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in order)
        assert padded < 1.15 * sum(lengths)
        firsts = [min(lengths[i] for i in batch) for batch in order]
        assert sorted(firsts) != firsts, "not always from short to long"


def test_rate() -> None:
    found = [rate(done / 1000) for done in range(1000)]
    assert 0 < found[0] < 0.05 and max(found) == 1.0 and min(found[100:]) >= _training.LAST_RATE
    peak = found.index(1.0)
    assert 40 <= peak <= 60 and found[:peak] == sorted(found[:peak]) and found[peak:] == sorted(found[peak:], reverse=True)
