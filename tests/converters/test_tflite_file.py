"""The compact TFLite file against the quantizer's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from edgeexport.converters import _tflite_file
from edgeexport.converters._tflite_file import mapped, read_model, write_compactly
from int8 import CLASSIFIER, model_file, packed
from tiny import LENGTHS
from zoo import Zoo


@pytest.fixture(scope="module")
def raw(zoo: Zoo) -> bytes:
    from ai_edge_quantizer import quantizer

    tool = quantizer.Quantizer(str(model_file(zoo.exported(CLASSIFIER, "tflite"))))
    tool.add_dynamic_config(".*", "*", num_bits=8)
    return bytes(tool.quantize().quantized_model)


def compact(content: bytes, folder: Path) -> bytes:
    """What is written of a model."""
    write_compactly(folder / "compact.tflite", read_model(content))
    return (folder / "compact.tflite").read_bytes()


def assert_same_answers(*contents: bytes) -> None:
    """To the bit, in every signature."""
    from ai_edge_litert.interpreter import Interpreter

    one, other = (Interpreter(model_content=content, num_threads=1) for content in contents)
    assert one.get_signature_list() == other.get_signature_list()
    rng = np.random.default_rng(0)
    for length in LENGTHS:
        ids, mask = rng.integers(5, 400, (1, length)).astype(np.int32), np.ones((1, length), np.int32)
        mask[0, length // 2:] = 0
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        found = [each.get_signature_runner(f"seq_{length}")(**feeds)["logits"] for each in (one, other)]
        assert found[0].tobytes() == found[1].tobytes()
        assert np.abs(found[0]).max() > 0.1


def test_answers_are_the_same(raw: bytes, tmp_path: Path) -> None:
    assert_same_answers(raw, compact(raw, tmp_path))


def test_everything_is_stored_once_and_inside(raw: bytes, tmp_path: Path) -> None:
    from ai_edge_litert import schema_py_generated as schema

    small = compact(raw, tmp_path)
    assert len(small) < len(raw)
    model = schema.ModelT.InitFromPackedBuf(small, 0)
    contents = [bytes(buffer.data) for buffer in model.buffers if buffer.data is not None and len(buffer.data)]
    assert len(contents) == len(set(contents))
    assert all(buffer.offset <= 1 for buffer in model.buffers)
    assert compact(small, tmp_path) == small


def test_bytes_behind_the_flatbuffer_come_inside(raw: bytes, tmp_path: Path) -> None:
    """Past 2 GB, or when told so, the quantizer writes weights behind the flatbuffer; here they are put there by hand."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter

    model = schema.ModelT.InitFromPackedBuf(compact(raw, tmp_path), 0)
    largest = max((buffer for buffer in model.buffers if buffer.data is not None), key=lambda buffer: len(buffer.data))
    content = bytes(largest.data)
    largest.data, largest.size, largest.offset = None, len(content), 2**40
    size = -(-len(packed(model)) // 16) * 16
    largest.offset = size
    behind = packed(model).ljust(size, b"\0") + content
    inside = compact(behind, tmp_path)
    found = schema.ModelT.InitFromPackedBuf(inside, 0)
    assert all(buffer.offset <= 1 for buffer in found.buffers)
    assert content in inside
    assert Interpreter(model_content=inside).get_signature_list() == Interpreter(model_content=raw).get_signature_list()


def test_what_a_flatbuffer_cannot_hold_lies_behind_it(raw: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ai_edge_litert import schema_py_generated as schema

    inside = compact(raw, tmp_path)
    monkeypatch.setattr(_tflite_file, "LARGEST", 1000)
    outside = compact(raw, tmp_path)
    buffers = [buffer for buffer in schema.ModelT.InitFromPackedBuf(outside, 0).buffers if buffer.offset > 1]
    large = [len(buffer.data) for buffer in read_model(inside).buffers if buffer.data is not None and len(buffer.data) >= 1024]
    assert sorted(buffer.size for buffer in buffers) == sorted(large)
    assert all(buffer.offset % 64 == 0 for buffer in buffers)
    assert_same_answers(inside, outside)
    assert compact(outside, tmp_path) == outside
    monkeypatch.undo()
    write_compactly(tmp_path / "again.tflite", read_model(mapped(tmp_path / "compact.tflite")))
    assert (tmp_path / "again.tflite").read_bytes() == inside
