"""The compact TFLite file against the quantizer's own."""

from __future__ import annotations

import numpy as np
import pytest
from edgeexport.converters._tflite_file import compact
from int8 import CLASSIFIER, model_file, packed
from tiny import LENGTHS
from zoo import Zoo


@pytest.fixture(scope="module")
def raw(zoo: Zoo) -> bytes:
    from ai_edge_quantizer import quantizer

    tool = quantizer.Quantizer(str(model_file(zoo.exported(CLASSIFIER, "tflite"))))
    tool.add_dynamic_config(".*", "*", num_bits=8)
    return bytes(tool.quantize().quantized_model)


def test_answers_are_the_same_to_the_bit(raw: bytes) -> None:
    from ai_edge_litert.interpreter import Interpreter

    one, other = (Interpreter(model_content=content, num_threads=1) for content in (raw, bytes(compact(raw))))
    assert one.get_signature_list() == other.get_signature_list()
    rng = np.random.default_rng(0)
    for length in LENGTHS:
        ids, mask = rng.integers(5, 400, (1, length)).astype(np.int32), np.ones((1, length), np.int32)
        mask[0, length // 2:] = 0
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        found = [each.get_signature_runner(f"seq_{length}")(**feeds)["logits"] for each in (one, other)]
        assert found[0].tobytes() == found[1].tobytes()
        assert np.abs(found[0]).max() > 0.1


def test_everything_is_stored_once_and_inside(raw: bytes) -> None:
    from ai_edge_litert import schema_py_generated as schema

    small = bytes(compact(raw))
    assert len(small) < len(raw)
    model = schema.ModelT.InitFromPackedBuf(small, 0)
    contents = [bytes(buffer.data) for buffer in model.buffers if buffer.data is not None and len(buffer.data)]
    assert len(contents) == len(set(contents))
    assert all(buffer.offset <= 1 for buffer in model.buffers)
    assert bytes(compact(small)) == small


def test_bytes_behind_the_flatbuffer_come_inside(raw: bytes) -> None:
    """Past 2 GB, or when told so, the quantizer writes weights behind the flatbuffer; here they are put there by hand."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter

    model = schema.ModelT.InitFromPackedBuf(bytes(compact(raw)), 0)
    largest = max((buffer for buffer in model.buffers if buffer.data is not None), key=lambda buffer: len(buffer.data))
    content = bytes(largest.data)
    largest.data, largest.size, largest.offset = None, len(content), 2**40
    size = -(-len(packed(model)) // 16) * 16
    largest.offset = size
    behind = packed(model).ljust(size, b"\0") + content
    inside = bytes(compact(behind))
    found = schema.ModelT.InitFromPackedBuf(inside, 0)
    assert all(buffer.offset <= 1 for buffer in found.buffers)
    assert content in inside
    assert Interpreter(model_content=inside).get_signature_list() == Interpreter(model_content=raw).get_signature_list()
