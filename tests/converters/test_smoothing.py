"""Outliers moved into weights: exactly the same answers in float, far better ones in static INT8 where there were outliers."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from compressed import SHORT, data_for
from edgeexport.converters._quantization import QUANTIZATIONS
from edgeexport.converters._smoothing import smooth
from edgeexport.converters._task_model import load_model, task_module
from edgeexport.converters.measure_outliers import read_outliers
from int8 import model_file
from test_fake_quantization import EMBEDDER, with_outliers
from tiny import LENGTHS, TEXTS, Case
from zoo import RUNTIMES, Zoo, as_rows

from edgeexport.artifact import Task
from edgeexport.catalog import find_step
from edgeexport.policy import Override, Policy
from edgeexport.session import Payload, Session
from edgeexport.step import View

STATIC = Policy(default="static")


def outliers_of(zoo: Zoo, checkpoint: View) -> View:
    return zoo.run(find_step("measure_outliers")(), {"checkpoint": checkpoint, "calibration": zoo.calibration()})


def test_outliers_are_the_largest_inputs(zoo: Zoo) -> None:
    """Against the inputs that hooks see text by text, without padding."""
    view = zoo.loaded(EMBEDDER)
    rows = zoo.dataset("few", as_rows(TEXTS[5:60:9]))
    found = read_outliers({"outliers": zoo.run(find_step("measure_outliers")(), {"checkpoint": view, "calibration": rows})}, STATIC)
    model = load_model(view.path, EMBEDDER.task)
    wanted: dict[str, np.ndarray] = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear):
            def note(linear: torch.nn.Module, given: tuple[torch.Tensor, ...], name: str = name) -> None:
                wanted[name] = np.maximum(wanted.get(name, 0.0), given[0].abs().flatten(0, -2).amax(dim=0).numpy())
            module.register_forward_pre_hook(note)
    session = zoo.session(EMBEDDER, "onnx")
    with torch.inference_mode():
        for text in TEXTS[5:60:9]:
            model(input_ids=torch.tensor([session.encode(text).ids]))
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert (found[name] >= values * (1 - 1e-5)).all(), name  # padding may be larger
        assert np.median(found[name] / values) == pytest.approx(1, abs=0.02), name


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_in_float_nothing_changes(zoo: Zoo, strength: float) -> None:
    view = with_outliers(zoo)
    largest = read_outliers({"outliers": outliers_of(zoo, view)}, STATIC)
    plain, module = (task_module(view.path, EMBEDDER.task, given, strength) for given in ({}, largest))
    assert [name for name, _ in module.named_modules()] == [name for name, _ in plain.named_modules()]
    sample = {"input_ids": torch.randint(1, 60, (3, 12)), "attention_mask": torch.ones(3, 12, dtype=torch.int64)}
    with torch.inference_mode():
        wanted, found = (each(**sample)["sentence_embedding"] for each in (plain, module))
    assert torch.allclose(found, wanted, atol=2e-6)

    name = "model.encoder.layer.0.intermediate.dense"
    before, after = (each.get_submodule(name) for each in (plain, module))
    weights = before.weight.detach().numpy()
    scale = largest[name.removeprefix("model.")] ** strength / np.abs(weights).max(axis=0) ** (1 - strength)
    assert np.allclose(after.weight.detach().numpy(), weights * scale, rtol=1e-5)


def test_a_table_that_is_looked_up_too_stays(zoo: Zoo) -> None:
    """A model that fills in tokens multiplies with its table of token vectors."""
    case = Case("bert", Task.FILL_MASK)
    view = zoo.loaded(case)
    given = {"checkpoint": view, "calibration": data_for(zoo, case, SHORT[3:100:12])}
    largest = read_outliers({"outliers": zoo.run(find_step("measure_outliers")(), given)}, STATIC)
    assert any("decoder" in name for name in largest)
    plain, module = (task_module(view.path, Task.FILL_MASK, given, 0.5) for given in ({}, largest))
    sample = {"input_ids": torch.randint(1, 60, (3, 12)), "attention_mask": torch.ones(3, 12, dtype=torch.int64)}
    with torch.inference_mode():
        wanted, found = (each(**sample)["logits"] for each in (plain, module))
    assert torch.allclose(found, wanted, atol=1e-4 * float(wanted.abs().max()))
    assert torch.equal(module.model.get_input_embeddings().weight, plain.model.get_input_embeddings().weight)


def test_only_what_is_static_is_smoothed(zoo: Zoo) -> None:
    rules = Policy(default="dynamic", overrides=(Override(match="*.layer.1.*", scheme="static"),))
    found = read_outliers({"outliers": outliers_of(zoo, zoo.loaded(EMBEDDER))}, rules)
    assert len(found) == 6 and all(".layer.1." in name for name in found)


def test_a_channel_that_is_never_used_changes_nothing() -> None:
    linear = torch.nn.Linear(4, 3)
    with torch.no_grad():
        linear.weight[:, 2] = 0
    model, values = torch.nn.Sequential(linear), torch.randn(5, 4)
    wanted = model(values)
    smooth(model, {"0": np.array([1.0, 0.0, 0.0, 2.0], np.float32)}, 0.5)
    assert torch.allclose(model(values), wanted, atol=1e-6)
    assert torch.isfinite(linear.weight).all()


def normalized_to_outliers(zoo: Zoo) -> View:
    """A model in which two channels are 40 times as large as the others between attention and the end of each layer, as in trained models.

    What reads them has small weights for them, and the next layer normalization makes them like the others again.
    """
    from safetensors.torch import load_file, save_file

    whole = zoo.loaded(EMBEDDER)
    path = Path(shutil.copytree(whole.path, zoo.place("outliers") / "m"))
    tensors = load_file(path / "model.safetensors")
    for layer in (f"bert.encoder.layer.{number}" if "bert.encoder.layer.0.output.dense.weight" in tensors else f"encoder.layer.{number}"
                  for number in (0, 1)):
        for name in ("weight", "bias"):
            tensors[f"{layer}.attention.output.LayerNorm.{name}"][[2, 7]] *= 40
        tensors[f"{layer}.intermediate.dense.weight"][:, [2, 7]] /= 40
        factors = torch.full_like(tensors[f"{layer}.output.LayerNorm.weight"], 10.0)
        factors[[2, 7]] = 0.25
        tensors[f"{layer}.output.LayerNorm.weight"] *= factors
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return View(path, whole.spec)


@pytest.mark.parametrize(("model_format", "share"), [("onnx", 0.5), ("tflite", 1.0)])
def test_static_int8_bears_outliers(zoo: Zoo, model_format: str, share: float) -> None:
    """The vectors' mean distance from those in float becomes less than half; operators keep the names by which overrides know them.

    In TFLite it becomes but a little less: its converter moves a layer normalization's own factors into the matrix behind it anyway.
    """
    view = normalized_to_outliers(zoo)
    outliers = outliers_of(zoo, view)
    options = {"lengths": LENGTHS} if model_format == "tflite" else {}
    distances, groups = {}, {}
    for smoothing in (0.0, 0.5):
        inputs = {"checkpoint": view} | ({"outliers": outliers} if smoothing else {})
        model = zoo.run(find_step(f"export_{model_format}")(smoothed=STATIC.model_copy(update={"smoothing": smoothing}), **options), inputs)
        given = {"model": model, "checkpoint": view, "calibration": zoo.calibration()}
        quantized = zoo.run(find_step(f"quantize_{model_format}")(precision="static-int8", policy=STATIC),
                            {"model": model, "ranges": zoo.ranges(given, STATIC)})
        sessions = [Session(Payload(zoo.payload(view, each).path), "v", RUNTIMES[model_format]) for each in (model, quantized)]
        wanted, found = (np.stack([session.outputs(session.encode(text))["sentence_embedding"][0] for text in TEXTS[33:233:5]])
                         for session in sessions)
        distances[smoothing] = 1 - (wanted * found).sum(axis=1).mean()
        groups[smoothing] = {each.group for each in QUANTIZATIONS[model.spec.kind].chosen_operators(model_file(model), STATIC) if each.weights}
    assert distances[0.5] < distances[0.0] * share
    assert groups[0.5] == groups[0.0]
