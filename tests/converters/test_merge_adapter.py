"""Adapters merged into their base models: against PEFT's own answers before merging, and against what each method defines in NumPy."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from adapters import resolved, taken_in, write_adapter
from edgeexport.converters._task_model import load_model
from safetensors.torch import load_file, save_file
from tiny import CLASSES, Case
from tiny_decoders import write_decoder
from zoo import Zoo

from edgeexport.artifact import Task
from edgeexport.errors import CheckpointError, EdgeExportError
from edgeexport.session.generation import read_generation_spec
from edgeexport.session.text import read_text_spec

BASE = Case("bert", Task.FEATURE_EXTRACTION)
TEXTS = ("It is late.", "the rain in the north of the land", "why?", "one two three four five six seven eight")
TARGETS = ["query", "value"]
QUERY = "encoder.layer.0.attention.self.query"


def lora(task: str | None = "SEQ_CLS", **options: Any) -> Any:
    return peft.LoraConfig(**{"task_type": task, "r": 4, "lora_alpha": 16, "target_modules": TARGETS} | options)


@pytest.fixture
def adapter(zoo: Zoo, tmp_path: Path) -> Callable[..., tuple[Path, Any]]:
    """Writes an adapter to the tiny BERT; returns its directory and PEFT's model."""

    def write(config: Any, task: Task = Task.TEXT_CLASSIFICATION, case: Case = BASE, **settings: Any) -> tuple[Path, Any]:
        directory = tmp_path / "adapter"
        return directory, write_adapter(directory, zoo.directory(case), task, config, **settings)

    return write


def edit(path: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None takes one out."""
    data = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}), encoding="utf-8")


def edit_weights(directory: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    file = directory / "adapter_model.safetensors"
    save_file({name: value.contiguous() for name, value in change(load_file(file)).items()}, file, metadata={"format": "pt"})


def same_answers(zoo: Zoo, case: Case, merged: Any, unmerged: Any) -> None:
    """Whether both models give the same, for texts that differ in what they are given."""
    tokenizer = zoo.original(case).tokenizer
    seen = []
    for text in TEXTS:
        inputs = dict(tokenizer(text, return_tensors="pt", truncation=True, max_length=32))
        with torch.no_grad():
            ours, theirs = merged(**inputs), unmerged(**inputs)
        for name in ("logits", "start_logits", "end_logits", "last_hidden_state"):
            if theirs.get(name) is not None:
                np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-4)
                seen.append(theirs[name].ravel()[0].item())
    assert len(set(seen)) >= len(TEXTS)


METHODS = {
    "lora": lora(),
    "every linear layer, each with a rank of its own": lora(target_modules="all-linear", rank_pattern={"key": 2}, alpha_pattern={"value": 3}),
    "biases": lora(bias="all"),
    "embeddings": lora(target_modules=["word_embeddings", "query"]),
    "rslora": lora(use_rslora=True),
    "dora": lora(use_dora=True),
    "pissa": lora(init_lora_weights="pissa"),
    "adalora": peft.AdaLoraConfig(task_type="SEQ_CLS", target_modules=TARGETS, total_step=10, init_r=4),
    "ia3": peft.IA3Config(task_type="SEQ_CLS", target_modules=[*TARGETS, "output.dense"], feedforward_modules=["output.dense"]),
    "loha": peft.LoHaConfig(task_type="SEQ_CLS", target_modules=TARGETS),
    "lokr": peft.LoKrConfig(task_type="SEQ_CLS", target_modules=TARGETS),
    "oft": peft.OFTConfig(task_type="SEQ_CLS", target_modules=TARGETS, oft_block_size=16),
    "vera": peft.VeraConfig(task_type="SEQ_CLS", target_modules=TARGETS, r=8),
    "layer norms": peft.LNTuningConfig(task_type="SEQ_CLS", target_modules=["LayerNorm"]),
}


@pytest.mark.parametrize("method", METHODS)
def test_merged_answers_are_those_of_the_adapter(zoo: Zoo, adapter: Callable[..., tuple[Path, Any]], method: str) -> None:
    directory, unmerged = adapter(METHODS[method], num_labels=3)
    found = resolved(zoo, directory)
    view = taken_in(zoo, found)
    model = load_model(view.path, Task.TEXT_CLASSIFICATION)
    same_answers(zoo, BASE, model, unmerged)
    assert not any(name.startswith("adapter") for name in map(str, view.path.iterdir()))
    assert found.spec.parameters == view.spec.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.spec.facts["labels"] == ["LABEL_0", "LABEL_1", "LABEL_2"] == [model.config.id2label[number] for number in range(3)]


def test_the_weights_are_what_the_methods_define(zoo: Zoo, adapter: Callable[..., tuple[Path, Any]], tmp_path: Path) -> None:
    """Hu et al. 2021 (LoRA), Kalajdzievski 2023 (rsLoRA), Liu et al. 2024 (DoRA), Liu et al. 2022 (IA3)."""
    before = load_file(zoo.directory(BASE) / "model.safetensors")[f"{QUERY}.weight"].numpy()
    for method in ("lora", "rslora", "dora", "ia3"):
        directory, _ = adapter(METHODS[method])
        stored = {name.removeprefix(f"base_model.model.bert.{QUERY}."): value.numpy()
                  for name, value in load_file(directory / "adapter_model.safetensors").items() if f"bert.{QUERY}." in name}
        shutil.rmtree(directory)
        adapter(METHODS[method])
        if method == "ia3":
            wanted = before * stored["ia3_l"]
        else:
            scale = 16 / (np.sqrt(4) if method == "rslora" else 4)
            wanted = before + scale * stored["lora_B.weight"] @ stored["lora_A.weight"]
        if method == "dora":
            wanted *= (stored["lora_magnitude_vector"] / np.linalg.norm(wanted, axis=1))[:, None]
        view = taken_in(zoo, resolved(zoo, directory))
        after = load_file(view.path / "model.safetensors")[f"bert.{QUERY}.weight"].numpy()
        np.testing.assert_allclose(after, wanted, rtol=0, atol=1e-5)
        assert np.abs(after - before).max() > 0.1
        shutil.rmtree(directory)


@pytest.mark.parametrize(("case", "task", "config"), [
    (Case("bert", Task.FEATURE_EXTRACTION, layers=1), Task.TOKEN_CLASSIFICATION, lora("TOKEN_CLS")),
    (Case("bert", Task.FEATURE_EXTRACTION, layers=1), Task.QUESTION_ANSWERING, lora("QUESTION_ANS")),
    (Case("bert", Task.FEATURE_EXTRACTION, layers=1), Task.FEATURE_EXTRACTION, lora("FEATURE_EXTRACTION")),
    (Case("bert", Task.FILL_MASK, layers=1), Task.FILL_MASK, lora(None)),
    (Case("bert", Task.FILL_MASK, layers=1), Task.FEATURE_EXTRACTION, lora("FEATURE_EXTRACTION")),
    (Case("bert", Task.TEXT_CLASSIFICATION), Task.TEXT_CLASSIFICATION, lora(None)),
    (Case("bert", Task.TEXT_CLASSIFICATION), Task.TEXT_CLASSIFICATION, lora("SEQ_CLS")),
    (Case("roberta", Task.TOKEN_CLASSIFICATION, layers=1), Task.TEXT_CLASSIFICATION, lora("SEQ_CLS")),
    (Case("roberta", Task.FILL_MASK, layers=1), Task.TEXT_CLASSIFICATION, lora("SEQ_CLS")),
    (Case("distilbert", Task.FEATURE_EXTRACTION, layers=1), Task.TEXT_CLASSIFICATION, lora("SEQ_CLS", target_modules=["q_lin", "v_lin"])),
    (Case("albert", Task.FEATURE_EXTRACTION, layers=1), Task.TEXT_CLASSIFICATION, lora("SEQ_CLS")),
    (Case("electra", Task.FEATURE_EXTRACTION, layers=1), Task.TOKEN_CLASSIFICATION, lora("TOKEN_CLS")),
    (Case("mobilebert", Task.FEATURE_EXTRACTION, layers=1), Task.TEXT_CLASSIFICATION, lora("SEQ_CLS")),
    (Case("mpnet", Task.FEATURE_EXTRACTION, layers=1), Task.QUESTION_ANSWERING, lora("QUESTION_ANS", target_modules=["q", "v"])),
    (Case("xlm-roberta", Task.FEATURE_EXTRACTION, layers=1), Task.TOKEN_CLASSIFICATION, lora("TOKEN_CLS")),
], ids=lambda value: str(getattr(value, "task_type", value)))
def test_every_task_and_family(zoo: Zoo, adapter: Callable[..., tuple[Path, Any]], case: Case, task: Task, config: Any) -> None:
    directory, unmerged = adapter(config, task, case)
    found = resolved(zoo, directory)
    view = taken_in(zoo, found)
    assert found.spec.task is view.spec.task is task
    model = load_model(view.path, task)
    same_answers(zoo, case, model, unmerged)
    stored = load_file(view.path / "model.safetensors")
    assert found.spec.parameters == view.spec.parameters == sum(value.numel() for value in stored.values() if value.is_floating_point())


def test_names_of_classes(zoo: Zoo, adapter: Callable[..., tuple[Path, Any]]) -> None:
    directory, _ = adapter(lora(), num_labels=4)
    assert resolved(zoo, directory).spec.facts["labels"] == [f"LABEL_{number}" for number in range(4)]
    (directory / "config.json").write_text(json.dumps({"id2label": {"0": "north", "1": "east", "2": "south", "3": "west"},
                                                       "problem_type": "multi_label_classification"}))
    found = resolved(zoo, directory)
    assert found.spec.facts["labels"] == ["north", "east", "south", "west"]
    view = taken_in(zoo, found)
    assert view.spec.facts["problem_type"] == "multi_label_classification"
    assert json.loads((view.path / "config.json").read_text())["id2label"] == {"0": "north", "1": "east", "2": "south", "3": "west"}
    edit(directory / "config.json", id2label={"0": "north", "1": "south"})
    with pytest.raises(CheckpointError, match="names 2 classes, and the saved head has 4"):
        resolved(zoo, directory)


def test_a_head_that_the_base_model_had_keeps_its_names(zoo: Zoo, adapter: Callable[..., tuple[Path, Any]]) -> None:
    directory, _ = adapter(lora(), case=Case("bert", Task.TEXT_CLASSIFICATION))
    assert resolved(zoo, directory).spec.facts["labels"] == list(CLASSES)


def test_the_recipe_decides_the_task(zoo: Zoo, adapter: Callable[..., tuple[Path, Any]]) -> None:
    directory, unmerged = adapter(lora(None, modules_to_save=["classifier"]), Task.TOKEN_CLASSIFICATION, num_labels=3)
    assert resolved(zoo, directory).spec.task is Task.TOKEN_CLASSIFICATION  # by the class that was adapted
    edit(directory / "adapter_config.json", auto_mapping=None)
    with pytest.raises(CheckpointError, match="cannot do question-answering"):
        resolved(zoo, directory, task=Task.QUESTION_ANSWERING)
    found = resolved(zoo, directory, task=Task.TOKEN_CLASSIFICATION)
    same_answers(zoo, BASE, load_model(taken_in(zoo, found).path, Task.TOKEN_CLASSIFICATION), unmerged)
    vectors = resolved(zoo, directory, task=Task.SENTENCE_SIMILARITY)
    assert vectors.spec.task is Task.SENTENCE_SIMILARITY


def test_the_tokenizer_is_the_adapters_where_it_has_one(zoo: Zoo, adapter: Callable[..., tuple[Path, Any]], tmp_path: Path) -> None:
    directory, _ = adapter(lora())
    base = zoo.directory(BASE)
    assert (taken_in(zoo, resolved(zoo, directory)).path / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(base / name, directory / name)
    edit(directory / "tokenizer_config.json", model_max_length=20)
    found = resolved(zoo, directory)
    assert (found.text.max_length, found.text.sources["max_length"]) == (20, "tokenizer_config.json: model_max_length")
    view = taken_in(zoo, found)
    assert json.loads((view.path / "tokenizer_config.json").read_text())["model_max_length"] == 20
    assert read_text_spec(view.path / "text.json").max_length == 20
    # A base model without a tokenizer will do then.
    bare = Path(shutil.copytree(base, tmp_path / "bare"))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    assert taken_in(zoo, resolved(zoo, directory, base=str(bare))).path.joinpath("tokenizer.json").is_file()
    (directory / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        resolved(zoo, directory, base=str(bare))


def test_pooling_and_licences_of_both(zoo: Zoo, adapter: Callable[..., tuple[Path, Any]], tmp_path: Path) -> None:
    from tiny import write_modules

    directory, _ = adapter(lora("FEATURE_EXTRACTION"), Task.FEATURE_EXTRACTION)
    base = Path(shutil.copytree(zoo.directory(BASE), tmp_path / "base"))
    write_modules(directory, "cls", normalize=True)
    for place, licence in ((directory, "mit"), (base, "apache-2.0")):
        (place / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
        (place / "LICENSE.txt").write_text(licence)
    found = resolved(zoo, directory, base=str(base))
    assert found.spec.task is Task.SENTENCE_SIMILARITY
    assert (found.text.pooling, found.text.normalize) == ("cls", True)
    assert found.spec.facts["licence"] == "mit (adapter), apache-2.0 (base model)"
    view = taken_in(zoo, found)
    assert (view.path / "LICENSE.txt").read_text() == "apache-2.0"
    assert (view.path / "LICENSE-adapter.txt").read_text() == "mit"


# -- where the base model is


def test_the_base_model_by_relative_and_absolute_path(zoo: Zoo, adapter: Callable[..., tuple[Path, Any]], tmp_path: Path) -> None:
    directory, _ = adapter(lora())
    absolute = resolved(zoo, directory)
    shutil.copytree(zoo.directory(BASE), tmp_path / "models" / "base")
    edit(directory / "adapter_config.json", base_model_name_or_path="../models/base")
    relative = resolved(zoo, "adapter", tmp_path)
    assert relative.base is not None and absolute.base is not None
    assert relative.base.leaf.artifact.digest == absolute.base.leaf.artifact.digest
    assert (relative.base.given, relative.base.by_recipe) == ("../models/base", False)
    # The recipe's counts from the recipe, and wins.
    edit(directory / "adapter_config.json", base_model_name_or_path="nowhere/at/all")
    given = resolved(zoo, "adapter", tmp_path, base="models/base")
    assert given.base is not None
    assert (given.base.given, given.base.by_recipe) == ("models/base", True)


def refused(act: Callable[[], Any]) -> EdgeExportError:
    with pytest.raises(EdgeExportError) as caught:
        act()
    assert caught.value.what.count(".") >= 1 and "\n" not in caught.value.what
    return caught.value


def test_a_base_model_that_is_not_there(zoo: Zoo, adapter: Callable[..., tuple[Path, Any]], tmp_path: Path) -> None:
    directory, _ = adapter(lora())
    edit(directory / "adapter_config.json", base_model_name_or_path="./gone/away")
    error = refused(lambda: resolved(zoo, directory))
    assert "can't be used: ./gone/away" in error.what
    assert 'base = "…"' in str(error.hint)
    edit(directory / "adapter_config.json", base_model_name_or_path=None)
    error = refused(lambda: resolved(zoo, directory))
    assert "does not say which model it adapts" in error.what
    assert 'base = "…"' in str(error.hint)
    assert resolved(zoo, directory, base=str(zoo.directory(BASE))).base is not None


def test_a_base_model_that_is_none(zoo: Zoo, adapter: Callable[..., tuple[Path, Any]], tmp_path: Path) -> None:
    directory, _ = adapter(lora())
    other = Path(shutil.copytree(directory, tmp_path / "other"))
    assert "it is another adapter" in str(refused(lambda: resolved(zoo, directory, base=str(other))).why)
    assert "is not an adapter" in refused(lambda: resolved(zoo, zoo.directory(BASE), base=str(other))).what


# -- adapters that can't be used


def test_methods_that_cannot_be_merged(zoo: Zoo, adapter: Callable[..., tuple[Path, Any]], tmp_path: Path) -> None:
    directory, _ = adapter(peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3, num_transformer_submodules=1, token_dim=32,
                                                   num_attention_heads=2, num_layers=2))
    error = refused(lambda: resolved(zoo, directory))
    assert "PROMPT_TUNING cannot be merged" in error.what
    assert "LoRA" in str(error.hint)
    edit(directory / "adapter_config.json", peft_type="PREFIX_TUNING")
    assert "PREFIX_TUNING cannot be merged" in refused(lambda: resolved(zoo, directory)).what
    # A bottleneck adapter's file has the same name, and other keys.
    (directory / "adapter_config.json").write_text(json.dumps({"config": {"adapter_residual_before_ln": False}, "model_type": "bert"}))
    assert "is not an adapter of PEFT" in refused(lambda: resolved(zoo, directory, base=str(zoo.directory(BASE)))).what
    edit(directory / "adapter_config.json", peft_type="LORA", megatron_config={"a": 1}, megatron_core="adapter.own")
    assert "is an adapter for Megatron" in refused(lambda: resolved(zoo, directory, base=str(zoo.directory(BASE)))).what
    edit(directory / "adapter_config.json", megatron_config=None, task_type="CAUSAL_LM")
    assert "cannot be built for text-generation" in refused(lambda: resolved(zoo, directory, base=str(zoo.directory(BASE)))).what
    edit(directory / "adapter_config.json", task_type="SEQ_2_SEQ_LM")
    assert "task type SEQ_2_SEQ_LM" in refused(lambda: resolved(zoo, directory, base=str(zoo.directory(BASE)))).what


def test_an_adapter_for_a_wider_model(zoo: Zoo, adapter: Callable[..., tuple[Path, Any]]) -> None:
    directory, _ = adapter(lora())
    found = resolved(zoo, directory, base=str(zoo.directory(Case("mobilebert", Task.FEATURE_EXTRACTION, layers=1))))
    assert "does not fit the base model" in refused(lambda: taken_in(zoo, found)).what
    edit_weights(directory, lambda weights: {name: torch.cat([value, value], dim=1) if name.endswith(f"{QUERY}.lora_A.weight") else value
                                             for name, value in weights.items()})
    error = refused(lambda: taken_in(zoo, resolved(zoo, directory)))
    assert error.what == "The adapter does not fit the base model."
    assert error.why == f"bert.{QUERY}.lora_A.weight is [4, 64] in the adapter, and would have to be [4, 32]"
    assert "base" in str(error.hint)


def test_an_adapter_for_a_deeper_model_or_other_modules(zoo: Zoo, adapter: Callable[..., tuple[Path, Any]]) -> None:
    directory, _ = adapter(lora())
    shallow = zoo.directory(Case("bert", Task.FEATURE_EXTRACTION, layers=1))
    error = refused(lambda: taken_in(zoo, resolved(zoo, directory, base=str(shallow))))
    assert "the base model has no bert.encoder.layer.1.attention.self.query.lora_A" in str(error.why)
    edit(directory / "adapter_config.json", target_modules=["q_proj"])
    error = refused(lambda: taken_in(zoo, resolved(zoo, directory)))
    assert error.why == "the base model has no module q_proj"
    edit(directory / "adapter_config.json", target_modules=TARGETS)
    edit_weights(directory, lambda weights: {name: value for name, value in weights.items() if f"{QUERY}.lora_B" not in name})
    error = refused(lambda: taken_in(zoo, resolved(zoo, directory)))
    assert error.what == "Weights are missing from the adapter."
    assert f"{QUERY}.lora_B.weight" in str(error.why)


def test_a_head_that_nobody_trained(zoo: Zoo, adapter: Callable[..., tuple[Path, Any]]) -> None:
    directory, _ = adapter(lora())
    edit_weights(directory, lambda weights: {name: value for name, value in weights.items() if "classifier" not in name})
    error = refused(lambda: resolved(zoo, directory))
    assert "has no trained head for text-classification" in error.what
    assert "modules_to_save" in str(error.hint)
    # Half of one is no better.
    directory.rename(directory.with_name("half"))
    directory, _ = adapter(lora())
    edit_weights(directory, lambda weights: {name: value for name, value in weights.items() if "classifier.bias" not in name})
    assert "classifier.bias" in str(refused(lambda: taken_in(zoo, resolved(zoo, directory))).why)


def test_a_pooler_that_nobody_trained(zoo: Zoo, adapter: Callable[..., tuple[Path, Any]]) -> None:
    """BERT's classifier answers through a pooler, which a base model that fills masks does not have, and PEFT does not save unless told."""
    directory, _ = adapter(lora(), case=Case("bert", Task.FILL_MASK, layers=1))
    assert "bert.pooler.dense.weight" in str(refused(lambda: taken_in(zoo, resolved(zoo, directory))).why)


def test_weights_that_are_not_there_pickled_or_damaged(zoo: Zoo, adapter: Callable[..., tuple[Path, Any]]) -> None:
    directory, _ = adapter(lora())
    file = directory / "adapter_model.safetensors"
    whole = file.read_bytes()
    for data, told in ((whole[:-1], "cut off"), (whole[:100], "ends within its header"), (whole[:8] + b"?" + whole[9:], "header is not readable")):
        file.write_bytes(data)
        assert told in str(refused(lambda: resolved(zoo, directory)))
    file.rename(directory / "adapter_model.bin")
    error = refused(lambda: resolved(zoo, directory))
    assert "only pickled weights (adapter_model.bin)" in error.what
    (directory / "adapter_model.bin").unlink()
    assert "has no weights" in refused(lambda: resolved(zoo, directory)).what
    (directory / "adapter_config.json").write_text("{")
    file.write_bytes(whole)
    assert "adapter_config.json is not valid JSON" in refused(lambda: resolved(zoo, directory)).what


def test_a_whole_checkpoint_with_an_adapters_config_is_a_checkpoint(zoo: Zoo, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(zoo.directory(BASE), tmp_path / "whole"))
    (directory / "adapter_config.json").write_text("{}")
    assert resolved(zoo, directory).base is None


def test_an_adapter_of_a_language_model(zoo: Zoo, tmp_path: Path) -> None:
    base = write_decoder(tmp_path / "base", "llama")
    config = lora("CAUSAL_LM", target_modules=["q_proj", "v_proj", "down_proj"])
    adapted = write_adapter(tmp_path / "adapter", base, Task.TEXT_GENERATION, config)
    found = resolved(zoo, tmp_path / "adapter")
    view = taken_in(zoo, found)
    assert found.spec.task is Task.TEXT_GENERATION and view.spec.parameters == found.spec.parameters
    merged, ids = load_model(view.path, Task.TEXT_GENERATION), torch.arange(3, 60)[None]
    with torch.no_grad():
        ours, theirs, before = (model(input_ids=ids).logits for model in (merged, adapted, load_model(base, Task.TEXT_GENERATION)))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-3)
    assert not np.allclose(ours, before, atol=0.1)
    assert read_generation_spec(view.path / "generation.json").chat_template
