"""Outliers of language models: moved where channels are made, at no cost; the same answers in float, and nearer ones in dynamic INT8."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from edgeexport.converters._smoothing import hand_over
from edgeexport.converters._task_model import load_model
from edgeexport.converters.measure_outliers import WRITTEN_TEXTS, read_outliers, write_texts
from safetensors.torch import load_file, save_file
from tiny import TEXTS
from tiny_decoders import CONTEXT, FAMILIES, write_decoder
from zoo import Zoo, as_rows

from edgeexport.artifact import Task
from edgeexport.catalog import find_step
from edgeexport.errors import CheckpointError
from edgeexport.policy import Policy, preset
from edgeexport.recipe import ModelSection
from edgeexport.session.run_tflite_decoder import TfliteDecoder
from edgeexport.step import View

EVERYTHING = Policy(default="static")
NORMS = ("input_layernorm.weight", "post_attention_layernorm.weight")


def outlying(zoo: Zoo) -> View:
    """A model of which some channels are fifty times as large as the others, as those of large models are."""
    directory = write_decoder(zoo.place("outlying") / "checkpoint", "llama")
    path = directory / "model.safetensors"
    weights = load_file(path)
    for name, values in weights.items():
        if name.endswith(NORMS):
            values[::16] *= 50
        if name.endswith("up_proj.weight"):
            values[::24] *= 50
    save_file(weights, path, metadata={"format": "pt"})
    return zoo.load(directory, ModelSection(source="m"))


@pytest.mark.parametrize("family", FAMILIES)
def test_in_float_nothing_changes(zoo: Zoo, family: str) -> None:
    view = zoo.load(write_decoder(zoo.place(family) / "checkpoint", family), ModelSection(source="m"))
    largest = read_outliers({"outliers": zoo.run(find_step("measure_outliers")(), {"checkpoint": view})}, EVERYTHING)
    plain, model = (load_model(view.path, Task.TEXT_GENERATION) for _ in range(2))
    hand_over(model, largest, 0.5)
    ids = torch.from_numpy(np.random.default_rng(0).integers(3, 500, (2, 60)))
    with torch.inference_mode():
        wanted, found = (each(input_ids=ids).logits for each in (plain, model))
    assert (found - wanted).abs().max() < 2e-5 * wanted.std()
    # Both normalizations of each layer, and what they hand over to.
    changed = [name for (name, one), other in zip(plain.named_parameters(), model.parameters(), strict=True) if not torch.equal(one, other)]
    assert len(changed) >= 8 and sum("norm" in name or "ln_" in name for name in changed) >= 4


@pytest.mark.parametrize(("family", "config"), [
    ("opt", {"do_layer_norm_before": False}), ("bloom", {"apply_residual_connection_post_layernorm": True})])
def test_what_the_next_sum_reads_too_stays(zoo: Zoo, family: str, config: dict[str, bool]) -> None:
    view = zoo.load(write_decoder(zoo.place(family) / "checkpoint", family, **config), ModelSection(source="m"))
    largest = read_outliers({"outliers": zoo.run(find_step("measure_outliers")(), {"checkpoint": view})}, EVERYTHING)
    plain, model = (load_model(view.path, Task.TEXT_GENERATION) for _ in range(2))
    hand_over(model, largest, 0.5)
    assert all(torch.equal(one, other) for one, other in zip(plain.parameters(), model.parameters(), strict=True))


def test_in_dynamic_int8_answers_are_nearer(zoo: Zoo) -> None:
    view, ids = outlying(zoo), np.random.default_rng(1).integers(3, 500, CONTEXT)
    with torch.inference_mode():
        wanted = load_model(view.path, Task.TEXT_GENERATION)(input_ids=torch.from_numpy(ids)[None]).logits[0].numpy()
    outliers = zoo.run(find_step("measure_outliers")(), {"checkpoint": view})
    errors = {}
    for smoothing in (0.0, 0.5):
        inputs = {"checkpoint": view} | ({"outliers": outliers} if smoothing else {})
        exported = zoo.run(find_step("export_decoder_tflite")(lengths=(16,), smoothing=smoothing), inputs)
        step = find_step("quantize_tflite")(precision="dynamic-int8", policy=preset("tflite", "dynamic-int8"))
        found = TfliteDecoder(zoo.run(step, {"model": exported}).path / "model.tflite", 1, CONTEXT)
        said = [found.read(ids[:40]), *(found.read(ids[place:place + 1]) for place in range(40, CONTEXT))]
        errors[smoothing] = float(np.mean([np.abs(mine - theirs).mean() for mine, theirs in zip(said, wanted[39:], strict=True)]))
    assert errors[0.5] < 0.8 * errors[0.0]  # the head, which is tied, keeps its outliers


def test_a_model_writes_the_same_texts_each_time_as_long_as_its_context(zoo: Zoo) -> None:
    view = outlying(zoo)
    written: list[list[torch.Tensor]] = []
    for _ in range(2):
        model = load_model(view.path, Task.TEXT_GENERATION)
        read: list[torch.Tensor] = []
        model.get_input_embeddings().register_forward_pre_hook(lambda _, given, read=read: read.append(given[0].clone()))
        assert list(write_texts(model, 20)) == [(number + 1) / 20 for number in range(20)]
        written.append(read)
    assert all(torch.equal(one, other) for one, other in zip(*written, strict=True)) and len(written[0]) == 20
    texts = torch.cat(written[0], dim=1)
    assert texts.shape == (WRITTEN_TEXTS, 20) and len({tuple(text.tolist()) for text in texts}) == WRITTEN_TEXTS


def test_a_model_of_no_numbers_is_told(zoo: Zoo) -> None:
    model = load_model(outlying(zoo).path, Task.TEXT_GENERATION)
    with torch.no_grad():
        next(model.parameters())[1] = torch.nan
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        list(write_texts(model, 3))


def test_texts_of_the_user_are_measured_where_there_are_some(zoo: Zoo) -> None:
    view = outlying(zoo)
    texts = zoo.dataset("calibration", as_rows(TEXTS[:20]))
    own, theirs = (read_outliers({"outliers": zoo.run(find_step("measure_outliers")(), inputs)}, EVERYTHING)
                   for inputs in ({"checkpoint": view}, {"checkpoint": view, "calibration": texts}))
    assert own.keys() == theirs.keys()
    name = "model.layers.0.self_attn.q_proj"
    assert not np.array_equal(own[name], theirs[name])
    for found in (own, theirs):  # both see which channels are large
        assert set(np.argsort(-found[name])[:4]) == {0, 16, 32, 48}
