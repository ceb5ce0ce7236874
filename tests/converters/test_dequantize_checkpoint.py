"""Checkpoints that are quantized already: what is unpacked is what the formats define, and what follows sees an ordinary checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from adapters import resolved, taken_in, write_adapter
from edgeexport.converters._task_model import load_model
from packers import Packed, awq, four_bit, gptq, int8, write_quantized
from safetensors.numpy import load_file, save_file
from tiny import Case, write_checkpoint
from zoo import Zoo

from edgeexport.artifact import Task
from edgeexport.errors import CheckpointError

CLASSIFIER = Case("bert", Task.TEXT_CLASSIFICATION)
BNB8 = {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False}


def bnb4(kind: str) -> dict[str, Any]:
    return {"quant_method": "bitsandbytes", "load_in_8bit": False, "load_in_4bit": True, "bnb_4bit_quant_type": kind}


def gptq_config(bits: int, form: str | None = "gptq") -> dict[str, Any]:
    config = {"quant_method": "gptq", "bits": bits, "group_size": 16, "desc_act": False}
    return config if form is None else config | {"checkpoint_format": form}


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 16, "zero_point": True, "version": "gemm"}

FORMATS: dict[str, tuple[dict[str, Any], Callable[[np.ndarray], Packed], str]] = {
    **{f"gptq {bits} bits": (gptq_config(bits), gptq(bits), f"GPTQ {bits}-bit") for bits in (2, 3, 4, 8)},
    **{f"gptq {bits} bits, second form": (gptq_config(bits, "gptq_v2"), gptq(bits, second_form=True), f"GPTQ {bits}-bit") for bits in (3, 4)},
    "gptq, groups in any order": (gptq_config(4), gptq(4, shuffled=True), "GPTQ 4-bit"),
    "gptq, one group": (gptq_config(3), gptq(3, size=-1), "GPTQ 3-bit"),
    "gptq, no form named, no index": (gptq_config(3, None), gptq(3, indexed=False), "GPTQ 3-bit"),
    "gptq, layers with other bits than config.json says": (gptq_config(4), gptq(8), "GPTQ 4-bit"),
    "awq": (AWQ, awq(), "AWQ 4-bit"),
    "awq, large groups": (AWQ, awq(32), "AWQ 4-bit"),
    "bitsandbytes 8 bits": (BNB8, int8, "bitsandbytes 8-bit"),
    "bitsandbytes before others were": ({"load_in_8bit": True}, int8, "bitsandbytes 8-bit"),
    "nf4": (bnb4("nf4"), four_bit("nf4"), "bitsandbytes 4-bit nf4"),
    "nf4, a short last block": (bnb4("nf4"), four_bit("nf4", size=96), "bitsandbytes 4-bit nf4"),
    "nf4, nested": (bnb4("nf4"), four_bit("nf4", nested=True), "bitsandbytes 4-bit nf4"),
    "nf4, stored as float16": (bnb4("nf4"), four_bit("nf4", nested=True, storage=np.float16), "bitsandbytes 4-bit nf4"),
    "fp4": (bnb4("fp4"), four_bit("fp4"), "bitsandbytes 4-bit fp4"),
}


@pytest.mark.parametrize("form", FORMATS)
def test_weights_are_what_the_format_defines(zoo: Zoo, tmp_path: Path, form: str) -> None:
    config, pack, words = FORMATS[form]
    wanted = write_quantized(tmp_path / "model", zoo.directory(CLASSIFIER), config, pack)
    found = resolved(zoo, tmp_path / "model")
    assert found.spec.facts["lossy_source"] == words
    view = taken_in(zoo, found)
    stored = load_file(view.path / "model.safetensors")
    assert stored.keys() == wanted.keys()
    for name, value in stored.items():
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, wanted[name], rtol=1e-6, atol=1e-7, err_msg=name)
    changed = [np.abs(wanted[name] - value).max() for name, value in load_file(zoo.directory(CLASSIFIER) / "model.safetensors").items()
               if ".layer." in name and value.ndim == 2]
    assert min(changed) > 1e-4  # it is lossy
    written = json.loads((view.path / "config.json").read_text())
    assert "quantization_config" not in written
    assert written["dtype"] == "float32"
    assert found.spec.parameters == view.spec.parameters == sum(value.size for value in wanted.values())
    assert found.spec.facts["layer_parameters"] == sum(value.size for name, value in wanted.items() if ".layer." in name)
    assert (view.path / "tokenizer.json").is_file() and (view.path / "text.json").is_file()


@pytest.mark.parametrize("form", ["gptq 3 bits", "awq", "nf4, nested"])
def test_answers_are_those_of_the_unpacked_weights(zoo: Zoo, tmp_path: Path, form: str) -> None:
    config, pack, _ = FORMATS[form]
    wanted = write_quantized(tmp_path / "model", zoo.directory(CLASSIFIER), config, pack)
    view = taken_in(zoo, resolved(zoo, tmp_path / "model"))
    plain = Path(shutil.copytree(zoo.directory(CLASSIFIER), tmp_path / "plain"))
    save_file(wanted, plain / "model.safetensors", metadata={"format": "pt"})
    import transformers

    reference = transformers.AutoModelForSequenceClassification.from_pretrained(plain, dtype="float32").eval()
    model = load_model(view.path, Task.TEXT_CLASSIFICATION)
    inputs = zoo.original(CLASSIFIER).tokens("the rain in the north of the land")
    with torch.no_grad():
        theirs, original = reference(**inputs).logits, zoo.original(CLASSIFIER).model(**inputs).logits
        np.testing.assert_allclose(model(**inputs).logits, theirs, rtol=0, atol=1e-5)
    assert np.abs(theirs - original).max() > 1e-3


def test_an_adapter_to_a_quantized_base_model(zoo: Zoo, tmp_path: Path) -> None:
    """As QLoRA trains them."""
    import peft

    encoder = Case("bert", Task.FEATURE_EXTRACTION)
    config, pack, words = FORMATS["nf4, nested"]
    wanted = write_quantized(tmp_path / "base", zoo.directory(encoder), config, pack)
    plain = Path(shutil.copytree(zoo.directory(encoder), tmp_path / "plain"))
    save_file(wanted, plain / "model.safetensors", metadata={"format": "pt"})
    unmerged = write_adapter(tmp_path / "adapter", plain, Task.TEXT_CLASSIFICATION,
                             peft.LoraConfig(task_type="SEQ_CLS", target_modules="all-linear"), num_labels=3)
    found = resolved(zoo, "adapter", tmp_path, base="base")
    assert found.spec.facts["lossy_source"] == words
    view = taken_in(zoo, found)
    assert found.spec.parameters == view.spec.parameters
    inputs = zoo.original(encoder).tokens("the rain in the north of the land")
    with torch.no_grad():
        np.testing.assert_allclose(load_model(view.path, Task.TEXT_CLASSIFICATION)(**inputs).logits, unmerged(**inputs).logits, rtol=0, atol=1e-4)


def test_weights_in_shards(zoo: Zoo, tmp_path: Path) -> None:
    config, pack, _ = FORMATS["gptq 4 bits"]
    wanted = write_quantized(tmp_path / "model", zoo.directory(CLASSIFIER), config, pack)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    (tmp_path / "model" / "model.safetensors").unlink()
    names = sorted(stored)
    places = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(names)}  # a layer's parts in both
    for place in set(places.values()):
        save_file({name: stored[name] for name in names if places[name] == place}, tmp_path / "model" / place, metadata={"format": "pt"})
    (tmp_path / "model" / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    found = resolved(zoo, tmp_path / "model")
    assert found.spec.parameters == sum(value.size for value in wanted.values())
    view = taken_in(zoo, found)
    assert load_file(view.path / "model.safetensors").keys() == wanted.keys()
    assert not (view.path / "model.safetensors.index.json").exists()
    load_model(view.path, Task.TEXT_CLASSIFICATION)


def test_the_table_of_nf4_is_the_published_one() -> None:
    """The first and last values that bitsandbytes' kernels have; or the packers here would test one mistake with another."""
    from packers import nf4_table

    np.testing.assert_allclose(nf4_table()[[0, 1, 6, 7, 8, 14, 15]], [-1, -0.6961928, -0.09105004, 0, 0.0795803, 0.72295684, 1], atol=1e-6)


LAYER = "bert.encoder.layer.0.output.dense"


@pytest.mark.parametrize(("form", "part", "change", "told"), [
    ("gptq 4 bits", "scales", None, f"lack {LAYER}.scales"),
    ("gptq 4 bits", "qweight", None, "belongs to no packed weight"),
    ("gptq 4 bits", "qweight", lambda value: value[:2], "do not fit each other"),
    ("awq", "qweight", lambda value: value[:1], "do not fit each other"),
    ("bitsandbytes 8 bits", "weight", None, f"lack {LAYER}.weight"),
    ("bitsandbytes 8 bits", "weight_format", lambda value: np.array(2, np.uint8), f"weight of {LAYER} can't be read"),
    ("nf4, nested", "weight", None, f"lack {LAYER}.weight"),
    ("nf4, nested", "weight.absmax", None, f"lack {LAYER}.weight.absmax"),
])
def test_weights_that_are_not_whole(zoo: Zoo, tmp_path: Path, form: str, part: str, change: Callable[[Any], Any] | None, told: str) -> None:
    config, pack, _ = FORMATS[form]
    write_quantized(tmp_path / "model", zoo.directory(CLASSIFIER), config, pack)
    file = tmp_path / "model" / "model.safetensors"
    stored = load_file(file)
    value = stored.pop(f"{LAYER}.{part}")
    save_file(stored if change is None else stored | {f"{LAYER}.{part}": change(value)}, file, metadata={"format": "pt"})
    found = resolved(zoo, tmp_path / "model")
    with pytest.raises(CheckpointError) as caught:
        taken_in(zoo, found)
    assert told in caught.value.what


def test_a_checkpoint_that_is_whole_has_no_such_step(zoo: Zoo, tmp_path: Path) -> None:
    directory = write_checkpoint(tmp_path / "whole", CLASSIFIER, quantization_config=None)
    found = resolved(zoo, directory)
    assert found.quantization is None
    assert "lossy_source" not in found.spec.facts
