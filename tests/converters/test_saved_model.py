"""SavedModels and Keras files on their way to TFLite, against TensorFlow's own outputs."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgeexport.converters._tensorflow_model import ENVIRONMENT, import_tensorflow

os.environ.update(ENVIRONMENT)
pytest.importorskip("tensorflow")

from edgeexport.artifact import Kind, Spec, Task, digest_file
from edgeexport.catalog import find_step
from edgeexport.dataset import ROWS_FILE, Row
from edgeexport.errors import CheckpointError
from edgeexport.policy import preset
from edgeexport.recipe import ModelSection
from edgeexport.saved_model import is_saved_model, read_saved_model
from edgeexport.saved_model_signature import TensorInfo, read_signature
from edgeexport.session import Payload, Session
from edgeexport.session.evidence import Answers, untruncated
from edgeexport.step import Context, Refusal, View

tf = import_tensorflow(1)
keras = tf.keras

LENGTHS = (8, 16, 32)
WORDS = [first + second for first in ("ba", "ke", "li", "mo", "nu", "pa", "re", "si")
         for second in ("n", "t", "r", "lo", "ma", "ku", "ze", "fi")]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
CLASSES = ("no", "maybe", "yes")
WIDTH = 32


def random_texts(count: int, longest: int = 30) -> list[str]:
    """Texts of one to `longest` words: with the two special tokens they fill every bucket."""
    rng = np.random.default_rng(7)
    return [" ".join(rng.choice(WORDS, size)) for size in np.linspace(1, longest, count).astype(int)]


TEXTS = random_texts(24)


def write_tokenizer(directory: Path) -> None:
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer.enable_padding(pad_id=0, pad_token="[PAD]", length=64)  # as a tokenizer from training has it; must not matter
    tokenizer.save(str(directory / "tokenizer.json"))


def tokens(text: str) -> np.ndarray:
    """int64 [1, seq], made without the tokenizers library."""
    return np.array([[2, *(VOCABULARY.index(word) for word in text.split()), 3]], np.int64)


def write_config(directory: Path, **facts: Any) -> None:
    (directory / "config.json").write_text(json.dumps({"max_length": LENGTHS[-1], "pad_token_id": 0} | facts))


def keras_inputs(dtype: str = "int32", shape: tuple[int | None, ...] = (None,),
                 names: Sequence[str] = ("input_ids", "attention_mask")) -> list[Any]:
    return [keras.Input(shape, dtype=dtype, name=name) for name in names]


def masked_mean(vectors: Any, mask: Any) -> Any:
    keep = keras.ops.expand_dims(keras.ops.cast(mask, "float32"), -1)
    return keras.ops.sum(vectors * keep, axis=1) / keras.ops.maximum(keras.ops.sum(keep, axis=1), 1.0)


def embedded(ids: Any) -> Any:
    return keras.layers.Embedding(len(VOCABULARY), WIDTH, embeddings_initializer="random_normal", name="words")(ids)


def classifier(*, attention: bool = False, named: bool = True, activation: str | None = None, dtype: str = "int32",
               shape: tuple[int | None, ...] = (None,)) -> Any:
    """A seeded Keras text classifier: embedding, perhaps a transformer block, masked mean, logits."""
    # Of the first seeds those whose best class is farthest ahead on every text, so that rounding to 8 bits can't change it.
    keras.utils.set_random_seed(13 if attention else 50)
    ids, mask = keras_inputs(dtype, shape)
    hidden = embedded(ids)
    if attention:
        attend = keras.ops.cast(keras.ops.expand_dims(mask, 1), "bool")
        attended = keras.layers.MultiHeadAttention(2, WIDTH // 2)(hidden, hidden, attention_mask=attend)
        hidden = keras.layers.LayerNormalization()(hidden + attended)
        hidden = hidden + keras.layers.Dense(WIDTH)(keras.layers.Dense(4 * WIDTH, activation="gelu")(hidden))
    logits = keras.layers.Dense(len(CLASSES), kernel_initializer=keras.initializers.RandomNormal(stddev=2.0), activation=activation)(
        masked_mean(hidden, mask))
    return keras.Model([ids, mask], {"logits": logits} if named else logits)


def spans() -> Any:
    """A Keras model for question answering that takes token types, all by name."""
    keras.utils.set_random_seed(5)
    inputs = {tensor.name: tensor for tensor in keras_inputs(names=("input_ids", "attention_mask", "token_type_ids"))}
    hidden = embedded(inputs["input_ids"]) + keras.layers.Embedding(2, WIDTH)(inputs["token_type_ids"])
    mean = keras.layers.Dense(WIDTH)(masked_mean(hidden, inputs["attention_mask"]))
    both = keras.layers.Dense(2)(keras.layers.Activation("gelu")(hidden + keras.ops.expand_dims(mean, 1)))
    return keras.Model(inputs, {"start_logits": both[:, :, 0], "end_logits": both[:, :, 1]})


class Embedder(tf.Module):
    """A model without Keras: int64 inputs, a sentence vector."""

    def __init__(self) -> None:
        super().__init__()
        rng = np.random.default_rng(11)
        self.table = tf.Variable(rng.normal(size=(len(VOCABULARY), WIDTH)).astype(np.float32))
        self.matrix = tf.Variable(rng.normal(size=(WIDTH, 24)).astype(np.float32))

    @tf.function(input_signature=[tf.TensorSpec((None, None), tf.int64, name=name) for name in ("input_ids", "attention_mask")])
    def __call__(self, input_ids: Any, attention_mask: Any) -> dict[str, Any]:
        keep = tf.cast(attention_mask, tf.float32)[:, :, None]
        vector = tf.reduce_sum(tf.gather(self.table, input_ids) * keep, axis=1) / tf.reduce_sum(keep, axis=1)
        return {"sentence_embedding": tf.math.l2_normalize(tf.tanh(vector @ self.matrix), axis=-1)}

    def by_hand(self, ids: np.ndarray) -> np.ndarray:
        """The vector of one text, float32 [24], in NumPy."""
        vector = np.tanh(self.table.numpy()[ids[0]].mean(axis=0) @ self.matrix.numpy())
        return vector / np.linalg.norm(vector)


def source(directory: Path, model: Any, form: str, **facts: Any) -> Path:
    """A user's directory: the model in one of its forms, tokenizer.json and config.json."""
    directory.mkdir()
    if form == "keras":
        model.save(directory / "model.keras")
    elif form == "exported":
        model.export(directory, verbose=False)
    else:
        tf.saved_model.save(model, str(directory), signatures={"serving_default": model.__call__})
    write_tokenizer(directory)
    write_config(directory, **facts)
    return directory


@dataclass
class Build:
    """Runs steps, each into a directory of its own."""

    root: Path
    section: ModelSection

    def step(self, name: str, inputs: dict[str, View], **options: Any) -> View:
        out = self.root / f"{name}{len(list(self.root.iterdir()))}"
        scratch = self.root / f"{out.name}-scratch"
        out.mkdir()
        scratch.mkdir()
        return View(out, find_step(name)(**options).run(inputs, out, Context(scratch=scratch)))

    def load(self, directory: Path) -> View:
        model = read_saved_model(directory)
        digests = {name: digest_file(model.path / name) for name in model.sizes}
        given = View(model.path, Spec(kind=Kind.SOURCE, facts={"digests": digests}))
        return self.step("load_checkpoint", {"source": given}, spec=model.spec(self.section), text=model.text_spec(self.section).as_dict())

    def dataset(self, name: str, rows: Sequence[Row]) -> View:
        path = self.root / f"data-{name}"
        path.mkdir()
        (path / ROWS_FILE).write_text("".join(row.model_dump_json(exclude_none=True) + "\n" for row in rows))
        return View(path, Spec(kind=Kind.DATASET))

    def quantize(self, checkpoint: View, model: View, precision: str) -> View:
        inputs = {"model": model}
        if precision == "static-int8":
            inputs |= {"checkpoint": checkpoint, "calibration": self.dataset("calibration", as_rows(random_texts(20)))}
        return self.step("quantize_tflite", inputs, precision=precision, policy=preset("tflite", precision))

    def session(self, checkpoint: View, model: View) -> Session:
        payload = self.step("assemble_payload", {"checkpoint": checkpoint, "model": model}, variant="v")
        return Session(Payload(payload.path), "v", "ai-edge-litert")


@pytest.fixture
def build(tmp_path: Path) -> Callable[..., Build]:
    def make(task: Task, **options: Any) -> Build:
        root = tmp_path / "steps"
        root.mkdir()
        return Build(root, ModelSection(source="model", task=task, **options))

    return make


def as_rows(texts: Sequence[str]) -> list[Row]:
    return [Row(id=str(number), text=text) for number, text in enumerate(texts)]


def outputs(session: Session, text: str, pair: str | None = None) -> dict[str, np.ndarray]:
    return session.outputs(session.encode(text, pair))


def original_logits(model: Any, text: str) -> np.ndarray:
    """float32 [classes], by the Keras model on the text alone, without padding."""
    ids = tokens(text)
    found = model([ids.astype(np.int32), np.ones_like(ids, np.int32)], training=False)
    return (found["logits"] if isinstance(found, dict) else found).numpy()[0]


@pytest.mark.parametrize(("form", "options"), [
    ("keras", {}), ("exported", {}), ("keras", {"attention": True}), ("exported", {"attention": True}),
    ("keras", {"named": False}), ("exported", {"named": False}), ("exported", {"dtype": "int64"}), ("keras", {"dtype": "float32"})])
def test_classifier_answers_as_in_tensorflow(tmp_path: Path, build: Callable[..., Build], form: str, options: dict[str, Any]) -> None:
    model = classifier(**options)
    steps = build(Task.TEXT_CLASSIFICATION)
    checkpoint = steps.load(source(tmp_path / "model", model, form, id2label=dict(enumerate(CLASSES))))
    converted = steps.step("convert_saved_model", {"checkpoint": checkpoint}, lengths=LENGTHS)
    expected = {text: original_logits(model, text) for text in TEXTS}

    assert converted.spec.parameters == model.count_params()
    assert converted.spec.bytes == (converted.path / "model.tflite").stat().st_size
    session = steps.session(checkpoint, converted)
    assert session.model.lengths == LENGTHS
    for text, logits in expected.items():
        assert outputs(session, text)["logits"][0] == pytest.approx(logits, abs=1e-5)
        answer = session.answer(text)
        assert [entry["label"] for entry in answer] == [CLASSES[i] for i in np.argsort(-logits)]

    spread = float(np.std(list(expected.values())))
    for precision in ("dynamic-int8", "weight-only-int8"):
        session = steps.session(checkpoint, steps.quantize(checkpoint, converted, precision))
        for text, logits in expected.items():
            found = outputs(session, text)["logits"][0]
            assert found == pytest.approx(logits, abs=0.05 * spread), precision
            assert found.argmax() == logits.argmax(), precision


def test_static_int8_runs(tmp_path: Path, build: Callable[..., Build]) -> None:
    model, steps = classifier(), build(Task.TEXT_CLASSIFICATION)
    checkpoint = steps.load(source(tmp_path / "model", model, "exported", id2label=dict(enumerate(CLASSES))))
    converted = steps.step("convert_saved_model", {"checkpoint": checkpoint}, lengths=LENGTHS)
    session = steps.session(checkpoint, steps.quantize(checkpoint, converted, "static-int8"))
    right = [outputs(session, text)["logits"][0].argmax() == original_logits(model, text).argmax() for text in TEXTS]
    assert np.mean(right) > 0.8


def test_weights_are_stored_once_and_the_table_is_quantized(tmp_path: Path, build: Callable[..., Build]) -> None:
    model, steps = classifier(), build(Task.TEXT_CLASSIFICATION)
    checkpoint = steps.load(source(tmp_path / "model", model, "keras", id2label=dict(enumerate(CLASSES))))
    converted = steps.step("convert_saved_model", {"checkpoint": checkpoint}, lengths=LENGTHS)
    table = model.get_layer("words").embeddings.numpy()
    assert (converted.path / "model.tflite").read_bytes().count(table.tobytes()) == 1
    assert operators(converted) >= {"EMBEDDING_LOOKUP"}
    assert not operators(converted) & {"GATHER", "READ_VARIABLE"}

    quantized = (steps.quantize(checkpoint, converted, "dynamic-int8").path / "model.tflite").read_bytes()
    rounded = np.rint(table / (np.abs(table).max(axis=1, keepdims=True) / 127)).astype(np.int8)
    assert quantized.count(rounded.tobytes()) == 1
    assert table.tobytes() not in quantized


def operators(model: View) -> set[str]:
    from ai_edge_litert import schema_py_generated as schema

    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    codes = schema.ModelT.InitFromPackedBuf((model.path / "model.tflite").read_bytes(), 0).operatorCodes
    return {names[code.builtinCode] for code in codes}


def test_embedder_with_int64_inputs_equals_numpy(tmp_path: Path, build: Callable[..., Build]) -> None:
    model, steps = Embedder(), build(Task.SENTENCE_SIMILARITY)
    checkpoint = steps.load(source(tmp_path / "model", model, "module"))
    assert json.loads((checkpoint.path / "text.json").read_text())["pooling"] is None
    converted = steps.step("convert_saved_model", {"checkpoint": checkpoint}, lengths=LENGTHS)
    exact, rough = (steps.session(checkpoint, view) for view in (converted, steps.quantize(checkpoint, converted, "dynamic-int8")))
    for text in TEXTS:
        expected = model.by_hand(tokens(text))
        assert exact.answer(text) == pytest.approx(expected, abs=1e-5)
        assert rough.answer(text) @ expected > 0.995


def test_spans_by_named_inputs_and_outputs(tmp_path: Path, build: Callable[..., Build]) -> None:
    model, steps = spans(), build(Task.QUESTION_ANSWERING)
    question, context = TEXTS[2], TEXTS[9]
    for form in ("keras", "exported"):
        checkpoint = steps.load(source(tmp_path / form, model, form))
        assert json.loads((checkpoint.path / "text.json").read_text())["inputs"] == ["input_ids", "attention_mask", "token_type_ids"]
        converted = steps.step("convert_saved_model", {"checkpoint": checkpoint}, lengths=LENGTHS)
        found = outputs(steps.session(checkpoint, converted), question, context)
        ids = np.concatenate([tokens(question), tokens(context)[:, 1:]], axis=1)
        types = np.array([[0] * tokens(question).shape[1] + [1] * (tokens(context).shape[1] - 1)])
        expected = model({"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": types}, training=False)
        for name, value in expected.items():
            assert found[name][0, :ids.shape[1]] == pytest.approx(value.numpy()[0], abs=1e-5)


@pytest.mark.parametrize("form", ["keras", "exported"])
def test_a_model_without_a_mask_hides_padding_itself(tmp_path: Path, build: Callable[..., Build], form: str) -> None:
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((None,), dtype="int32", name="input_ids"),
                              keras.layers.Embedding(len(VOCABULARY), WIDTH, mask_zero=True),
                              keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(len(CLASSES))])
    steps = build(Task.TEXT_CLASSIFICATION)
    checkpoint = steps.load(source(tmp_path / "model", model, form, id2label=dict(enumerate(CLASSES))))
    session = steps.session(checkpoint, steps.step("convert_saved_model", {"checkpoint": checkpoint}, lengths=LENGTHS))
    for text in TEXTS:
        assert outputs(session, text)["logits"][0] == pytest.approx(model(tokens(text), training=False).numpy()[0], abs=1e-5)


@pytest.mark.parametrize("form", ["keras", "exported"])
def test_fixed_length(tmp_path: Path, build: Callable[..., Build], form: str) -> None:
    directory = source(tmp_path / "model", classifier(shape=(24,)), form, id2label=dict(enumerate(CLASSES)))
    steps = build(Task.TEXT_CLASSIFICATION)
    found = read_saved_model(directory)
    assert found.fixed_length == 24
    assert found.text_spec(steps.section).own_max_length == 24
    refused = find_step("convert_saved_model")(lengths=(16, 24)).infer({"checkpoint": found.spec(steps.section)})
    assert isinstance(refused, Refusal) and "fixed length 24" in refused.reason

    checkpoint = steps.load(directory)
    session = steps.session(checkpoint, steps.step("convert_saved_model", {"checkpoint": checkpoint}, lengths=(24,)))
    free = classifier()  # the same seed, any length
    for text in TEXTS[:16]:
        assert outputs(session, text)["logits"][0] == pytest.approx(original_logits(free, text), abs=1e-5)


@pytest.mark.parametrize(("form", "shape"), [("keras", (None,)), ("exported", (None,)), ("exported", (32,))])
def test_reference_is_tensorflows_own_answer(tmp_path: Path, build: Callable[..., Build], form: str, shape: tuple[int | None, ...]) -> None:
    model = classifier(attention=True, shape=shape)
    free = classifier(attention=True)
    steps = build(Task.TEXT_CLASSIFICATION, max_length=16)
    checkpoint = steps.load(source(tmp_path / "model", model, form, id2label=dict(enumerate(CLASSES))))
    inputs = {"checkpoint": checkpoint, "texts": steps.dataset("texts", as_rows(TEXTS))}
    view = steps.step("compute_saved_model_reference", inputs, datasets=("texts",), untruncated=("texts",))
    for name, longest in (("texts", 16), (untruncated("texts"), LENGTHS[-1])):
        found = Answers.load(view.path / f"{name}.npz")
        for i, text in enumerate(TEXTS):
            cut = " ".join(text.split()[:longest - 2])
            assert found.numbers[i][0] == pytest.approx(original_logits(free, cut), abs=1e-5)
            assert found.decisions[i] == [int(original_logits(free, cut).argmax())]
            assert found.truncated[i] == (cut != text)
            assert found.tokens[i] == tokens(cut).shape[1]


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


@pytest.mark.parametrize("form", ["keras", "exported"])
@pytest.mark.parametrize(("activation", "message"), [("softmax", "holds probabilities"), ("sigmoid", "holds probabilities"),
                                                     ("erfinv", "TFLite does not have: Erfinv")])
def test_refused_by_the_converter(tmp_path: Path, build: Callable[..., Build], form: str, activation: str, message: str) -> None:
    if activation == "erfinv":
        model = classifier()
        model = keras.Model(model.inputs, {"logits": keras.ops.erfinv(model.output["logits"])})
    else:
        model = classifier(activation=activation)
    steps = build(Task.TEXT_CLASSIFICATION)
    checkpoint = steps.load(source(tmp_path / "model", model, form, id2label=dict(enumerate(CLASSES))))
    with pytest.raises(CheckpointError, match=message):
        steps.step("convert_saved_model", {"checkpoint": checkpoint}, lengths=(8,))


def test_a_model_with_state_is_refused(tmp_path: Path, build: Callable[..., Build]) -> None:
    class Counter(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.calls = tf.Variable(0.0)

        @tf.function(input_signature=[tf.TensorSpec((None, None), tf.int32, name=name) for name in ("input_ids", "attention_mask")])
        def __call__(self, input_ids: Any, attention_mask: Any) -> dict[str, Any]:
            return {"logits": tf.cast(input_ids * attention_mask, tf.float32)[:, :2] + self.calls.assign_add(1.0)}

    steps = build(Task.TEXT_CLASSIFICATION)
    checkpoint = steps.load(source(tmp_path / "model", Counter(), "module", id2label={"0": "a", "1": "b"}))
    with pytest.raises(CheckpointError, match="variables that it changes while it runs"):
        steps.step("convert_saved_model", {"checkpoint": checkpoint}, lengths=(8,))
