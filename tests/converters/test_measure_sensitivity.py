"""Sensitivity: each group of operators is quantized alone, and what suffers most comes first."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edgeexport.converters._task_model import load_model
from edgeexport.converters._tflite_quantization import chosen_operators
from int8 import CLASSIFIER, computed, model_file, policy
from tiny import LENGTHS, TEXTS
from zoo import Zoo, as_rows

from edgeexport.catalog import find_step
from edgeexport.policy import Override, Policy, preset
from edgeexport.step import Context, View

DAMAGED = "bert.encoder.layer.0.output.dense"


def measured(zoo: Zoo, inputs: dict[str, View], rules: Policy, **options: Any) -> list[dict[str, Any]]:
    """What the step writes; it may leave nothing behind."""
    out, scratch = zoo.place("sensitivity"), zoo.place("scratch")
    told: list[str] = []
    step = find_step("measure_sensitivity")(policy=rules, **options)
    if rules.needs_calibration:
        inputs = inputs | {"ranges": zoo.ranges(inputs, rules)}
    step.run(inputs, out, Context(scratch=scratch, report=lambda fraction, message: told.append(message)))
    assert not list(scratch.iterdir())
    assert [path.name for path in out.iterdir()] == ["sensitivity.json"]
    found: list[dict[str, Any]] = json.loads((out / "sensitivity.json").read_text())
    assert {group["match"] for group in found} <= set(told)
    return found


@pytest.fixture(scope="module")
def damaged(zoo: Zoo) -> dict[str, View]:
    """A model that has, at one matrix, an outlier in each row, by which its scale is far too wide for the other weights.

    The outlier multiplies a neuron that is always 0, so that in float the answers are those of a model without it.
    """
    from safetensors.torch import load_file, save_file

    whole = zoo.loaded(CLASSIFIER)
    path = Path(shutil.copytree(whole.path, zoo.place("damaged") / "m"))
    tensors = load_file(path / "model.safetensors")
    weight, before = tensors[f"{DAMAGED}.weight"], "bert.encoder.layer.0.intermediate.dense"
    weight[:, 3] = 60 * weight.abs().max()
    tensors[f"{before}.weight"][3], tensors[f"{before}.bias"][3] = 0.0, -30.0
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    checkpoint = View(path, whole.spec)
    model = zoo.run(find_step("export_tflite")(lengths=LENGTHS), {"checkpoint": checkpoint})
    return {"model": model, "checkpoint": checkpoint, "calibration": zoo.dataset("calibration", as_rows(TEXTS[::16]))}


def test_a_damaged_layer_is_first(zoo: Zoo, damaged: dict[str, View]) -> None:
    found = measured(zoo, damaged, preset("tflite", "weight-only-int8"))
    distances = [group["distance"] for group in found]
    assert found[0]["match"] == DAMAGED
    assert distances == sorted(distances, reverse=True) and distances[0] > 3 * distances[1]
    assert all(group["scheme"] == "weight-only" for group in found)


@pytest.mark.parametrize("precision", ["dynamic-int8", "static-int8"])
def test_onnx_models_are_measured_alike(zoo: Zoo, damaged: dict[str, View], precision: str) -> None:
    model = zoo.run(find_step("export_onnx")(), {"checkpoint": damaged["checkpoint"]})
    found = measured(zoo, damaged | {"model": model}, preset("onnx", precision), examples=8)
    assert found[0]["match"] == DAMAGED and found[0]["distance"] > 2 * found[1]["distance"]
    linears = {name: module.weight.numel() for name, module in load_model(damaged["checkpoint"].path, CLASSIFIER.task).named_modules()
               if isinstance(module, torch.nn.Linear)}
    assert {group["match"]: group["weights"] for group in found if group["weights"]} == linears
    assert all(np.isfinite(group["distance"]) for group in found)


def test_every_group_is_listed_once_with_its_weights(zoo: Zoo, damaged: dict[str, View]) -> None:
    found = measured(zoo, damaged, preset("tflite", "dynamic-int8"), examples=4)
    model = load_model(damaged["checkpoint"].path, CLASSIFIER.task)
    wanted = {name: module.weight.numel() for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    names = [group["match"] for group in found]
    assert len(set(names)) == len(names)
    assert {group["match"]: group["weights"] for group in found if group["weights"]} == wanted
    others = {group["match"] for group in found if not group["weights"]}
    assert "bert.embeddings.word_embeddings" in others
    assert all(name.startswith("op:") or "embeddings" in name for name in others)


def test_the_distance_is_that_of_the_quantized_model(zoo: Zoo, damaged: dict[str, View]) -> None:
    """Quantized alone by the quantizer itself, and asked through a session."""
    inputs = damaged | {"calibration": zoo.dataset("few", as_rows(TEXTS[40:100:6]))}
    found = {group["match"]: group["distance"] for group in measured(zoo, inputs, preset("tflite", "weight-only-int8"))}
    plain = zoo.session(CLASSIFIER, damaged["model"])
    for name in (DAMAGED, "classifier"):
        step = find_step("quantize_tflite")(precision="x", policy=policy("float", **{name: "weight-only"}))
        session = zoo.session(CLASSIFIER, zoo.run(step, {"model": damaged["model"]}))
        distances = []
        for text in TEXTS[40:100:6]:
            wanted, other = (each.outputs(each.encode(text))["logits"][0] for each in (plain, session))
            distances.append(np.linalg.norm(wanted - other) / np.linalg.norm(wanted))
        assert found[name] == pytest.approx(float(np.mean(distances)), rel=1e-3)


@pytest.mark.parametrize("precision", ["dynamic-int8", "static-int8"])
def test_its_names_are_overrides(zoo: Zoo, damaged: dict[str, View], precision: str) -> None:
    """Each takes out of the policy what was measured under it, and nothing else."""
    rules = preset("tflite", precision)
    data = model_file(damaged["model"])
    chosen = list(chosen_operators(data, rules))
    groups = {each.group for each in chosen}
    assert len(groups) > 10
    for name in groups:
        left = list(chosen_operators(data, rules.model_copy(update={"overrides": (Override(match=name, scheme="float"),)})))
        assert [(each.graph, each.scope) for each in left] == [(each.graph, each.scope) for each in chosen if each.group != name], name


def test_static_groups(zoo: Zoo, damaged: dict[str, View]) -> None:
    """Beside dynamic ones, each with its own scheme; the sum of a few alone is about what they do together."""
    rules = policy("dynamic", **{"*.layer.1.*": "static"})
    found = measured(zoo, damaged, rules, examples=4)
    schemes = {group["match"]: group["scheme"] for group in found}
    assert {scheme for name, scheme in schemes.items() if ".layer.1." in name} == {"static"}
    assert {scheme for name, scheme in schemes.items() if ".layer.0." in name} == {"dynamic"}
    inputs = {"model": damaged["model"], "ranges": zoo.ranges(damaged, rules)}
    quantized = zoo.run(find_step("quantize_tflite")(precision="x", policy=rules), inputs)
    assert computed(quantized)["FULLY_CONNECTED", "int8"] == 6 * len(LENGTHS)
