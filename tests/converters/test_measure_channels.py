"""How much heads and neurons count, and in which order they go: against differences, all answers, and least squares from scratch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compressed import data_for, weights_of
from edgeexport.converters._examples import collate, read_examples
from edgeexport.converters._task_model import load_model
from edgeexport.converters.measure_channels import DAMPING_OF_GRADIENTS, DAMPING_OF_INPUTS, ROUNDS, elimination
from test_prune_channels import CLASSIFIER, HEAD, TAGGER, readers
from tiny import CLASSES, TEXTS, Case
from zoo import Zoo

from edgeexport.artifact import Task
from edgeexport.catalog import find_step
from edgeexport.session.text import read_text_spec
from edgeexport.step import View


def log_probabilities(logits: torch.Tensor) -> torch.Tensor:
    return logits - torch.logsumexp(logits, dim=-1, keepdim=True)


def importance_by_differences(zoo: Zoo, case: Case, rows: View, name: str, place: int, channel: int) -> float:
    """The mean square, over labelled texts, of the change of the loss when a channel is scaled: a central difference, in double precision."""
    view = zoo.loaded(case)
    model = load_model(view.path, case.task, attention="eager").double()
    width = HEAD if name == "heads" else 1
    module = readers(model)[name][place]
    factor = torch.ones(module.in_features, dtype=torch.float64)
    hook = module.register_forward_pre_hook(lambda module, inputs: (inputs[0] * factor,))
    spec = read_text_spec(view.path / "text.json")
    squares = []
    for example in read_examples(view, rows.path):
        features, losses = collate([example], spec), []
        for change in (1e-4, -1e-4):
            factor[:] = 1.0
            factor[channel * width:(channel + 1) * width] += change
            with torch.no_grad():
                logits = model(**features).logits[0]
            if case.task is Task.TEXT_CLASSIFICATION:
                losses.append(-float(log_probabilities(logits)[example.truth[0]]))  # type: ignore[index]
            else:
                words = [i for i, word in enumerate(example.encoded.words) if word is not None and word not in example.encoded.words[:i]]
                picked = log_probabilities(logits)[words, list(example.truth)]  # type: ignore[arg-type]
                losses.append(-float(picked.mean()))
        squares.append(((losses[0] - losses[1]) / 2e-4) ** 2)
    hook.remove()
    return float(np.mean(squares))


@pytest.mark.parametrize("case", [CLASSIFIER, TAGGER], ids=str)
def test_gradient_importance_is_what_a_small_change_does(zoo: Zoo, case: Case) -> None:
    rows = data_for(zoo, case, TEXTS[40:400:60], labelled=True)
    found = zoo.run(find_step("measure_channels")(examples=100), {"checkpoint": zoo.loaded(case), "training": rows})
    with np.load(found.path / "channels.npz") as arrays:
        shapes = {"heads-0": (2,), "heads-1": (2,), "neurons-0": (64,), "neurons-1": (64,)}
        assert {name: arrays[name].shape for name in arrays} == shapes | {f"{name}-order": shape for name, shape in shapes.items()}
        for name, place, channel in (("heads", 0, 1), ("heads", 1, 0), ("neurons", 0, 5), ("neurons", 1, int(arrays["neurons-1"].argmax()))):
            wanted = importance_by_differences(zoo, case, rows, name, place, channel)
            assert wanted > 0
            assert arrays[f"{name}-{place}"][channel] == pytest.approx(wanted, rel=1e-3)


def test_without_labels_it_is_the_fisher_information(zoo: Zoo) -> None:
    """The mean over answers drawn from the model's own distribution, here over all of them, each as often as it is likely."""
    view, rows = zoo.loaded(CLASSIFIER), data_for(zoo, CLASSIFIER, [TEXTS[50]] * 400)
    found = zoo.run(find_step("measure_channels")(examples=1000), {"checkpoint": view, "training": rows})
    model = load_model(view.path, CLASSIFIER.task, attention="eager")
    module = readers(model)["heads"][1]
    factor = torch.ones(2, requires_grad=True)
    module.register_forward_pre_hook(lambda module, inputs: (inputs[0] * factor.repeat_interleave(HEAD),))
    (example,) = read_examples(view, data_for(zoo, CLASSIFIER, [TEXTS[50]]).path)
    scores = log_probabilities(model(**collate([example], read_text_spec(view.path / "text.json"))).logits[0])
    wanted = torch.zeros(2)
    for number in range(len(CLASSES)):
        (gradient,) = torch.autograd.grad(scores[number], factor, retain_graph=True)
        wanted += scores[number].exp().detach() * gradient**2
    with np.load(found.path / "channels.npz") as arrays:
        assert arrays["heads-1"] == pytest.approx(wanted.numpy(), rel=0.25)  # 400 draws


@pytest.mark.parametrize("case", [Case("bert", Task.SENTENCE_SIMILARITY, "mean", layers=1), Case("bert", Task.FEATURE_EXTRACTION, layers=1),
                                  Case("electra", Task.QUESTION_ANSWERING), Case("roberta", Task.FILL_MASK, layers=1),
                                  Case("albert", Task.TEXT_CLASSIFICATION), Case("mobilebert", Task.FILL_MASK, layers=1),
                                  Case("mpnet", Task.SENTENCE_SIMILARITY)], ids=str)
def test_every_task_has_gradients(zoo: Zoo, case: Case) -> None:
    """Seeded, and zero for a channel that nobody reads."""
    rows = data_for(zoo, case, TEXTS[40:400:60])
    step = find_step("measure_channels")(examples=8)
    inputs = {"checkpoint": zoo.loaded(case), "training": rows}
    with np.load(zoo.run(step, inputs).path / "channels.npz") as first, np.load(zoo.run(step, inputs).path / "channels.npz") as second:
        assert sorted(first) == sorted(second)
        assert ("heads-0" in first) == (case.architecture != "mpnet")
        for name in first:
            assert np.isfinite(first[name]).all() and first[name].max() > 0
            if name.endswith("-order"):
                assert sorted(first[name]) == list(range(len(first[name])))
            assert np.array_equal(first[name], second[name])


def test_magnitude_needs_no_data(zoo: Zoo) -> None:
    view = zoo.loaded(CLASSIFIER)
    found = zoo.run(find_step("measure_channels")(method="magnitude"), {"checkpoint": view})
    tensors = {name: tensor.numpy() for name, tensor in weights_of(view).items()}
    with np.load(found.path / "channels.npz") as arrays:
        for layer in (0, 1):
            start = f"bert.encoder.layer.{layer}"
            made, read = tensors[f"{start}.intermediate.dense.weight"], tensors[f"{start}.output.dense.weight"]
            assert arrays[f"neurons-{layer}"] == pytest.approx(np.sqrt((made**2).sum(axis=1) + (read**2).sum(axis=0)), rel=1e-5)
            for head in range(2):
                own = slice(head * HEAD, (head + 1) * HEAD)
                parts = [tensors[f"{start}.attention.self.{name}.weight"][own] for name in ("query", "key", "value")]
                parts.append(tensors[f"{start}.attention.output.dense.weight"][:, own])
                assert arrays[f"heads-{layer}"][head] == pytest.approx(np.sqrt(sum((part**2).sum() for part in parts)), rel=1e-5)


# -- which channels go first

def loss_without(weights: np.ndarray, inputs: np.ndarray, gradients: np.ndarray, gone: list[int], width: int) -> float:
    """What is lost of the outputs, as the gradients measure it, when the channels that stay are fitted to them: by least squares, from scratch."""
    channels = [channel for group in gone for channel in range(group * width, (group + 1) * width)]
    there = np.delete(np.arange(inputs.shape[1]), channels)
    # Rows that hold the weights where they were stand for the damping of either matrix.
    held = np.sqrt(DAMPING_OF_INPUTS * np.mean(np.sum(inputs**2, axis=0)))
    stacked = np.concatenate([inputs, held * np.eye(inputs.shape[1])])
    fitted, *_ = np.linalg.lstsq(stacked[:, there], stacked @ weights, rcond=None)
    missed = stacked @ weights - stacked[:, there] @ fitted
    return float(((missed @ gradients.T) ** 2).sum() + DAMPING_OF_GRADIENTS * np.mean(np.sum(gradients**2, axis=0)) * (missed**2).sum())


@pytest.mark.parametrize(("channels", "width"), [(7, 1), (4, 3)])
def test_channels_go_in_the_order_in_which_the_rest_can_stand_in_for_them(channels: int, width: int) -> None:
    """At each step what goes is what costs least, found by trying all."""
    random = np.random.default_rng(4)
    inputs = random.normal(size=(50, channels * width)) @ random.normal(size=(channels * width, channels * width))  # that are like each other
    weights, gradients = random.normal(size=(channels * width, 5)), random.normal(size=(40, 5))
    found = elimination(weights, inputs.T @ inputs, gradients.T @ gradients, width).tolist()
    for number in range(channels - 1):
        left = set(range(channels)) - set(found[:number])
        losses = {each: loss_without(weights, inputs, gradients, [*found[:number], each], width) for each in left}
        assert min(losses, key=lambda each: losses[each]) == found[number]
    assert sorted(found) == list(range(channels))


@pytest.mark.parametrize("channels", [ROUNDS - 1, 2 * ROUNDS + 8])
def test_of_many_channels_several_go_at_once(channels: int) -> None:
    random = np.random.default_rng(6)
    inputs = random.normal(size=(3 * channels, channels))
    weights, gradients = random.normal(size=(channels, 5)), random.normal(size=(40, 5))
    order = elimination(weights, inputs.T @ inputs, gradients.T @ gradients, 1)
    assert sorted(order.tolist()) == list(range(channels))
    # What goes last is what would cost most to lose, for the most part: with inputs this different, little can stand in for anything.
    metric = gradients.T @ gradients
    metric += DAMPING_OF_GRADIENTS * np.mean(np.diag(metric)) * np.eye(5)
    alone = np.einsum("ij,jk,ik->i", weights, metric, weights)
    half = channels // 2
    assert len(set(order[half:].tolist()) & set(np.argsort(alone)[half:].tolist())) > 0.8 * half


def test_what_says_the_same_can_go() -> None:
    """Two neurons with the same numbers count as much as any by themselves; together they are one."""
    random = np.random.default_rng(5)
    inputs = random.normal(size=(200, 6))
    inputs[:, 4] = 3 * inputs[:, 1]
    order = elimination(np.ones((6, 2)), inputs.T @ inputs, np.eye(2), 1)
    assert order[0] in {1, 4}
    order = elimination(np.ones((6, 2)), np.zeros((6, 6)), np.zeros((2, 2)), 1)  # nothing is read: any order will do
    assert sorted(order.tolist()) == list(range(6))
