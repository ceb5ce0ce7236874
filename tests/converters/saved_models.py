"""SavedModels and Keras files for tests: made by TensorFlow, sent through steps, answered by TensorFlow itself."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgeexport.converters._tensorflow_model import ENVIRONMENT, import_tensorflow
from zoo import as_rows

os.environ.update(ENVIRONMENT)
pytest.importorskip("tensorflow")

from edgeexport.artifact import Kind, Spec, digest_file
from edgeexport.catalog import find_step
from edgeexport.dataset import ROWS_FILE, Row
from edgeexport.policy import preset
from edgeexport.recipe import ModelSection
from edgeexport.saved_model import read_saved_model
from edgeexport.session import Payload, Session
from edgeexport.step import Context, View

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
            given = inputs | {"checkpoint": checkpoint, "calibration": self.dataset("calibration", as_rows(random_texts(20)))}
            inputs["ranges"] = self.step("measure_ranges", given, policy=preset("tflite", precision).measured)
        return self.step("quantize_tflite", inputs, precision=precision, policy=preset("tflite", precision))

    def session(self, checkpoint: View, model: View) -> Session:
        payload = self.step("assemble_payload", {"checkpoint": checkpoint, "model": model}, variant="v")
        return Session(Payload(payload.path), "v", "ai-edge-litert")


def outputs(session: Session, text: str, pair: str | None = None) -> dict[str, np.ndarray]:
    return session.outputs(session.encode(text, pair))


def original_logits(model: Any, text: str) -> np.ndarray:
    """float32 [classes], by the Keras model on the text alone, without padding."""
    ids = tokens(text)
    found = model([ids.astype(np.int32), np.ones_like(ids, np.int32)], training=False)
    return (found["logits"] if isinstance(found, dict) else found).numpy()[0]
