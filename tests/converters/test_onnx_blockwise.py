"""Weights in blocks: against the operators' own definition, in NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from edgeexport.converters._onnx_blockwise import BLOCK, quantize_blocks
from edgeexport.converters._onnx_external import ExternalReader
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from edgeexport.artifact import Kind, Spec, Task
from edgeexport.catalog import find_step
from edgeexport.policy import Override, Policy
from edgeexport.step import Context, Refusal, View

RNG = np.random.default_rng(0)


def unpacked(packed: np.ndarray, scales: np.ndarray, bits: int, columns: int) -> np.ndarray:
    """The matrix that blocks stand for, by ContribOperators.md: (q - 2^(bits-1)) * scale, and of two 4-bit numbers the first in the lower half."""
    if bits == 4:
        packed = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], -1)
    return ((packed.astype(np.float32) - 2 ** (bits - 1)) * scales[:, :, None]).reshape(len(packed), -1)[:, :columns]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("columns", [32, 96, 50])
def test_no_weight_moves_by_more_than_half_a_step(bits: int, columns: int) -> None:
    rows = (RNG.normal(size=(20, columns)) * RNG.lognormal(size=(20, 1))).astype(np.float32)
    packed, scales = quantize_blocks(rows, bits)
    assert packed.dtype == np.uint8 and packed.shape == (20, -(-columns // BLOCK), BLOCK * bits // 8)
    error = np.abs(unpacked(packed, scales, bits, columns) - rows)
    step = np.abs(np.repeat(scales, BLOCK, axis=1)[:, :columns])
    # The number at the other end of the range than the largest is one step short of it.
    assert (error <= 1.001 * step).all() and (error > 0.5001 * step).mean() < 0.05 and error.mean() < 0.3 * step.mean()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([8, 4]))
def test_what_is_on_the_grid_stays_as_it_is(seed: int, bits: int) -> None:
    rng = np.random.default_rng(seed)
    half = 2 ** (bits - 1)
    whole = rng.integers(1 - half, half, (3, BLOCK))
    whole[:, 5] = -half * rng.choice([1, -1], 3)
    rows = (whole * 0.125).astype(np.float32)
    packed, scales = quantize_blocks(rows, bits)
    kept = np.sign(whole[:, 5:6]) * whole <= half - 1  # with the sign of the largest turned to the side that has it
    kept |= np.arange(BLOCK)[None] == 5
    assert np.array_equal(unpacked(packed, scales, bits, BLOCK)[kept], rows[kept])


def test_nothing_but_zeros_is_nothing_but_zeros() -> None:
    packed, scales = quantize_blocks(np.zeros((2, 64), np.float32), 8)
    assert not unpacked(packed, scales, 8, 64).any() and np.isfinite(scales).all()


def write(folder: Path, nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray]) -> View:
    """A model of ``ids`` int64 [n] to ``out``, with its weights outside."""
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])],
                              [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", None])],
                              [numpy_helper.from_array(value, name) for name, value in constants.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save_model(model, folder / "model.onnx", save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    return View(folder, Spec(kind=Kind.ONNX, task=Task.TEXT_GENERATION, bytes=10))


def tied(folder: Path) -> tuple[View, np.ndarray, np.ndarray]:
    """Rows of a table, a product, and the table again as the head's matrix; and both matrices."""
    table, inner = RNG.normal(size=(70, 96)).astype(np.float32), RNG.normal(size=(96, 96)).astype(np.float32)
    nodes = [helper.make_node("Transpose", ["head"], ["table"], "embed/Transpose", perm=[1, 0]),
             helper.make_node("Gather", ["table", "ids"], ["x"], "embed/Gather"),
             helper.make_node("MatMul", ["x", "inner"], ["y"], "layers.0.up/MatMul"),
             helper.make_node("MatMul", ["y", "head"], ["out"], "lm_head/MatMul")]
    return write(folder, nodes, {"head": np.ascontiguousarray(table.T), "inner": inner}), table, inner


def quantized(view: View, tmp_path: Path, policy: Policy) -> Path:
    out = tmp_path / "out"
    out.mkdir()
    find_step("quantize_onnx")(precision="p", policy=policy).run({"model": view}, out, Context(tmp_path))
    return out


def run(folder: Path, ids: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    return session.run(None, {"ids": ids})[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize(("scheme", "bits"), [("blockwise", 8), ("blockwise-4bit", 4)])
def test_the_runtime_reads_blocks_as_they_are_meant(tmp_path: Path, scheme: str, bits: int) -> None:
    view, table, inner = tied(tmp_path)
    out = quantized(view, tmp_path, Policy(default=scheme))
    rows = unpacked(*quantize_blocks(table, bits), bits, 96)
    expected = rows[[3, 69, 0]] @ unpacked(*quantize_blocks(np.ascontiguousarray(inner.T), bits), bits, 96).T @ rows.T
    # The kernels round activations to 8 bits.
    assert np.abs(run(out, np.array([3, 69, 0])) - expected).max() < 0.03 * np.abs(expected).max()


def test_a_table_that_is_the_heads_matrix_is_stored_once(tmp_path: Path) -> None:
    out = quantized(tied(tmp_path)[0], tmp_path, Policy(default="blockwise"))
    graph = onnx.load(out / "model.onnx", load_external_data=False).graph
    assert sorted(node.op_type for node in graph.node) == ["GatherBlockQuantized", "MatMulNBits", "MatMulNBits", "Reshape"]
    assert (out / "model.onnx.data").stat().st_size < (70 + 96) * (96 + 4 * 3) + 200  # a byte a weight, and a scale for each 32


def test_what_is_left_in_float_keeps_its_matrix(tmp_path: Path) -> None:
    view, table, inner = tied(tmp_path)
    ids = np.array([5, 6])
    for match, kept in (("lm_head", "MatMul"), ("layers.0.up", "MatMul"), ("op:Gather", "Gather")):
        place = tmp_path / match.replace(":", "-")
        place.mkdir()
        out = quantized(view, place, Policy(default="blockwise", overrides=(Override(match=match, scheme="float"),)))
        assert kept in {node.op_type for node in onnx.load(out / "model.onnx", load_external_data=False).graph.node}
        expected = table[ids] @ inner @ table.T
        assert np.abs(run(out, ids) - expected).max() < 0.05 * np.abs(expected).max()


def test_8_and_4_bits_may_be_mixed(tmp_path: Path) -> None:
    view, _, _ = tied(tmp_path)
    out = quantized(view, tmp_path, Policy(default="blockwise", overrides=(Override(match="layers.*", scheme="blockwise-4bit"),)))
    bits = {node.name: helper.get_attribute_value(entry) for node in onnx.load(out / "model.onnx", load_external_data=False).graph.node
            for entry in node.attribute if entry.name == "bits"}
    assert bits["layers.0.up/MatMulNBits"] == 4 and bits["lm_head/MatMulNBits"] == 8


def test_a_biased_gemm_becomes_one_operator(tmp_path: Path) -> None:
    table, weight, bias = (RNG.normal(size=shape).astype(np.float32) for shape in ((10, 64), (32, 64), (32,)))
    nodes = [helper.make_node("Gather", ["table", "ids"], ["x"], "embed/Gather"),
             helper.make_node("Gemm", ["x", "weight", "bias"], ["out"], "h.0.fc/Gemm", transB=1)]
    out = quantized(write(tmp_path, nodes, {"table": table, "weight": weight, "bias": bias}), tmp_path, Policy(default="blockwise"))
    expected = table[[1, 2]] @ weight.T + bias
    assert np.abs(run(out, np.array([1, 2])) - expected).max() < 0.03 * np.abs(expected).max()


def test_tensors_are_read_wherever_they_lie(tmp_path: Path) -> None:
    view, table, _ = tied(tmp_path)
    model = onnx.load(view.path / "model.onnx", load_external_data=False)
    reader = ExternalReader(view.path)
    assert np.array_equal(reader.array(next(tensor for tensor in model.graph.initializer if tensor.name == "head")), table.T)
    assert reader.array(numpy_helper.from_array(np.arange(3), "inside")).tolist() == [0, 1, 2]


@pytest.mark.parametrize(("policy", "told"), [
    (Policy(default="blockwise", overrides=(Override(match="*", scheme="dynamic"),)), "can't be mixed"), (Policy(default="dynamic"), "in blocks")])
def test_what_does_not_go_together_is_refused(policy: Policy, told: str) -> None:
    refusal = find_step("quantize_onnx")(precision="p", policy=policy).infer({"model": Spec(kind=Kind.ONNX, task=Task.TEXT_GENERATION)})
    assert isinstance(refusal, Refusal) and told in refusal.reason
