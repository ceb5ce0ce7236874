"""Heads and neurons: how much each counts, which ones stay, and that a pruned model is the whole one whose other channels are zero."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import numpy as np
import pytest
import torch
from architectures import TOLERANCE, spread, texts_for
from compressed import answers_of, assert_exports_equally, data_for, evidence, model_of, rows_for, weights_of
from edgeexport.converters._examples import collate, read_examples
from edgeexport.converters._task_model import load_model
from edgeexport.converters.measure_channels import DAMPING_OF_GRADIENTS, DAMPING_OF_INPUTS, ROUNDS, elimination
from edgeexport.converters.prune_channels import choose
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Original
from tiny import CLASSES, TEXTS, Case
from zoo import Zoo

from edgeexport.artifact import Kind, Spec, Task
from edgeexport.catalog import find_step
from edgeexport.checkpoint import ENCODERS
from edgeexport.session.text import read_text_spec
from edgeexport.step import Refusal, View

CASES = [
    Case("bert", Task.TEXT_CLASSIFICATION),
    Case("distilbert", Task.TOKEN_CLASSIFICATION),
    Case("roberta", Task.FEATURE_EXTRACTION),
    Case("xlm-roberta", Task.TOKEN_CLASSIFICATION),
    Case("camembert", Task.FILL_MASK),
    Case("albert", Task.TEXT_CLASSIFICATION),
    Case("mobilebert", Task.FILL_MASK),
    Case("electra", Task.QUESTION_ANSWERING),
    Case("mpnet", Task.SENTENCE_SIMILARITY),
]
# The exporters take long and see a model as Transformers has it; kinds of structure are enough of a sample. `EDGEEXPORT_TEST_ALL=1` takes all.
ALL = bool(os.environ.get("EDGEEXPORT_TEST_ALL"))
IN_ONNX = [case for case in CASES if ALL or case.architecture in {"distilbert", "albert"}]
IN_TFLITE = [case for case in CASES if ALL or case.architecture in {"albert", "mobilebert"}]
HEAD = 16  # channels of a head of a tiny model
CLASSIFIER, TAGGER = CASES[0], Case("bert", Task.TOKEN_CLASSIFICATION)


def readers(model: torch.nn.Module) -> dict[str, list[torch.nn.Linear]]:
    """The linear modules that read heads and neurons, by the names that Transformers gives them, in the order of the model."""
    heads, neurons = r".*\.attention\.(output\.dense|out_lin|dense|attn\.o)", r".*\.(ffn\.lin2|ffn_output|output\.dense)"
    found: dict[str, list[torch.nn.Linear]] = {"heads": [], "neurons": []}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and "pooler" not in name and "bottleneck" not in name:
            if re.fullmatch(heads, name):
                found["heads"].append(module)
            elif re.fullmatch(neurons, name):
                found["neurons"].append(module)
    return found


def random_importance(model: torch.nn.Module, case: Case) -> dict[str, list[np.ndarray]]:
    """For each place random numbers, larger in later places, so that places keep different numbers."""
    random = np.random.default_rng(3)
    found = {"neurons": [random.random(each.in_features) + number / 3 for number, each in enumerate(readers(model)["neurons"])]}
    if case.architecture != "mpnet":
        found["heads"] = [random.random(each.in_features // HEAD) + number / 3 for number, each in enumerate(readers(model)["heads"])]
    return found


def kept_by_hand(importance: list[np.ndarray], share: float, step: int) -> list[list[int]]:
    """Which of each place's channels stay: those above the threshold that leaves `share` of all, in multiples of `step`."""
    everything = sorted((float(value) for values in importance for value in values), reverse=True)
    threshold = everything[round(share * len(everything)) - 1]
    found = []
    for values in importance:
        count = max(round(sum(float(value) >= threshold for value in values) / step), 1) * step
        ranked = sorted(range(len(values)), key=lambda i, values=values: -float(values[i]))  # type: ignore[misc]
        found.append(sorted(ranked[:count]))
    return found


def masked(original: Original, kept: dict[str, list[list[int]]]) -> list[Any]:
    """Hooks that hand only the kept channels on; to be removed."""
    hooks = []
    for name, width in (("heads", HEAD), ("neurons", 1)):
        for module, groups in zip(readers(original.model)[name] if name in kept else [], kept.get(name, []), strict=True):
            mask = torch.zeros(module.in_features)
            for group in groups:
                mask[group * width:(group + 1) * width] = 1.0
            hooks.append(module.register_forward_pre_hook(lambda module, inputs, mask=mask: (inputs[0] * mask,)))  # type: ignore[misc]
    return hooks


class Pruned:
    """A case with half of its neurons and heads, and the whole model whose other channels are zero."""

    def __init__(self, zoo: Zoo, case: Case) -> None:
        self.case, self.zoo = case, zoo
        self.original = Original(zoo.directory(case), case.task)
        importance = random_importance(self.original.model, case)
        arrays = {f"{name}-{number}": values for name, places in importance.items() for number, values in enumerate(places)}
        shares = {"neurons": 0.6} | ({"heads": 0.5} if "heads" in importance else {})
        self.view = zoo.run(find_step("prune_channels")(**shares),
                            {"checkpoint": zoo.loaded(case), "importance": evidence(zoo, "channels.npz", **arrays)})
        self.kept = {name: kept_by_hand(places, shares[name], 16 if name == "neurons" else 1) for name, places in importance.items()}

    def texts(self) -> list[tuple[str, ...]]:
        if self.case.task is Task.FILL_MASK:
            return [(row.text,) for row in rows_for(self.case, TEXTS[::60])]
        return texts_for(self.original)

    def expected(self) -> list[dict[str, np.ndarray]]:
        """What the whole model answers with the hooks."""
        hooks = masked(self.original, self.kept)
        found = [self.original.outputs(*text) for text in self.texts()]
        for hook in hooks:
            hook.remove()
        return found


@pytest.fixture(scope="module")
def pruned(zoo: Zoo) -> Any:
    """Makes each case once."""
    made: dict[Case, Pruned] = {}

    def make(case: Case) -> Pruned:
        if case not in made:
            made[case] = Pruned(zoo, case)
        return made[case]

    return make


def test_every_architecture_is_tested() -> None:
    assert {case.architecture for case in CASES} == set(ENCODERS)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_pruned_model_is_the_whole_one_with_zeros(pruned: Any, case: Case) -> None:
    one = pruned(case)
    model = model_of(one.view)
    expected = one.expected()
    unit, moved = spread(expected), 0.0
    for text, wanted in zip(one.texts(), expected, strict=True):
        found = answers_of(model, one.original, *text)
        assert found.keys() == wanted.keys()
        whole = one.original.outputs(*text)
        for name, value in wanted.items():
            assert found[name].shape == value.shape
            assert np.abs(found[name] - value).max() <= TOLERANCE * unit
            moved = max(moved, float(np.abs(whole[name] - value).max()))
    assert moved > 0.1 * unit, "what was taken out must have mattered"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tensors_are_narrower(pruned: Any, zoo: Zoo, case: Case) -> None:
    """The file holds the kept rows and columns of the original's tensors, and no others."""
    one = pruned(case)
    model = model_of(one.view)
    for name, width in (("heads", HEAD), ("neurons", 1)):
        whole, narrow = readers(one.original.model)[name], readers(model)[name]
        assert len(whole) == len(narrow) > 0
        for before, after, groups in zip(whole, narrow, one.kept.get(name, [None] * len(whole)), strict=True):
            if groups is None:
                assert after.in_features == before.in_features
                continue
            columns = [group * width + i for group in groups for i in range(width)]
            assert torch.equal(after.weight, before.weight[:, columns])
            assert after.in_features == after.weight.shape[1] == len(columns)
            assert torch.equal(after.bias, before.bias)
    counts = {name: [len(groups) for groups in places] for name, places in one.kept.items()}
    assert counts == {name: one.view.spec.facts[name] for name in counts}
    if len(counts["neurons"]) > 1:
        assert all(len(set(numbers)) > 1 for numbers in counts.values()), "places must differ"
    assert all(number % 16 == 0 and number >= 16 for number in counts["neurons"])
    assert min(counts.get("heads", [1])) >= 1

    tensors = weights_of(one.view)
    assert set(tensors) == set(weights_of(zoo.loaded(case)))
    distinct = {parameter.data_ptr(): parameter.numel() for parameter in model.parameters()}
    assert one.view.spec.parameters == sum(distinct.values()) < sum(parameter.numel() for parameter in one.original.model.parameters())
    assert one.view.spec.bytes == sum(path.stat().st_size for path in one.view.path.rglob("*") if path.is_file())
    assert (one.view.path / "model.safetensors").stat().st_size < (zoo.loaded(case).path / "model.safetensors").stat().st_size


@pytest.mark.parametrize("case", IN_ONNX, ids=str)
def test_onnx_of_a_pruned_model(pruned: Any, zoo: Zoo, case: Case) -> None:
    one = pruned(case)
    assert_exports_equally(zoo, one.view, one.texts(), one.expected(), "onnx")


@pytest.mark.parametrize("case", IN_TFLITE, ids=str)
def test_tflite_of_a_pruned_model(pruned: Any, zoo: Zoo, case: Case) -> None:
    one = pruned(case)
    assert_exports_equally(zoo, one.view, one.texts(), one.expected(), "tflite")


def test_everything_else_of_a_checkpoint_stays(pruned: Any, zoo: Zoo) -> None:
    one = pruned(CLASSIFIER)
    before, after = zoo.loaded(CLASSIFIER), one.view
    for name in ("tokenizer.json", "tokenizer_config.json", "text.json"):
        assert (after.path / name).read_bytes() == (before.path / name).read_bytes()
    old, new = (json.loads((view.path / "config.json").read_text()) for view in (before, after))
    shapes = new.pop("pruned_shapes")
    assert shapes["bert.encoder.layer.0.intermediate.dense.weight"] == [len(one.kept["neurons"][0]), 32]
    assert new["architectures"] == ["BertForSequenceClassification"]
    assert {key: new[key] for key in ("num_attention_heads", "intermediate_size", "hidden_size", "id2label")} == {
        key: old[key] for key in ("num_attention_heads", "intermediate_size", "hidden_size", "id2label")}


@pytest.mark.parametrize("case", [CLASSIFIER, Case("camembert", Task.FILL_MASK)], ids=str)
def test_a_pruned_model_can_be_pruned_again(pruned: Any, zoo: Zoo, case: Case) -> None:
    """Equal to the whole model with what either step took out; the shapes that are written are those of the second."""
    one = pruned(case)
    importance = zoo.run(find_step("measure_channels")(method="magnitude"), {"checkpoint": one.view})
    with np.load(importance.path / "channels.npz") as arrays:
        places = [arrays[f"neurons-{number}"] for number in range(2)]
    assert [len(values) for values in places] == [len(groups) for groups in one.kept["neurons"]]
    again = zoo.run(find_step("prune_channels")(neurons=0.5), {"checkpoint": one.view, "importance": importance})
    inside = kept_by_hand(places, 0.5, 16)
    both = Pruned.__new__(Pruned)
    both.__dict__ = one.__dict__ | {"view": again, "kept": one.kept | {
        "neurons": [[first[i] for i in second] for first, second in zip(one.kept["neurons"], inside, strict=True)]}}
    model, expected = model_of(again), both.expected()
    for text, wanted in zip(both.texts(), expected, strict=True):
        assert answers_of(model, both.original, *text)["logits"] == pytest.approx(wanted["logits"], abs=TOLERANCE * spread(expected))
    assert (again.spec.parameters or 0) < (one.view.spec.parameters or 0)


def test_layers_can_go_from_a_pruned_model(pruned: Any, zoo: Zoo) -> None:
    one = pruned(CLASSIFIER)
    order = zoo.place("order")
    (order / "layers.json").write_text(json.dumps({"order": [0], "distance": [0.0]}))
    dropped = zoo.run(find_step("drop_layers")(layers=1), {"checkpoint": one.view, "order": View(order, Spec(kind=Kind.EVIDENCE))})
    model, whole = model_of(dropped), model_of(one.view)
    whole.bert.encoder.layer = torch.nn.ModuleList([whole.bert.encoder.layer[1]])
    for text in one.texts():
        assert answers_of(model, one.original, *text)["logits"] == pytest.approx(answers_of(whole, one.original, *text)["logits"], abs=1e-5)


# -- which channels stay

def rising(importance: list[np.ndarray]) -> list[np.ndarray]:
    """The order in which channels go where the least important go first."""
    return [np.argsort(values, kind="stable") for values in importance]


@settings(max_examples=60, deadline=None)
@given(places=st.lists(st.integers(1, 6), min_size=1, max_size=5), share=st.floats(0.01, 1.0), step=st.sampled_from([1, 4, 16]),
       seed=st.integers(0, 1000))
def test_the_most_important_stay(places: list[int], share: float, step: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    importance = [random.random(count * step) for count in places]
    found = choose(importance, rising(importance), share, step)
    if round(share * sum(places) * step) > 0:
        assert [kept.tolist() for kept in found] == kept_by_hand(importance, share, step)
    for values, kept in zip(importance, found, strict=True):
        assert len(kept) % step == 0 and len(kept) >= step
        assert sorted(set(kept.tolist())) == kept.tolist()
        rest = np.delete(values, kept)
        assert not rest.size or values[kept].min() >= rest.max()
    if step == 1:
        total = sum(places)
        assert round(share * total) <= sum(map(len, found)) <= round(share * total) + len(places)


def test_a_place_that_is_no_multiple_can_stay_whole() -> None:
    found = choose(halves := [np.arange(1.0, 41.0), np.zeros(40)], rising(halves), 0.5, 16)
    assert [len(kept) for kept in found] == [32, 16]
    assert [len(kept) for kept in choose([np.ones(40)], [np.arange(40)], 1.0, 16)] == [32]
    assert [len(kept) for kept in choose([np.ones(10)], [np.arange(10)], 0.1, 16)] == [10]


# -- how much a channel counts

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


def test_what_stays_is_what_would_go_last() -> None:
    importance = [np.array([5.0, 1.0, 4.0]), np.array([0.1, 3.0, 0.2])]
    kept = choose(importance, [np.array([0, 2, 1]), np.array([1, 0, 2])], 0.5, 1)
    assert [each.tolist() for each in kept] == [[1, 2], [2]]  # two of the first place are among the first three, one of the second


# -- refusals

def test_what_cannot_be_pruned_is_refused(zoo: Zoo) -> None:
    mpnet, unknown = zoo.loaded(CASES[-1]).spec, Spec(kind=Kind.CHECKPOINT, task=Task.FILL_MASK, architecture="deberta")
    prune, measure = find_step("prune_channels"), find_step("measure_channels")
    refused = prune(heads=0.5, neurons=0.5).infer({"checkpoint": mpnet})
    assert isinstance(refused, Refusal) and "share a table of positions" in refused.reason and "neurons" in (refused.hint or "")
    assert not isinstance(prune(neurons=0.5).infer({"checkpoint": mpnet}), Refusal)
    for step in (prune(neurons=0.5), measure(method="magnitude")):
        refused = step.infer({"checkpoint": unknown})
        assert isinstance(refused, Refusal) and "deberta" in refused.reason and "albert" in (refused.hint or "")
    refused = measure().infer({"checkpoint": mpnet})
    assert isinstance(refused, Refusal) and "magnitude" in (refused.hint or "")
    assert not isinstance(measure().infer({"checkpoint": mpnet, "training": Spec(kind=Kind.DATASET)}), Refusal)
