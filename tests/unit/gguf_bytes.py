"""GGUF files byte by byte, as the specification lays them out (ggml, docs/gguf.md)."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any

UINT32, FLOAT32, BOOL, STRING, ARRAY, INT32 = 4, 6, 7, 8, 9, 5


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def typed(value: Any) -> bytes:
    """A value after the number of its type."""
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + text(value)
    if value and isinstance(value[0], str):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(text, value))
    if value and isinstance(value[0], float):
        return struct.pack(f"<IIQ{len(value)}f", ARRAY, FLOAT32, len(value), *value)
    return struct.pack(f"<IIQ{len(value)}i", ARRAY, INT32, len(value), *value)


def gguf(metadata: Mapping[str, Any], tensors: Mapping[str, tuple[Sequence[int], int, bytes]] | None = None, version: int = 3) -> bytes:
    """A file.

    Args:
        metadata: key → value.
        tensors: name → shape (as NumPy counts), number of its type, content.
        version: of the format.
    """
    tensors = tensors or {}
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(metadata))
    head += b"".join(text(key) + typed(value) for key, value in metadata.items())
    body = b""
    for name, (shape, kind, content) in tensors.items():
        body += bytes(-len(body) % 32)
        head += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, len(body))
        body += content
    return head + bytes(-len(head) % 32) + body
