"""GGUF files: what their header says, and what is refused before any weight is read."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from gguf_bytes import gguf

from edgeexport.artifact import Task
from edgeexport.errors import CheckpointError
from edgeexport.gguf_checkpoint import find_gguf, read_gguf
from edgeexport.gguf_file import read_gguf_header
from edgeexport.recipe import ModelSection

Q8_0, F32 = 8, 0
LLAMA: dict[str, Any] = {
    "general.architecture": "llama", "general.license": "apache-2.0", "llama.context_length": 8192, "llama.block_count": 1,
    "llama.embedding_length": 64, "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "b", "<end>"],
    "tokenizer.chat_template": "{{ messages }}", "llama.rope.freq_base": 10000.0, "tokenizer.ggml.add_bos_token": False}
TENSORS = {"token_embd.weight": ((3, 64), Q8_0, bytes(3 * 2 * 34)), "blk.0.attn_q.weight": ((64, 64), Q8_0, bytes(64 * 2 * 34)),
           "output_norm.weight": ((64,), F32, bytes(256))}
SECTION = ModelSection(source="m")


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_the_header_tells_metadata_and_tensors(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", gguf(LLAMA, TENSORS))
    header = read_gguf_header(path)
    assert header.metadata["llama.context_length"] == 8192 and header.metadata["tokenizer.ggml.tokens"] == ["a", "b", "<end>"]
    assert header.metadata["llama.rope.freq_base"] == 10000.0 and header.metadata["tokenizer.ggml.add_bos_token"] is False
    query = header.tensors["blk.0.attn_q.weight"]
    assert (query.shape, query.type, query.count, query.size) == ((64, 64), "Q8_0", 4096, 64 * 2 * 34)
    assert header.tensors["output_norm.weight"].offset % 32 == 0


def test_it_is_a_checkpoint(tmp_path: Path) -> None:
    found = read_gguf(write(tmp_path / "m.gguf", gguf(LLAMA, TENSORS)), "m")
    spec, text = found.spec(SECTION), found.text_spec(SECTION)
    assert (spec.task, spec.architecture, spec.parameters) == (Task.TEXT_GENERATION, "llama", 3 * 64 + 4096 + 64)
    assert spec.facts["lossy_source"] == "GGUF Q8_0" and spec.facts["licence"] == "apache-2.0" and spec.facts["vocabulary"] == 3
    assert spec.facts["layers"] == 1 and spec.facts["layer_parameters"] == 4096
    assert (text.own_max_length, text.max_length) == (8192, 1024) and "default" in text.sources["max_length"]
    assert found.chat_template and found.loader == "load_gguf" and found.sizes == {"m.gguf": (tmp_path / "m.gguf").stat().st_size}


def test_weights_in_floating_point_have_lost_nothing(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", gguf(LLAMA, {"token_embd.weight": ((3, 64), F32, bytes(768))}))
    assert "lossy_source" not in read_gguf(path, "m").spec(SECTION).facts


@pytest.mark.parametrize(("content", "told"), [
    (b"", "it is empty"), (b"PK\3\4" + bytes(60), "does not begin with GGUF"), (b"GGUF", "ends within its header"),
    (gguf(LLAMA, TENSORS)[:400], "ends within its header"), (gguf(LLAMA, TENSORS)[:-1], "cut off"),
    (gguf(LLAMA, {"x": ((32,), 99, bytes(34))}), "quantization type that is not known"), (gguf(LLAMA, version=1), "version 1"),
    (gguf(LLAMA, version=0x03000000), "big-endian"), (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1 << 60), "damaged"),
    (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + b"\1\0\0\0\0\0\0\0x" + struct.pack("<I", 77), "damaged"),
    (gguf({"general.alignment": 0}), "damaged"), (gguf({"general.alignment": "x"}), "damaged"),
    (b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + b"\1\0\0\0\0\0\0\0x" + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000, "damaged"),
])
def test_what_is_no_whole_file_is_told(tmp_path: Path, content: bytes, told: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        read_gguf_header(write(tmp_path / "m.gguf", content))
    assert told in str(caught.value) and "m.gguf" in str(caught.value)


@pytest.mark.parametrize(("changed", "tensors", "told"), [
    ({"general.architecture": "mamba"}, TENSORS, "'mamba' is not read from GGUF files"),
    ({"llama.rope.scaling.type": "yarn"}, TENSORS, "scales its positions"),
    ({"llama.rope.scale_linear": 4.0}, TENSORS, "scales its positions"), ({"llama.rope.scaling.factor": 2.0}, TENSORS, "scales its positions"),
    ({"general.architecture": "gemma2", "gemma2.attention.key_length": 128}, TENSORS, "how its attention is scaled"),
    ({}, TENSORS | {"rope_freqs.weight": ((32,), F32, bytes(128))}, "scales its positions"),
    ({"tokenizer.ggml.tokens": []}, TENSORS, "has no tokenizer"),
])
def test_what_would_be_read_wrongly_is_refused(tmp_path: Path, changed: dict[str, Any], tensors: dict[str, Any], told: str) -> None:
    found = read_gguf(write(tmp_path / "m.gguf", gguf(LLAMA | changed, tensors)), "m")
    with pytest.raises(CheckpointError, match=told):
        found.spec(SECTION)


def test_scales_of_one_and_windows_as_long_as_the_context_change_nothing(tmp_path: Path) -> None:
    given = {"llama.rope.scale_linear": 1.0, "llama.rope.scaling.factor": 0.0, "llama.attention.sliding_window": 4096}
    found = read_gguf(write(tmp_path / "m.gguf", gguf(LLAMA | given, TENSORS)), "m").text_spec(SECTION)
    assert (found.max_length, found.own_max_length) == (1024, 4096)


def test_a_window_that_the_family_has_no_word_for_is_all_that_is_read(tmp_path: Path) -> None:
    found = read_gguf(write(tmp_path / "m.gguf", gguf(LLAMA | {"llama.attention.sliding_window": 512}, TENSORS)), "m")
    assert found.text_spec(SECTION).max_length == 512


def test_a_table_that_stands_there_twice_is_counted_once(tmp_path: Path) -> None:
    table = ((3, 64), Q8_0, bytes(range(102)) * 2)
    path = write(tmp_path / "m.gguf", gguf(LLAMA, TENSORS | {"token_embd.weight": table, "output.weight": table}))
    assert "output.weight" not in read_gguf_header(path).tensors
    other = ((3, 64), Q8_0, bytes(204))
    assert "output.weight" in read_gguf_header(write(path, gguf(LLAMA, TENSORS | {"token_embd.weight": table, "output.weight": other}))).tensors


def test_a_part_of_a_file_is_told_how_to_be_joined(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="one of 3 parts"):
        read_gguf(write(tmp_path / "m.gguf", gguf(LLAMA | {"split.count": 3})), "m")


def test_the_file_is_found_in_its_directory(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", gguf(LLAMA))
    assert find_gguf(tmp_path, {"a.gguf", "README.md"}, "m") == path == find_gguf(path, (), "m")
    assert find_gguf(tmp_path, {"a.gguf", "model.safetensors"}, "m") is None and find_gguf(tmp_path, {"README.md"}, "m") is None
    with pytest.raises(CheckpointError, match="2 GGUF files"):
        find_gguf(tmp_path, {"a.gguf", "b.gguf"}, "m")


def test_another_task_is_refused(tmp_path: Path) -> None:
    found = read_gguf(write(tmp_path / "m.gguf", gguf(LLAMA, TENSORS)), "m")
    with pytest.raises(CheckpointError, match="cannot do text-classification"):
        found.spec(ModelSection(source="m", task=Task.TEXT_CLASSIFICATION))
