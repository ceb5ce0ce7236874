"""Language models of every family with a cache, in both formats, against Transformers without one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny import TEXTS
from tiny_decoders import CONTEXT, FAMILIES, write_decoder
from zoo import Zoo

from edgeexport.architectures import DECODERS
from edgeexport.artifact import Task
from edgeexport.catalog import find_step
from edgeexport.dataset import ROWS_FILE, Row
from edgeexport.policy import preset
from edgeexport.recipe import ModelSection
from edgeexport.runner.environment import Environment
from edgeexport.runner.local import run_job
from edgeexport.session import run_onnx_decoder, run_tflite_decoder
from edgeexport.session.evidence import Answers
from edgeexport.session.generation import Decoder, Reader, read_generation_spec
from edgeexport.session.run_onnx_decoder import OnnxDecoder
from edgeexport.session.run_tflite_decoder import TfliteDecoder
from edgeexport.session.scoring import scored
from edgeexport.step import Context, View
from edgeexport.text_settings import DEFAULT_CONTEXT

# Short pieces and long ones, single tokens between them, and past the sliding window of those that have one, to the end of the context.
READS = (1, 17, 1, 1, 40, 3, 1, 30, 1, 1, 20, 1, 11)
INT8 = {"onnx": "blockwise-int8", "tflite": "dynamic-int8"}


class Families:
    """Each family's checkpoint, and its exports, made once."""

    def __init__(self, zoo: Zoo) -> None:
        self.zoo = zoo
        self._loaded: dict[str, View] = {}
        self._exported: dict[tuple[str, str], View] = {}

    def loaded(self, family: str) -> View:
        if family not in self._loaded:
            directory = write_decoder(self.zoo.place(family) / "checkpoint", family)
            self._loaded[family] = self.zoo.load(directory, ModelSection(source="m"))
        return self._loaded[family]

    def exported(self, family: str, model_format: str) -> View:
        if (family, model_format) not in self._exported:
            options = {"lengths": (16,)} if model_format == "tflite" else {}
            self._exported[family, model_format] = self.zoo.run(
                find_step(f"export_decoder_{model_format}")(**options), {"checkpoint": self.loaded(family)})
        return self._exported[family, model_format]

    def quantized(self, family: str, model_format: str) -> View:
        step = find_step(f"quantize_{model_format}")(precision=INT8[model_format], policy=preset(model_format, INT8[model_format]))
        return self.zoo.run(step, {"model": self.exported(family, model_format)})

    def logits(self, family: str, ids: np.ndarray) -> np.ndarray:
        """What comes after each token, float32 [tokens, vocabulary], by Transformers at once."""
        model = transformers.AutoModelForCausalLM.from_pretrained(self.loaded(family).path, attn_implementation="eager").eval()
        with torch.inference_mode():
            return model(torch.from_numpy(ids)[None], use_cache=False).logits[0].numpy()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def families(zoo: Zoo) -> Families:
    return Families(zoo)


def decoder(model: View) -> Decoder:
    if model.spec.kind == "onnx":
        return OnnxDecoder(model.path / "model.onnx", 1, CONTEXT)
    return TfliteDecoder(model.path / "model.tflite", 1, CONTEXT)


def text() -> np.ndarray:
    return np.random.default_rng(0).integers(3, 500, CONTEXT)


def errors(found: Decoder, expected: np.ndarray, ids: np.ndarray) -> list[float]:
    """Mean absolute difference of the logits after each piece."""
    place, differences = 0, []
    for count in READS:
        said = found.read(ids[place:place + count])
        place += count
        differences.append(float(np.abs(said - expected[place - 1]).mean()))
    assert place == found.position == CONTEXT
    return differences


def test_every_decoder_is_tested() -> None:
    assert set(FAMILIES) == set(DECODERS)


@pytest.mark.parametrize("model_format", ["onnx", "tflite"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_comes_next_is_what_the_original_says(families: Families, monkeypatch: pytest.MonkeyPatch, family: str, model_format: str) -> None:
    # Buffers grow several times on the way.
    monkeypatch.setattr(run_onnx_decoder, "FIRST_ROOM", 24)
    monkeypatch.setattr(run_tflite_decoder, "STEP", 24)
    ids, model = text(), families.exported(family, model_format)
    assert model.spec.task is Task.TEXT_GENERATION
    expected = families.logits(family, ids)
    found = decoder(model)
    assert max(errors(found, expected, ids)) < 1e-4 * expected.std()
    # What was read before, to the end of the context, is forgotten.
    found.rewind(20)
    assert np.abs(found.read(ids[20:60]) - expected[59]).max() < 1e-4 * expected.std()


@pytest.mark.parametrize(("module", "what", "model_format"), [(run_onnx_decoder, "FIRST_ROOM", "onnx"), (run_tflite_decoder, "STEP", "tflite")])
def test_an_interrupt_while_buffers_grow_costs_an_answer_and_not_the_model(
        families: Families, monkeypatch: pytest.MonkeyPatch, module: Any, what: str, model_format: str) -> None:
    monkeypatch.setattr(module, what, 24)
    ids, model = text().tolist(), Reader(decoder(families.exported("llama", model_format)))
    expected = families.logits("llama", text())
    model.read_prompt(ids[:20])
    for after in range(4):  # calls of NumPy in the making of larger buffers
        with monkeypatch.context() as patch:
            calls, plain = iter(range(after)), np.zeros

            def zeros(*shape: Any, calls: Any = calls, plain: Any = plain) -> np.ndarray:
                if next(calls, None) is None:
                    raise KeyboardInterrupt
                return plain(*shape)  # type: ignore[no-any-return]

            patch.setattr(module.np, "zeros", zeros)
            with pytest.raises(KeyboardInterrupt):
                model.read_prompt(ids[:60])
        assert np.abs(model.read_prompt(ids[:20]) - expected[19]).max() < 1e-4 * expected.std()
    assert np.abs(model.read_prompt(ids[:60]) - expected[59]).max() < 1e-4 * expected.std()


# What nothing limits has the context that a build gives it.
@pytest.mark.parametrize(("family", "room"), [("llama", 24), ("bloom", DEFAULT_CONTEXT)])
def test_attention_goes_over_short_buffers_where_nothing_counts_how_far_back_it_looks(
        families: Families, monkeypatch: pytest.MonkeyPatch, family: str, room: int) -> None:
    monkeypatch.setattr(run_tflite_decoder, "STEP", 24)
    found = decoder(families.exported(family, "tflite"))
    assert isinstance(found, TfliteDecoder)
    found.read(text()[:10])
    assert found.room == room


@pytest.mark.parametrize("family", FAMILIES)
def test_litert_lm_holds_for_likely_what_the_original_does(zoo: Zoo, families: Families, family: str) -> None:
    checkpoint, model = families.loaded(family), families.exported(family, "tflite")
    payload = zoo.payload(checkpoint, zoo.run(find_step("pack_litertlm")(), {"checkpoint": checkpoint, "model": model}))
    rows, out = [Row(id="long", text=" ".join(TEXTS)), Row(id="short", text=TEXTS[5])], zoo.place("answers")
    run_job(Environment("litert-lm-api==0.18.1"), {
        "do": "answers", "payload": str(payload.path), "variant": "v", "runtime": "litert-lm-api", "threads": 1,
        "datasets": {"rows": str(zoo.dataset("rows", rows).path / ROWS_FILE)}}, out, Context(zoo.place("scratch")))
    found = Answers.load(out / "rows.npz")
    for ids, numbers in zip(found.ids, found.numbers, strict=True):
        expected = families.logits(family, ids)
        logs = expected - np.logaddexp.reduce(expected, axis=1, keepdims=True)
        positions = scored(len(ids))[:len(numbers)]
        assert len(numbers) >= len(scored(len(ids))) - 8
        assert np.abs(numbers[:, 0] - logs[positions, ids[np.add(positions, 1)]]).max(initial=0) < 1e-3 * expected.std()
    assert len(found.ids[0]) == (DEFAULT_CONTEXT if family == "bloom" else CONTEXT)


@pytest.mark.parametrize("model_format", ["onnx", "tflite"])
def test_what_is_not_read_yet_counts_for_nothing_beside_large_biases_of_keys(zoo: Zoo, model_format: str) -> None:
    """Qwen2.5's keys have biases by which scores of all that was read are far below 0, where an empty place has 0."""
    directory = write_decoder(zoo.place("biased") / model_format, "qwen2")
    weights = load_file(directory / "model.safetensors")
    save_file({name: 1e5 * value if name.endswith("k_proj.bias") else value for name, value in weights.items()}, directory / "model.safetensors",
              metadata={"format": "pt"})
    loaded = zoo.load(directory, ModelSection(source="m"))
    options = {"lengths": (16,)} if model_format == "tflite" else {}
    found = decoder(zoo.run(find_step(f"export_decoder_{model_format}")(**options), {"checkpoint": loaded}))
    ids = text()[:40]
    model = transformers.AutoModelForCausalLM.from_pretrained(loaded.path, attn_implementation="eager").eval()
    with torch.inference_mode():
        expected = model(torch.from_numpy(ids)[None], use_cache=False).logits[0].numpy()
    said = [found.read(ids[:20]), *(found.read(ids[place:place + 1]) for place in range(20, 40))]
    # Of such scores float32 has two digits behind the point left.
    assert np.median([np.abs(mine - theirs).mean() for mine, theirs in zip(said, expected[19:], strict=True)]) < 0.01 * expected.std()


@pytest.mark.parametrize("model_format", ["onnx", "tflite"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_8_bits_stay_near(families: Families, family: str, model_format: str) -> None:
    ids, model = text(), families.quantized(family, model_format)
    expected = families.logits(family, ids)
    assert np.mean(errors(decoder(model), expected, ids)) < 0.05 * expected.std()


def test_a_tied_table_is_stored_once(families: Families) -> None:
    parameters = families.loaded("llama").spec.parameters or 0
    for model_format, most in (("onnx", 1.35), ("tflite", 1.6)):  # of such a small model much is scales, names and operators
        for model, share in ((families.exported("llama", model_format), 4.0), (families.quantized("llama", model_format), 1.0)):
            size = sum(path.stat().st_size for path in model.path.iterdir())
            assert size < most * share * parameters + 60_000, (model_format, size, parameters)


def test_the_graph_has_names_of_modules_and_no_places_of_this_machine(families: Families) -> None:
    for family in ("llama", "gpt2"):
        model = onnx.load(families.exported(family, "onnx").path / "model.onnx", load_external_data=False)
        names = [node.name for node in model.graph.node]
        assert len(set(names)) == len(names)
        assert any(name.startswith(("layers.1.attn", "transformer.h.1.attn")) for name in names), names[:40]
        assert str(Path.cwd()).encode() not in model.SerializeToString() and b"site-packages" not in model.SerializeToString()


def test_onnxruntime_genai_is_told_what_ends_a_text_and_how_much_is_held(families: Families) -> None:
    for family in ("llama", "gpt2"):
        settings = json.loads((families.exported(family, "onnx").path / "genai_config.json").read_text())
        stops = read_generation_spec(families.loaded(family).path / "generation.json").stop_ids
        assert settings["model"]["eos_token_id"] == stops[0] and settings["model"]["context_length"] == settings["search"]["max_length"] == CONTEXT


def test_the_same_twice_to_the_byte(families: Families, zoo: Zoo) -> None:
    for family in ("llama", "gpt2"):
        again = zoo.run(find_step("export_decoder_onnx")(), {"checkpoint": families.loaded(family)})
        for name in ("model.onnx", "model.onnx.data", "genai_config.json"):
            assert (again.path / name).read_bytes() == (families.exported(family, "onnx").path / name).read_bytes(), name
