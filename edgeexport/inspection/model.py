"""The schema of what is in a model file."""

from __future__ import annotations

from typing import Literal

from edgeexport.artifact import Model
from edgeexport.target import Format

Computes = Literal["float", "int8", "int8-dynamic", "weights-int8", "other"]


class Value(Model):
    """An input or output of a model.

    Attributes:
        name: as it is bound.
        dtype: NumPy's name of the type.
        shape: one entry per axis; a dynamic one is its name, or ``?``.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Signature(Model):
    """A way to call the model; an ONNX file has one, named ``main``."""

    name: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


class OperatorUse(Model):
    """Operators of one type that compute in one way.

    Attributes:
        name: the operator's type, with its domain where that is not ONNX's own; a custom TFLite operator's code.
        version: TFLite's operator version; for ONNX the opset in which the operator got its present meaning.
        count: how many there are, in all signatures.
        computes: how the arithmetic is done.
            ``float``: in floating point.
            ``int8``: in integers (weights of 8 bits or fewer), with activation scales from calibration.
            ``int8-dynamic``: in integers, with activation scales found at run time.
            ``weights-int8``: in floating point, on weights that are stored in 8 bits or fewer and dequantized.
            ``other``: no arithmetic on activations: shapes, look-ups, moving data, changing its type.
        custom: it is not of the format's own operator set.
        per_channel: a TFLite operator that makes floating-point numbers from INT8 weights with one scale per channel. Quantizers do not
            raise the operator's version for it, though older runtimes can't do it.
    """

    name: str
    version: int
    count: int
    computes: Computes
    custom: bool = False
    per_channel: bool = False


class WeightGroup(Model):
    """Constants of one part of the model with one type. What several signatures share counts once.

    Attributes:
        group: embedding, attention, feed-forward, normalization, head, quantization (scales and zero points) or other.
        dtype: NumPy's name of the type.
        tensors: how many.
        elements: numbers in all of them.
        bytes: as stored.
    """

    group: str
    dtype: str
    tensors: int
    elements: int
    bytes: int


class StoredTensor(Model):
    """A constant.

    Attributes:
        name: the tensor's name.
        used_by: what uses it: a node's name, or of a TFLite operator the module that its output is named by. It tells more where the
            exporter named the tensor by a number.
        group: as in :class:`WeightGroup`.
        dtype: NumPy's name of the type.
        shape: as stored.
        bytes: as stored.
    """

    name: str
    used_by: str
    group: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int


class StoredTwice(Model):
    """Equal content in more than one place.

    Attributes:
        names: the constants.
        bytes: of one of them.
        wasted_bytes: of all but one.
    """

    names: tuple[str, ...]
    bytes: int
    wasted_bytes: int


class ModelReport(Model):
    """What is in a model file.

    A *weight* here is a constant with at least two axes longer than 1, of a floating or at most 16-bit integer type: a matrix, table or
    kernel. Vectors (biases, gains, scales) stay in higher precision in every INT8 scheme and are small; wider integers are indices.

    Attributes:
        file: its name.
        format: onnx, tflite or litertlm.
        bytes: of the file and of the files of external data that belong to it.
        external_bytes: of the latter.
        ir_version: of ONNX's container format.
        opsets: operator domain → version (ONNX).
        producer: what wrote the file, as it says itself.
        signatures: what can be called.
        operators: what computes.
        weight_groups: all constants, largest first.
        float_weights: the largest weights that are still in floating point, at most 20.
        stored_twice: constants of at least 1 KiB that are stored more than once, most wasteful first.
        integer_weight_share: elements of weights in integers of at most 8 bits / elements of all weights; None without weights.
        integer_compute_share: multiply-accumulates in integers / all, of the matrix products and convolutions with constant weights.
            Each counts as its weight's elements: exact between matrix products on the same tokens, a stand-in for convolutions. None
            without such operators.
        overhead_bytes: bytes that are no constants: the graph, names, padding.
        weights_behind_flatbuffer: whether a TFLite file holds weights behind the flatbuffer (Buffer.offset).
    """

    schema_version: Literal[1] = 1
    file: str
    format: Format
    bytes: int
    external_bytes: int = 0
    ir_version: int | None = None
    opsets: dict[str, int] = {}
    producer: str | None = None
    signatures: tuple[Signature, ...]
    operators: tuple[OperatorUse, ...]
    weight_groups: tuple[WeightGroup, ...]
    float_weights: tuple[StoredTensor, ...]
    stored_twice: tuple[StoredTwice, ...]
    integer_weight_share: float | None
    integer_compute_share: float | None
    overhead_bytes: int
    weights_behind_flatbuffer: bool = False
