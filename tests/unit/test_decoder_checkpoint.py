"""Language models by their small files: what they are, how much they hold, and what they are not built for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgeexport.artifact import Task
from edgeexport.checkpoint import Checkpoint, read_checkpoint
from edgeexport.errors import CheckpointError
from edgeexport.recipe import ModelSection

SECTION = ModelSection(source="m")


def checkpoint(place: Path, config: dict[str, Any], tensors: dict[str, tuple[int, ...]] | None = None, **files: dict[str, Any]) -> Checkpoint:
    """A checkpoint's small files, and its tensors by name and shape."""
    for name, content in {"config": config, **files}.items():
        (place / f"{name}.json").write_text(json.dumps(content))
    header = {name: {"dtype": "F32", "shape": list(shape), "data_offsets": [0, 0]} for name, shape in (tensors or {"x.weight": (4, 4)}).items()}
    return Checkpoint("m", place, {"tokenizer.json": 1, "model.safetensors": 1}, {"model.safetensors": header})


LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096}


def test_a_causal_head_is_for_generation(tmp_path: Path) -> None:
    spec = checkpoint(tmp_path, LLAMA).spec(SECTION)
    assert spec.task is Task.TEXT_GENERATION and spec.facts["labels"] == []


@pytest.mark.parametrize(("config", "own", "context"), [
    (LLAMA, 4096, 1024), (LLAMA | {"max_position_embeddings": 512}, 512, 512),
    ({"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_positions": 1024}, 1024, 1024),
    ({"model_type": "bloom", "architectures": ["BloomForCausalLM"]}, 1024, 1024)])
def test_the_context_is_the_models_and_no_more_than_a_device_should_bear(tmp_path: Path, config: dict[str, Any], own: int, context: int) -> None:
    text = checkpoint(tmp_path, config).text_spec(SECTION)
    assert (text.own_max_length, text.max_length) == (own, context)
    assert ("default" in text.sources["max_length"]) == (own > context or config["model_type"] == "bloom")


def test_a_longer_context_may_be_asked_for_up_to_the_models_own(tmp_path: Path) -> None:
    found = checkpoint(tmp_path, LLAMA)
    assert found.text_spec(ModelSection(source="m", max_length=4096)).max_length == 4096
    with pytest.raises(CheckpointError, match="reads at most 4096"):
        found.text_spec(ModelSection(source="m", max_length=4097))


def test_what_is_no_weight_of_its_own_is_not_counted(tmp_path: Path) -> None:
    gpt2 = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]}
    assert checkpoint(tmp_path, gpt2, {"wte.weight": (10, 4), "h.0.attn.bias": (1, 1, 8, 8), "h.0.attn.masked_bias": (1,),
                                       "h.0.attn.c_attn.bias": (12,)}).parameters == 52
    tied = {"model.embed_tokens.weight": (10, 4), "lm_head.weight": (10, 4)}
    assert checkpoint(tmp_path, LLAMA | {"tie_word_embeddings": True}, tied).parameters == 40
    assert checkpoint(tmp_path, LLAMA | {"tie_word_embeddings": False}, tied).parameters == 80


@pytest.mark.parametrize(("config", "task", "told"), [
    ({"model_type": "bert", "architectures": ["BertLMHeadModel"]}, None, "known for other tasks only"),
    ({"model_type": "llama", "architectures": ["LlamaForSequenceClassification"]}, None, "known for text-generation only"),
    ({"model_type": "llama", "architectures": ["LlamaModel"]}, None, "known for text-generation only"),
    ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, Task.TEXT_GENERATION, "cannot do text-generation"),
    ({"model_type": "mamba", "architectures": ["MambaForCausalLM"]}, None, "'mamba' is not supported"),
])
def test_what_it_is_not_built_for_is_told(tmp_path: Path, config: dict[str, Any], task: Task | None, told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        checkpoint(tmp_path, config).spec(ModelSection(source="m", task=task))


def test_an_embedder_that_was_a_language_model_is_no_language_model(tmp_path: Path) -> None:
    config = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    assert checkpoint(tmp_path, config).task(None) is Task.TEXT_GENERATION
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.Transformer"}]')
    with pytest.raises(CheckpointError, match="known for text-generation only"):
        checkpoint(tmp_path, config).spec(SECTION)


def test_a_template_is_found_in_either_file(tmp_path: Path) -> None:
    assert not checkpoint(tmp_path, LLAMA).chat_template
    assert checkpoint(tmp_path, LLAMA, tokenizer_config={"chat_template": "{{ messages }}"}).chat_template
    (tmp_path / "tokenizer_config.json").unlink()
    found = checkpoint(tmp_path, LLAMA)
    found.sizes["chat_template.jinja"] = 3
    assert found.chat_template


def test_a_file_of_a_checkpoint_is_told_to_be_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="is a file of a checkpoint") as caught:
        read_checkpoint(tmp_path / "config.json")
    assert caught.value.hint == f"say {tmp_path}"
