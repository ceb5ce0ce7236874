"""What is read from a SavedModel or Keras file without TensorFlow, and what is refused."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from saved_models import (
    Build,
    classifier,
    embedded,
    keras,
    keras_inputs,
    masked_mean,
    source,
    tf,
)

from edgeexport.artifact import Kind, Spec, Task
from edgeexport.errors import CheckpointError
from edgeexport.recipe import ModelSection
from edgeexport.saved_model import is_saved_model, read_saved_model
from edgeexport.saved_model_signature import TensorInfo, read_signature
from edgeexport.step import View


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_signature_is_read_as_tensorflow_reads_it(tmp_path: Path, dtype: str) -> None:
    directory = source(tmp_path / "model", classifier(dtype=dtype, shape=(24,)), "exported")
    theirs = tf.saved_model.load(str(directory)).signatures["serving_default"]
    ours = read_signature(directory, "saved_model.pb")

    def info(specs: dict[str, Any]) -> dict[str, TensorInfo]:
        return {name: TensorInfo(spec.dtype.name, tuple(spec.shape)) for name, spec in specs.items()}

    assert ours.inputs == info(theirs.structured_input_signature[1])
    assert ours.outputs == info(theirs.structured_outputs)


def test_files_and_facts(tmp_path: Path, build: Callable[..., Build]) -> None:
    directory = source(tmp_path / "model", classifier(), "exported", task="text-classification", pad_token_id=0)
    (directory / "README.md").write_text("---\nlicense: mit\n---\n")
    (directory / "notes.txt").write_text("not of the model")
    model = read_saved_model(directory)
    assert is_saved_model(directory)
    assert {"saved_model.pb", "variables/variables.index", "tokenizer.json", "config.json", "README.md"} <= set(model.sizes)
    assert "notes.txt" not in model.sizes
    spec, text = model.spec(ModelSection(source="m")), model.text_spec(ModelSection(source="m"))
    assert (spec.kind, spec.task, spec.architecture) == (Kind.SAVED_MODEL, Task.TEXT_CLASSIFICATION, "saved-model")
    assert spec.facts["labels"] == ["LABEL_0", "LABEL_1", "LABEL_2"]
    assert spec.facts["licence"] == "mit"
    assert (text.max_length, text.sources["max_length"]) == (32, "config.json: max_length")
    assert (text.pad_id, text.sources["pad_id"]) == (0, "config.json: pad_token_id")
    (directory / "model.safetensors").touch()
    assert not is_saved_model(directory)


def test_a_file_that_changed_after_the_plan_is_refused(tmp_path: Path, build: Callable[..., Build]) -> None:
    steps = build(Task.TEXT_CLASSIFICATION)
    model = read_saved_model(source(tmp_path / "model", classifier(), "exported"))
    given = View(model.path, Spec(kind=Kind.SOURCE, facts={"digests": dict.fromkeys(model.sizes, "0" * 64)}))
    with pytest.raises(CheckpointError, match="changed while it was read"):
        steps.step("load_checkpoint", {"source": given}, spec=model.spec(steps.section), text=model.text_spec(steps.section).as_dict())


def test_refused_before_any_work(tmp_path: Path) -> None:
    section = ModelSection(source="m", task=Task.TEXT_CLASSIFICATION)

    def refused(name: str, model: Any, form: str = "exported", section: ModelSection = section, **facts: Any) -> str:
        directory = tmp_path / name if (tmp_path / name).exists() else source(tmp_path / name, model, form, **facts)
        if name == "no-tokenizer":
            (directory / "tokenizer.json").unlink()
        with pytest.raises(CheckpointError) as caught:
            found = read_saved_model(directory)
            found.spec(section), found.text_spec(section)
        return str(caught.value)

    assert "has no tokenizer.json" in refused("no-tokenizer", classifier())

    ids, mask = keras_inputs(names=("tokens", "attention_mask"))
    renamed = keras.Model([ids, mask], {"logits": keras.layers.Dense(3)(masked_mean(embedded(ids), mask))})
    for form in ("keras", "exported"):
        message = refused(f"renamed-{form}", renamed, form)
        assert "unknown input 'tokens'" in message and "attention_mask, tokens" in message and "input_ids" in message

    two = classifier()
    two = keras.Model(two.inputs, {"logits": two.output["logits"], "other": two.output["logits"] * 2.0})
    answering = ModelSection(source="m", task=Task.QUESTION_ANSWERING)
    for form in ("keras", "exported"):
        message = refused(f"two-{form}", two, form, answering)
        assert "no output 'start_logits'" in message and "logits, other" in message

    assert "names 2 classes, the model gives 3" in refused("classes", classifier(), id2label={"0": "a", "1": "b"})
    assert "which classes it knows" in refused("unnamed", classifier(), "keras")
    assert "does not say what it is for" in refused("classes", None, section=ModelSection(source="m"))
    longer = ModelSection(source="m", task=Task.TEXT_CLASSIFICATION, max_length=64)
    assert "at most 32 tokens (config.json: max_length), not 64" in refused("three", classifier(), section=longer)

    (tmp_path / "three" / "saved_model.pb").write_bytes((tmp_path / "three" / "saved_model.pb").read_bytes()[:-100])
    assert "saved_model.pb is damaged" in refused("three", None)
    (tmp_path / "unnamed" / "other.keras").write_bytes(b"")
    assert "has 2 model files" in refused("unnamed", None)
    (tmp_path / "unnamed" / "model.keras").unlink()
    assert "other.keras is damaged" in refused("unnamed", None)


def test_a_graph_that_writes_files_is_refused_and_writes_none(tmp_path: Path) -> None:
    class Spy(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, None), tf.int32, name="input_ids")])
        def __call__(self, input_ids: Any) -> dict[str, Any]:
            tf.io.write_file(str(tmp_path / "stolen"), "data")
            return {"sentence_embedding": tf.cast(input_ids, tf.float32)}

    directory = source(tmp_path / "model", Spy(), "module", task="sentence-similarity")
    with pytest.raises(CheckpointError, match="has the operator WriteFile"):
        read_saved_model(directory).spec(ModelSection(source="m"))
    assert not (tmp_path / "stolen").exists()


def test_string_inputs_are_refused(tmp_path: Path) -> None:
    class Reader(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec((None, 1), tf.string, name="input_ids")])
        def __call__(self, input_ids: Any) -> dict[str, Any]:
            return {"logits": tf.cast(tf.strings.length(input_ids), tf.float32)}

    with pytest.raises(CheckpointError, match="'input_ids' is of type string"):
        read_saved_model(source(tmp_path / "model", Reader(), "module")).spec(ModelSection(source="m", task=Task.TEXT_CLASSIFICATION))


def test_a_class_whose_code_is_not_there_is_refused(tmp_path: Path) -> None:
    directory = source(tmp_path / "model", classifier(), "keras")
    with zipfile.ZipFile(directory / "model.keras") as archive:
        config = json.loads(archive.read("config.json"))
    with zipfile.ZipFile(directory / "model.keras", "w") as archive:
        archive.writestr("config.json", json.dumps(config | {"class_name": "MyModel"}))
    with pytest.raises(CheckpointError, match="of the class MyModel, whose code is not in the file"):
        read_saved_model(directory)
