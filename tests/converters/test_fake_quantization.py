"""Training that knows of quantization: the rounding against NumPy, gradients that pass, and a student that learns to live with it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from compressed import SHORT, data_for, model_of
from edgeexport.converters._fake_quantization import rounded, rounded_activations, rounded_weights
from edgeexport.converters.distill import Lessons
from hypothesis import given, settings
from hypothesis import strategies as st
from test_distill import taught, with_development
from tiny import TEXTS, Case
from zoo import Zoo

from edgeexport.artifact import Task
from edgeexport.catalog import find_step
from edgeexport.step import View

EMBEDDER = Case("bert", Task.SENTENCE_SIMILARITY, "mean", normalize=True)


def drawn(seed: int, *shape: int) -> np.ndarray:
    """With a few values far from the others."""
    random = np.random.default_rng(seed)
    values = random.standard_normal(shape) * np.where(random.random(shape) < 0.05, 20, 1) + random.standard_normal()
    return values.astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(1, 8), columns=st.integers(1, 600))
def test_weights_are_signed_with_a_scale_per_row(seed: int, rows: int, columns: int) -> None:
    weights = drawn(seed, rows, columns)
    scale = np.abs(weights).max(axis=1, keepdims=True) / 127
    wanted = np.rint(weights / scale) * scale
    found = rounded_weights(torch.from_numpy(weights)).numpy()
    assert (np.abs(found - weights) <= 0.501 * scale).all()
    assert (np.abs(found - wanted) <= 1e-3 * scale).mean() > 0.99  # a half may be rounded to either side
    assert all(len(np.unique(row)) <= 255 for row in found)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 300))
def test_activations_have_256_levels_and_zero_is_one(seed: int, count: int) -> None:
    values = drawn(seed, count)
    found = rounded_activations(torch.from_numpy(values)).numpy()
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    step = (high - low) / 255
    assert np.abs(found - values).max() <= 1.001 * step
    assert len(np.unique(found)) <= 256
    assert np.allclose(np.rint(found / step), found / step, atol=1e-2)


@pytest.mark.parametrize("values", [torch.zeros(3, 4), torch.full((3, 4), 1e-30)])
def test_nothing_to_tell_apart_is_no_division_by_zero(values: torch.Tensor) -> None:
    for found in (rounded_activations(values), rounded_weights(values)):
        assert torch.isfinite(found).all() and found.abs().max() < 1e-20


def test_gradients_pass_and_the_layer_is_itself_again() -> None:
    torch.manual_seed(0)
    linear, values = torch.nn.Linear(8, 5), torch.randn(16, 8, requires_grad=True)
    plain = linear(values)
    with rounded(torch.nn.Sequential(linear)):
        found = linear(values)
        found.square().sum().backward()
    exact = torch.nn.functional.linear(rounded_activations(values), rounded_weights(linear.weight), linear.bias)
    wanted = rounded_activations(exact)
    assert torch.equal(found, wanted) and not torch.equal(exact, wanted)  # a file rounds what a layer gives, too
    assert not torch.equal(found, plain)
    assert torch.equal(linear(values), plain)
    for name, tensor, straight in (("weight", linear.weight, (2 * found).T @ rounded_activations(values)),
                                   ("input", values, 2 * found @ rounded_weights(linear.weight))):
        assert tensor.grad is not None
        assert torch.allclose(tensor.grad, straight, atol=1e-4), name


def with_outliers(zoo: Zoo) -> View:
    """The model with a few values of each attention 60 times as large, and what they are multiplied with as much smaller.

    In float it answers the same; with one scale for all values the others are rounded away.
    """
    from safetensors.torch import load_file, save_file

    whole = zoo.loaded(EMBEDDER)
    path = Path(shutil.copytree(whole.path, zoo.place("outliers") / "m"))
    tensors = load_file(path / "model.safetensors")
    for name in list(tensors):
        if name.endswith("attention.self.value.weight"):
            attention = name.removesuffix(".self.value.weight")
            for channel in (1, 9):
                tensors[name][channel] *= 60
                tensors[f"{attention}.self.value.bias"][channel] *= 60
                tensors[f"{attention}.output.dense.weight"][:, channel] /= 60
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return View(path, whole.spec)


def test_a_student_learns_to_live_with_rounding(zoo: Zoo) -> None:
    """Its answers come nearer to the teacher's while it rounds, on texts that it was not trained on."""
    student = with_outliers(zoo)
    inputs = with_development(zoo, EMBEDDER, taught(zoo, zoo.loaded(EMBEDDER), student, data_for(zoo, EMBEDDER, SHORT[::2])), TEXTS[1:200:9])
    step = find_step("distill")(quantization_aware=True, epochs=6, batch=8, learning_rate=3e-3, patience=99, hidden=1.0)
    lessons = Lessons(step, student, inputs)
    assert lessons.distance(model_of(student)) < 1e-6
    trained = zoo.run(step, inputs)
    distances = []
    for view in (student, trained):
        model = model_of(view)
        with rounded(model):
            distances.append(lessons.distance(model))
    assert distances[1] < distances[0] / 2
    history = trained.spec.facts["training"]["history"]
    assert history[0][1] == pytest.approx(distances[0], rel=1e-3)
    assert min(distance for _, distance in history) == pytest.approx(distances[1], rel=1e-3)
