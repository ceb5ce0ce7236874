"""What a model's constants amount to: where the bytes are, what is still float, what is stored twice. The same for both formats."""

from __future__ import annotations

import hashlib
import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import prod

from edgeexport.inspection.model import Computes, StoredTensor, StoredTwice, WeightGroup

FLOATS = frozenset({"float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz",
                    "float4_e2m1fn"})
BYTE_INTEGERS = frozenset({"int8", "uint8", "int4", "uint4", "int2", "uint2"})
# Wider integers are indices and shapes; a boolean table is a mask.
WEIGHT_TYPES = FLOATS | BYTE_INTEGERS | {"int16", "uint16"}

# Below this, equal constants are shapes and axes, and sharing them saves nothing.
LEAST_BYTES_STORED_TWICE = 1024
MOST_FLOAT_WEIGHTS = 20

QUANTIZATION = "quantization"
OTHER = "other"

# The first group that matches a name decides, so the order matters: a normalization inside the attention block is a normalization, and
# what is in the attention block belongs to it, whatever it is called.
# Source: module names of Transformers' bert, distilbert, roberta, mpnet, electra, gpt2, t5, llama, vit and their likes.
GROUPS = {
    "normalization": r"norm|(^|[./_])ln(_?\w)?([./_]|$)",
    "embedding": r"embed|(^|[./_])w[tp]e([./_]|$)|(^|[./])shared([./]|$)",
    "attention": r"attention|attn|(^|[./_])([qkvo]_proj|[qkv]_lin|query|key|value)([./_;]|$)",
    "feed-forward": r"feed_?forward|ffn|mlp|intermediate|densereludense|expert|bertoutput|(gate|up|down)_proj|(^|[./_])(fc|lin)\d"
                    r"|layers?[._]\d+[./]output",
    "head": r"classifier|lm_head|qa_outputs|pooler|predictions|pre_classifier|(^|[./_])score([./]|$)",
}
_GROUPS = {group: re.compile(pattern) for group, pattern in GROUPS.items()}
_OPERATOR_GROUPS = {"Gather": "embedding", "GatherBlockQuantized": "embedding", "EMBEDDING_LOOKUP": "embedding", "GATHER": "embedding",
                    "LayerNormalization": "normalization", "SkipLayerNormalization": "normalization",
                    "SimplifiedLayerNormalization": "normalization", "RMSNormalization": "normalization"}


@dataclass(frozen=True)
class Constant:
    """A constant as a file holds it.

    Attributes:
        name: the tensor's name.
        used_by: the name of what uses it; empty where nothing does.
        group: as in :class:`WeightGroup`.
        dtype: NumPy's name of the type.
        shape: as stored.
        elements: how many numbers; differs from the shape's product where several are packed into one.
        size: bytes, as stored.
        content: reads the stored bytes.
    """

    name: str
    used_by: str
    group: str
    dtype: str
    shape: tuple[int, ...]
    elements: int
    size: int
    content: Callable[[], bytes] = field(repr=False, compare=False)

    @property
    def is_weight(self) -> bool:
        """Whether it counts as a weight in the shares; see :class:`edgeexport.inspection.model.ModelReport`."""
        return self.group != QUANTIZATION and self.dtype in WEIGHT_TYPES and sum(size > 1 for size in self.shape) >= 2


@dataclass(frozen=True)
class Product:
    """A matrix product or convolution with constant weights.

    Attributes:
        elements: of the weights.
        computes: how.
    """

    elements: int
    computes: Computes


def group_of(names: Iterable[str], operator: str) -> str:
    """The part of the model a constant belongs to, from names that tell of it, most telling first, and the operator that uses it."""
    for name in names:
        lowered = name.lower()
        for group, pattern in _GROUPS.items():
            if pattern.search(lowered):
                return group
    return _OPERATOR_GROUPS.get(operator, OTHER)


def grouped(constants: Iterable[Constant]) -> tuple[WeightGroup, ...]:
    """The constants by group and type, largest first."""
    found: dict[tuple[str, str], list[Constant]] = defaultdict(list)
    for constant in constants:
        found[constant.group, constant.dtype].append(constant)
    groups = [WeightGroup(group=group, dtype=dtype, tensors=len(members), elements=sum(c.elements for c in members),
                          bytes=sum(c.size for c in members)) for (group, dtype), members in found.items()]
    return tuple(sorted(groups, key=lambda group: (-group.bytes, group.group, group.dtype)))


def still_float(constants: Iterable[Constant]) -> tuple[StoredTensor, ...]:
    """The largest weights in floating point."""
    left = sorted((c for c in constants if c.is_weight and c.dtype in FLOATS), key=lambda c: (-c.size, c.name))
    return tuple(StoredTensor(name=c.name, used_by=c.used_by, group=c.group, dtype=c.dtype, shape=c.shape, bytes=c.size)
                 for c in left[:MOST_FLOAT_WEIGHTS])


def stored_twice(constants: Iterable[Constant]) -> tuple[StoredTwice, ...]:
    """Constants with equal content, most wasteful first."""
    by_size: dict[int, list[Constant]] = defaultdict(list)
    for constant in constants:
        if constant.size >= LEAST_BYTES_STORED_TWICE:
            by_size[constant.size].append(constant)
    found = []
    for size, members in by_size.items():
        if len(members) < 2:
            continue
        equal: dict[bytes, list[str]] = defaultdict(list)
        for constant in members:
            equal[hashlib.blake2b(constant.content(), digest_size=16).digest()].append(constant.name)
        found += [StoredTwice(names=tuple(names), bytes=size, wasted_bytes=size * (len(names) - 1))
                  for names in equal.values() if len(names) > 1]
    return tuple(sorted(found, key=lambda item: (-item.wasted_bytes, item.names)))


def integer_weight_share(constants: Iterable[Constant]) -> float | None:
    """Elements of weights in integers of at most 8 bits / elements of all weights."""
    weights = [c for c in constants if c.is_weight]
    return _share(sum(c.elements for c in weights if c.dtype in BYTE_INTEGERS), sum(c.elements for c in weights))


def integer_compute_share(products: Iterable[Product]) -> float | None:
    """Multiply-accumulates in integers / all, with the weights' elements in place of multiply-accumulates."""
    products = list(products)
    return _share(sum(p.elements for p in products if p.computes in {"int8", "int8-dynamic"}), sum(p.elements for p in products))


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def count(shape: Iterable[int]) -> int:
    """Elements of a tensor of that shape."""
    return prod(shape)
