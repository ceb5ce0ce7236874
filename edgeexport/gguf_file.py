"""A GGUF file, read as far as its header: metadata, and the name, shape and type of every tensor. No weight is read, but to see whether the table of
tokens stands there twice.

Source: the GGUF specification (ggml, docs/gguf.md) and the block layouts of ggml-common.h.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from edgeexport.errors import CheckpointError

MAGIC = b"GGUF"
# Version 1 counted in 32 bits and was in use for two months of 2023.
VERSIONS = (2, 3)
ALIGNMENT = 32
# Keys of the tokens, and of the chat template.
TOKENS, TEMPLATE = "tokenizer.ggml.tokens", "tokenizer.chat_template"
# The table of tokens, and the matrix that answers; where the two are one, some of llama.cpp's converters write it twice.
TABLE, HEAD = "token_embd.weight", "output.weight"
# Of an architecture: how many tokens back attention sees.
WINDOW = "attention.sliding_window"
DAMAGED = "download or copy the file again"

# Type number → name, weights in a block, bytes of a block.
TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 28: ("F64", 1, 8),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8),
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136), 29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}
CHUNK = 1 << 24
EXACT = frozenset({"F32", "F16", "BF16", "F64"})

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class Tensor:
    """A tensor of the file.

    Attributes:
        shape: as NumPy counts, the fastest dimension last.
        type: its name, such as ``Q4_1``.
        offset: of its first byte from the beginning of the file.
        size: in bytes.
    """

    shape: tuple[int, ...]
    type: str
    offset: int
    size: int

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return prod(self.shape)


@dataclass(frozen=True)
class GgufHeader:
    """What a file says of itself.

    Attributes:
        metadata: key → value; an array is a list.
        tensors: name → where it is.
    """

    metadata: dict[str, Any]
    tensors: dict[str, Tensor]


class _Cursor:
    """Reads one value after another; a file that ends too early is damaged."""

    def __init__(self, data: mmap.mmap) -> None:
        self._data, self.position = data, 0

    def scalar(self, form: str) -> Any:
        (value,) = struct.unpack_from(f"<{form}", self._data, self.position)
        self.position += struct.calcsize(form)
        return value

    def bytes(self) -> bytes:
        """What its length is written before."""
        length = self.scalar("Q")
        end = self.position + length
        if end > len(self._data):
            raise struct.error("a string reaches beyond the end")
        found = self._data[self.position:end]
        self.position = end
        return found

    def equal(self, one: int, other: int, size: int) -> bool:
        """Whether so many bytes are the same at two places."""
        return all(self._data[one + start:one + min(start + CHUNK, size)] == self._data[other + start:other + min(start + CHUNK, size)]
                   for start in range(0, size, CHUNK))

    def string(self) -> str:
        return self.bytes().decode("utf-8")

    def value(self, kind: int) -> Any:
        """A value of a kind of metadata; a list of an array."""
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            inner, length = self.scalar("I"), self.scalar("Q")
            if inner in _SCALARS:
                found = struct.unpack_from(f"<{length}{_SCALARS[inner]}", self._data, self.position)
                self.position += struct.calcsize(f"<{length}{_SCALARS[inner]}")
                return list(found)
            return [self.value(inner) for _ in range(length)]
        return self.scalar(_SCALARS[kind])


def read_gguf_header(path: Path) -> GgufHeader:
    """The header of a GGUF file, after checking that all the data it promises is there.

    Raises:
        CheckpointError: it is no GGUF file, damaged, cut off, or has a tensor of a type that nobody here can read.
    """
    size = path.stat().st_size
    if size < len(MAGIC):
        raise CheckpointError(f"{path} is not a GGUF file.", why="it is empty" if not size else "it has no header", hint=DAMAGED)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[:len(MAGIC)] != MAGIC:
            raise CheckpointError(f"{path} is not a GGUF file.", why=f"it does not begin with {MAGIC.decode()}", hint=DAMAGED)
        cursor = _Cursor(data)
        cursor.position = len(MAGIC)
        try:
            return _read_header(path, cursor, size)
        except (struct.error, ValueError, KeyError, MemoryError, ArithmeticError, RecursionError) as exc:
            raise CheckpointError(f"{path} is damaged.", why="it ends within its header, or that is not readable",
                                  hint=DAMAGED) from exc


def _read_header(path: Path, cursor: _Cursor, size: int) -> GgufHeader:
    version = cursor.scalar("I")
    if version not in VERSIONS:
        raise CheckpointError(f"{path} is of GGUF version {version}.", why=f"known are {' and '.join(map(str, VERSIONS))}",
                              hint="convert it with a llama.cpp of 2023-10 or later; a big-endian file can't be read here")
    tensors, entries = cursor.scalar("Q"), cursor.scalar("Q")
    metadata = {}
    for _ in range(entries):
        key = cursor.string()
        metadata[key] = cursor.value(cursor.scalar("I"))
    described = []
    for _ in range(tensors):
        name, dimensions = cursor.string(), cursor.scalar("I")
        shape = tuple(cursor.scalar("Q") for _ in range(dimensions))[::-1]
        described.append((name, shape, cursor.scalar("I"), cursor.scalar("Q")))
    alignment = int(metadata.get("general.alignment", ALIGNMENT))
    begin = -(-cursor.position // alignment) * alignment
    found = {}
    for name, shape, number, offset in described:
        if number not in TYPES:
            raise CheckpointError(f"{path}: the tensor {name} has a quantization type that is not known here.", why=f"type {number} of ggml",
                                  hint="convert the original checkpoint to another type, such as Q8_0 or F16, or name the original as source")
        label, block, block_bytes = TYPES[number]
        found[name] = Tensor(shape, label, begin + offset, prod(shape) // block * block_bytes)
    end = max((tensor.offset + tensor.size for tensor in found.values()), default=begin)
    if end > size:
        raise CheckpointError(f"{path} is cut off.", why=f"its header promises {end:,} bytes, it has {size:,}", hint=DAMAGED)
    table, head = found.get(TABLE), found.get(HEAD)
    if table and head and (table.shape, table.type) == (head.shape, head.type) and cursor.equal(table.offset, head.offset, table.size):
        del found[HEAD]
    return GgufHeader(metadata, found)
