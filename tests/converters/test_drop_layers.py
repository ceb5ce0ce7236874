"""Fewer layers: the order in which they go, against brute force, and the model that is left, against Transformers."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from compressed import answers_of, data_for, model_of, weights_of
from edgeexport.converters import measure_layers
from edgeexport.converters._task_model import load_model
from reference import Original, pooled, softmax
from tiny import ARCHITECTURES, TEXTS, Case
from zoo import Zoo

from edgeexport.artifact import Kind, Spec, Task
from edgeexport.catalog import find_step
from edgeexport.step import Refusal, View

CLASSIFIER = Case("bert", Task.TEXT_CLASSIFICATION, layers=4)
EMBEDDER = Case("distilbert", Task.SENTENCE_SIMILARITY, "mean", layers=4)
ASKED = TEXTS[40:400:30]
PATHS = {"distilbert": "transformer.layer"}


def only(model: Any, case: Case, numbers: list[int]) -> Any:
    """Transformers' model with these layers alone."""
    path = PATHS.get(case.architecture, "encoder.layer")
    holder, _, name = path.rpartition(".")
    layers = model.base_model.get_submodule(path)
    setattr(model.base_model.get_submodule(holder), name, torch.nn.ModuleList([layers[number] for number in numbers]))
    return model


def distance(case: Case, found: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    """Of classes the divergence of distributions at temperature 2, times 4; of vectors 1 - cosine: a mean over texts, in double precision."""
    if case.task is Task.TEXT_CLASSIFICATION:
        pairs = [(softmax(a / 2), softmax(b / 2)) for a, b in zip(found, wanted, strict=True)]
        return float(np.mean([4 * (q * np.log(q / p)).sum() for p, q in pairs]))
    return float(np.mean([1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(found, wanted, strict=True)]))


def answers(zoo: Zoo, case: Case, numbers: list[int]) -> list[np.ndarray]:
    original = Original(zoo.directory(case), case.task)
    only(original.model, case, numbers)
    outputs = [original.outputs(text) for text in ASKED]
    return [found["logits"][0] if "logits" in found else pooled(found["last_hidden_state"][0], "mean") for found in outputs]


@pytest.mark.parametrize("case", [EMBEDDER, *(Case(name, Task.TEXT_CLASSIFICATION, layers=4) for name in sorted(set(ARCHITECTURES) - {"albert"}))],
                         ids=str)
def test_each_time_the_layer_goes_that_is_missed_least(zoo: Zoo, monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    """Also where texts come in batches of unequal size; layers that do not run again said what they would."""
    monkeypatch.setattr(measure_layers, "BATCH", 5)
    found = zoo.run(find_step("measure_layers")(), {"checkpoint": zoo.loaded(case), "training": data_for(zoo, case, ASKED)})
    measured = json.loads((found.path / "layers.json").read_text())

    kept, order, distances = [0, 1, 2, 3], [], []
    wanted = answers(zoo, case, kept)
    while len(kept) > 1:
        tried = {layer: distance(case, answers(zoo, case, [other for other in kept if other != layer]), wanted) for layer in kept}
        gone = min(tried, key=lambda layer: tried[layer])
        kept.remove(gone)
        order.append(gone)
        distances.append(tried[gone])
    assert measured["order"] == order
    assert measured["distance"] == pytest.approx(distances, rel=1e-4)


def test_layers_that_are_one_are_counted_only(zoo: Zoo) -> None:
    """ALBERT applies the same layer again and again: each removal is tried once, and the last application goes."""
    case = Case("albert", Task.TEXT_CLASSIFICATION, layers=3)
    view, rows = zoo.loaded(case), data_for(zoo, case, ASKED)
    found = zoo.run(find_step("measure_layers")(), {"checkpoint": view, "training": rows})
    measured = json.loads((found.path / "layers.json").read_text())
    assert measured["order"] == [2, 1]

    original = Original(zoo.directory(case), case.task)
    wanted = [original.outputs(text)["logits"][0] for text in ASKED]
    for count, moved in ((2, measured["distance"][0]), (1, measured["distance"][1])):
        original.model.config.num_hidden_layers = count
        assert moved == pytest.approx(distance(case, [original.outputs(text)["logits"][0] for text in ASKED], wanted), rel=1e-4)

    dropped = zoo.run(find_step("drop_layers")(layers=1), {"checkpoint": view, "order": found})
    assert json.loads((dropped.path / "config.json").read_text())["num_hidden_layers"] == 1
    assert dropped.spec.parameters == model_of(view).num_parameters()  # no weight is less
    model = model_of(dropped)
    for text in ASKED:
        assert answers_of(model, original, text)["logits"] == pytest.approx(original.outputs(text)["logits"], abs=1e-5)


def order_of(zoo: Zoo, *numbers: int) -> View:
    path = zoo.place("order")
    (path / "layers.json").write_text(json.dumps({"order": numbers, "distance": [0.0] * len(numbers)}))
    return View(path, Spec(kind=Kind.EVIDENCE))


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - {"albert"}))
def test_the_model_is_the_whole_one_without_its_layers(zoo: Zoo, architecture: str) -> None:
    """The layers that stay keep their order, whatever the order in which the others go; any Transformers loads the result."""
    case = Case(architecture, Task.TOKEN_CLASSIFICATION, layers=4)
    dropped = zoo.run(find_step("drop_layers")(layers=2), {"checkpoint": zoo.loaded(case), "order": order_of(zoo, 2, 0, 3)})
    whole, plain = Original(zoo.directory(case), case.task), Original(dropped.path, case.task)
    only(whole.model, case, [1, 3])
    for text in ASKED[:4]:
        wanted = whole.outputs(text)["logits"]
        assert plain.outputs(text)["logits"] == pytest.approx(wanted, abs=1e-4 * float(wanted.std()))
        assert answers_of(load_model(dropped.path, case.task), whole, text)["logits"] == pytest.approx(wanted, abs=1e-4 * float(wanted.std()))
    config = json.loads((dropped.path / "config.json").read_text())
    assert config.get("num_hidden_layers", config.get("n_layers")) == 2 == dropped.spec.facts["layers"]
    assert "pruned_shapes" not in config
    assert dropped.spec.parameters == sum(parameter.numel() for parameter in whole.model.parameters())
    assert len(weights_of(dropped)) < len(weights_of(zoo.loaded(case)))


def test_what_cannot_be_dropped_is_refused(zoo: Zoo) -> None:
    drop, spec = find_step("drop_layers"), zoo.loaded(CLASSIFIER).spec
    assert spec.facts["layers"] == 4
    for layers in (4, 9):
        refused = drop(layers=layers).infer({"checkpoint": spec})
        assert isinstance(refused, Refusal) and "4 layers" in refused.reason
    inferred = drop(layers=3).infer({"checkpoint": spec})
    assert isinstance(inferred, Spec) and inferred.facts["layers"] == 3
    unknown = Spec(kind=Kind.CHECKPOINT, task=Task.FILL_MASK, architecture="deberta")
    for step in (drop(layers=1), find_step("measure_layers")()):
        refused = step.infer({"checkpoint": unknown})
        assert isinstance(refused, Refusal) and "deberta" in refused.reason
