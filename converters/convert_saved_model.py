"""A SavedModel or Keras file as a float32 TFLite file: one signature for each length bucket, all sharing their weights."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from edgeexport.artifact import Kind, Spec, Task
from edgeexport.errors import CheckpointError
from edgeexport.session.run_tflite import SIGNATURE_PREFIX
from edgeexport.session.text import TextSpec, read_text_spec
from edgeexport.step import Context, Refusal, Step, View

from ._embedding_lookup import use_embedding_lookup
from ._tensorflow_model import TensorflowModel, import_tensorflow
from ._tflite_file import LARGEST, read_model, write_compactly

# How the converter's error names an operator: as one that it knows only from TensorFlow, or as one that it could not translate.
UNKNOWN_OPERATOR = re.compile(r"'tf\.(\w+)' op is neither a custom op nor a flex op|failed to legalize operation 'tf\.(\w+)'")


class ConvertSavedModel(Step):
    """Convert with TensorFlow's converter, to TFLite's own operators only.

    Attributes:
        lengths: length buckets in tokens, rising; the last is the longest text.
    """

    name: ClassVar[str] = "convert_saved_model"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {"checkpoint": frozenset({Kind.SAVED_MODEL})}
    backends: ClassVar[tuple[str, ...]] = ("tensorflow-cpu", "keras", "ai-edge-litert", "flatbuffers")
    extra: ClassVar[str | None] = "tensorflow"
    seconds_guess: ClassVar[float] = 20.0

    lengths: tuple[int, ...]

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        """A float32 model; its size is known when the weights are."""
        checkpoint = inputs["checkpoint"]
        fixed = checkpoint.facts.get("fixed_length")
        if fixed is not None and self.lengths != (fixed,):
            return Refusal(reason=f"the model takes the fixed length {fixed} only, not {', '.join(map(str, self.lengths))}",
                           hint=f"set lengths = [{fixed}] below [export], or save the model with a dynamic length")
        return Spec(kind=Kind.TFLITE, task=checkpoint.task, architecture=checkpoint.architecture, precision="float32",
                    parameters=checkpoint.parameters, lengths=self.lengths)

    def memory_mb(self, inputs: Mapping[str, Spec]) -> int:
        """TensorFlow alone takes 700 MB; converter and flatbuffer hold the weights several times (1.8 GB for 90 MB of them)."""
        return 900 + 13 * (inputs["checkpoint"].bytes or 0) // 1_000_000

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Trace the model once for each length, save the traces together, and convert them together."""
        tf = import_tensorflow(context.threads)
        path, spec = inputs["checkpoint"]
        context.report(None, "loading the model")
        text = read_text_spec(path / "text.json")
        model = TensorflowModel(path, spec, text, tf)
        if 4 * (model.parameters or 0) >= LARGEST:
            raise CheckpointError("The model is too large for TFLite.",
                                  why="TensorFlow's converter writes at most 2 GB, and the float32 weights take "
                                      f"{4 * (model.parameters or 0) / 1e9:.1f} GB")
        context.report(None, f"tracing {len(self.lengths)} lengths")
        traced = context.scratch / "traced"
        shutil.rmtree(traced, ignore_errors=True)
        save_traces(tf, model, text, self.lengths, traced)
        context.report(None, f"converting {len(self.lengths)} lengths")
        data = convert(tf, traced, self.lengths)
        context.report(None, "writing")
        file = out / "model.tflite"
        write_finished(file, data, spec)
        found: Spec = self.infer({"checkpoint": spec})  # type: ignore[assignment]
        return found.model_copy(update={"parameters": model.parameters, "bytes": file.stat().st_size})


def save_traces(tf: Any, model: TensorflowModel, text: TextSpec, lengths: tuple[int, ...], directory: Path) -> None:
    """Save the model with a signature for each length: inputs int32 [1, length], outputs named as in :mod:`edgeexport.session.tasks`."""
    module = tf.Module()
    module.kept = model.variables  # what a module does not hold is not saved
    signatures = {}
    for length in lengths:
        shapes = [tf.TensorSpec((1, length), tf.int32, name=name) for name in text.inputs]
        signatures[f"{SIGNATURE_PREFIX}{length}"] = tf.function(lambda *values: model(dict(zip(text.inputs, values, strict=True))),
                                                                input_signature=shapes, autograph=False)
    tf.saved_model.save(module, str(directory), signatures=signatures)


def convert(tf: Any, directory: Path, lengths: tuple[int, ...]) -> bytes:
    """The TFLite file of a SavedModel.

    Raises:
        CheckpointError: it needs operators that TFLite has not; they are named.
    """
    from tensorflow.lite.python.convert import ConverterError

    keys = [f"{SIGNATURE_PREFIX}{length}" for length in lengths]
    converter = tf.lite.TFLiteConverter.from_saved_model(str(directory), signature_keys=keys)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    try:
        return bytes(converter.convert())
    except ConverterError as exc:
        missing = sorted({name for pair in UNKNOWN_OPERATOR.findall(str(exc)) for name in pair if name})
        if not missing:
            raise CheckpointError("TensorFlow cannot convert the model.", why=str(exc).strip().splitlines()[0]) from exc
        recurrent = any(name.startswith("TensorList") for name in missing)
        raise CheckpointError(f"The model uses operators that TFLite does not have: {', '.join(missing)}.",
                              why="the runtimes of the lanes hold TFLite's own operators only, not TensorFlow's (Select TF)",
                              hint="save recurrent layers as a Keras file, model.save('model.keras'): its lengths are traced one by one"
                              if recurrent else "build the model without them") from exc


def write_finished(target: Path, data: bytes, spec: Spec) -> None:
    """Write the file as it is shipped: tables that can be quantized, everything once.

    Raises:
        CheckpointError: the weights did not get into the file, or it gives probabilities where logits are meant.
    """
    from ai_edge_litert import schema_py_generated as schema

    model = read_model(data)
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}
    codes = [names[code.builtinCode] for code in model.operatorCodes]
    if "READ_VARIABLE" in codes:
        raise CheckpointError("The model has variables that it changes while it runs.", why="the TFLite file would not hold their values",
                              hint="save it for inference, without state from one text to the next")
    refuse_probabilities(model, codes, spec)
    use_embedding_lookup(model)
    write_compactly(target, model)


def refuse_probabilities(model: Any, codes: list[str], spec: Spec) -> None:
    """Check that logits are logits: whoever reads the answers applies softmax or sigmoid, and twice is wrong.

    Raises:
        CheckpointError: an output comes from a softmax or a sigmoid.
    """
    if spec.task in {Task.FEATURE_EXTRACTION, Task.SENTENCE_SIMILARITY} or spec.facts.get("problem_type") == "regression":
        return
    for signature in model.signatureDefs:
        graph = model.subgraphs[signature.subgraphIndex]
        makers = {int(index): operator for operator in graph.operators for index in operator.outputs}
        for output in signature.outputs:
            maker = makers.get(output.tensorIndex)
            while maker is not None and codes[maker.opcodeIndex] == "RESHAPE":
                maker = makers.get(int(maker.inputs[0]))
            if maker is not None and codes[maker.opcodeIndex] in {"SOFTMAX", "LOGISTIC"}:
                function = "softmax" if codes[maker.opcodeIndex] == "SOFTMAX" else "sigmoid"
                raise CheckpointError(f"The output '{output.name.decode()}' holds probabilities, not logits.",
                                      why=f"its last operator is a {function}, which is applied to the logits when an answer is read",
                                      hint="save the model without it: model.layers[-1].activation = None in Keras")
