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
from compressed import answers_of, assert_exports_equally, evidence, model_of, rows_for, weights_of
from edgeexport.converters.prune_channels import choose
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Original
from tiny import TEXTS, Case
from zoo import Zoo

from edgeexport.architectures import ENCODERS
from edgeexport.artifact import Kind, Spec, Task
from edgeexport.catalog import find_step
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


def test_where_layers_must_be_alike_each_keeps_the_same_number() -> None:
    importance = [np.arange(40.0), np.zeros(40)]
    found = choose(importance, rising(importance), 0.6, 8, alike=True)
    assert [kept.tolist() for kept in found] == [list(range(16, 40))] * 2
