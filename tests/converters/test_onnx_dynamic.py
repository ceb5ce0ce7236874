"""Dynamic INT8 in ONNX: its arithmetic against NumPy, exactness on every instruction set, and answers that don't depend on company."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from architectures import CASES, expected, outputs_at, spread, texts_for
from int8 import CLASSIFIER, EMBEDDER, computed, model_file, policy
from onnx import helper
from onnx.numpy_helper import from_array, to_array
from tiny import MAX_LENGTH, Case
from zoo import Zoo

from edgeexport.artifact import Kind, Spec, Task, digest_file
from edgeexport.catalog import find_step
from edgeexport.inspection import inspect_file
from edgeexport.policy import Policy
from edgeexport.step import View

RANDOM = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray:
    return RANDOM.normal(size=shape).astype(np.float32)


def small_model(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], rank: int = 3, outputs: tuple[str, ...] = ("y",)) -> onnx.ModelProto:
    """A graph from ``x``, float32 of that rank, to the outputs."""
    axes = [*"abc"[:rank - 1], 32]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, axes)],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs],
        [from_array(value, name) for name, value in constants.items()])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def node(operator: str, inputs: str, outputs: str, name: str = "", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(operator, inputs.split(), outputs.split(), name=name or f"{outputs}/{operator}", **attributes)


@pytest.fixture
def quantized(zoo: Zoo) -> Callable[..., onnx.ModelProto]:
    def quantize(model: onnx.ModelProto, rules: Policy | None = None) -> onnx.ModelProto:
        place = zoo.place("small")
        onnx.save_model(model, place / "model.onnx")
        step = find_step("quantize_onnx")(precision="dynamic-int8", policy=rules or policy("dynamic"))
        return onnx.load(zoo.run(step, {"model": View(place, Spec(kind=Kind.ONNX))}).path / "model.onnx")

    return quantize


def run(model: onnx.ModelProto, x: np.ndarray, *more: str) -> list[np.ndarray]:
    """The outputs, then values inside."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    shown.graph.output.extend(onnx.ValueInfoProto(name=name) for name in more)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(shown.SerializeToString(), options).run(None, {"x": x})  # type: ignore[no-any-return]


def integer_weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: to_array(tensor) for tensor in model.graph.initializer if tensor.data_type == tensor.INT8}


def product_weights(model: onnx.ModelProto) -> list[np.ndarray]:
    """The integers that activations are multiplied by, int8 [k, n]."""
    stored = integer_weights(model)
    stored |= {entry.output[0]: stored[entry.input[0]].T for entry in model.graph.node if entry.op_type == "Transpose" and entry.input[0] in stored}
    return [stored[entry.input[1]] for entry in model.graph.node if entry.op_type == "MatMulIntegerToFloat"]


def operators(model: onnx.ModelProto) -> list[str]:
    return [entry.op_type for entry in model.graph.node]


# The reference: the definitions, spelled out.

def spread_evenly(size: int) -> np.ndarray:
    """The Hadamard matrix in its natural order, with length kept: the sign is the parity of the common bits."""
    return np.array([[(-1.0) ** (i & j).bit_count() for j in range(size)] for i in range(size)]) / np.sqrt(size)


def rounded_weights(weights: np.ndarray) -> np.ndarray:
    """Weights on their grid: a step is the heaviest pair of rows 2i and 2i+1 of one sign, by 127."""
    result = np.empty(weights.shape)
    for column in range(weights.shape[1]):
        pairs = weights[:, column].astype(float).reshape(-1, 2)
        step = max(max(pair[pair > 0].sum(), -pair[pair < 0].sum()) for pair in pairs) / 127
        result[:, column] = np.round(weights[:, column] / step) * step
    return result


def rounded_tokens(x: np.ndarray) -> np.ndarray:
    """Each token on a grid of 127 steps up to its largest number."""
    step = np.abs(x).max(axis=-1, keepdims=True) / 127
    return np.round(x / np.where(step > 0, step, 1)) * step


def rotated_product(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    turn = np.kron(np.eye(x.shape[-1] // 16), spread_evenly(16))
    return rounded_tokens(x @ turn) @ rounded_weights(turn.T @ weights)


def test_products_of_one_activation_are_one_product(quantized: Callable[..., onnx.ModelProto]) -> None:
    q, k, v, bias, x = floats(32, 32), floats(32, 32), floats(32, 8), floats(8), floats(2, 5, 32)
    x[:, :, 3] *= 20  # an outlier channel
    model = quantized(small_model([node("MatMul", "x q", "a"), node("MatMul", "x k", "b"), node("MatMul", "x v", "h"), node("Add", "v_bias h", "c")],
                                  {"q": q, "k": k, "v": v, "v_bias": bias}, outputs=("a", "b", "c")))
    assert operators(model).count("MatMulIntegerToFloat") == 1
    assert operators(model).count("QuantizeLinear") == 1
    whole = rotated_product(x, np.concatenate([q, k, v], axis=1))
    for found, right in zip(run(model, x), (whole[..., :32], whole[..., 32:64], whole[..., 64:] + bias), strict=True):
        assert np.abs(found - right).max() < 1e-4 * np.abs(right).max()
    assert {value.shape for value in integer_weights(model).values()} == {(32, 72)}


def test_two_products_of_a_module_keep_their_own_weights(quantized: Callable[..., onnx.ModelProto]) -> None:
    first, second, x = floats(32, 32), floats(32, 4), floats(2, 5, 32)
    model = quantized(small_model([node("MatMul", "x v", "h", "module/MatMul"), node("MatMul", "h w", "y", "module/MatMul_2")],
                                  {"v": first, "w": second, "module_quantized": floats(1)}))
    (found,) = run(model, x)
    right = rotated_product(rotated_product(x, first), second)
    assert np.abs(found - right).max() < 0.02 * np.abs(right).max()  # a number between two steps may fall to either side


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_on_two_axes(quantized: Callable[..., onnx.ModelProto], transposed: int) -> None:
    weights, bias, x = floats(32, 6), floats(6), floats(3, 32)
    model = quantized(small_model([node("Gemm", "x w c", "y", alpha=0.5, beta=2.0, transB=transposed)],
                                  {"w": weights.T.copy() if transposed else weights, "c": bias}, rank=2))
    (found,) = run(model, x)
    right = rotated_product(x, 0.5 * weights) + 2 * bias
    assert np.abs(found - right).max() < 1e-4 * np.abs(right).max()


@pytest.mark.parametrize(("more", "adds"), [([], 2), ([node("Add", "h x", "other")], 4)], ids=["carried", "normalization used elsewhere"])
def test_a_bias_that_a_normalization_can_carry_needs_no_operator(quantized: Callable[..., onnx.ModelProto], more: list[onnx.NodeProto],
                                                                adds: int) -> None:
    constants = {"scale": 1 + 0.1 * floats(32), "shift": 0.1 * floats(32), "w": floats(32, 48), "b": floats(48), "v": floats(48, 32), "c": floats(32)}
    model = small_model([
        node("LayerNormalization", "x scale shift", "h", axis=-1, epsilon=1e-5), *more,
        node("MatMul", "h w", "m"), node("Add", "m b", "u"), node("Relu", "u", "z"),
        node("MatMul", "z v", "n"), node("Add", "n c", "p"), node("Add", "h p", "s"),
        node("LayerNormalization", "s scale shift", "y", axis=-1, epsilon=1e-5)], constants, outputs=("y", *(["other"] if more else [])))
    x = floats(2, 5, 32)
    found = quantized(model)
    assert operators(found).count("Add") == adds
    for given, right in zip(run(found, x), run(model, x), strict=True):
        assert np.abs(given - right).max() < 0.03 * np.abs(right).max()


def test_a_bias_of_another_width_stays(quantized: Callable[..., onnx.ModelProto]) -> None:
    """A sum of a normalization's output and of one number for each token."""
    constants = {"scale": np.ones(32, np.float32), "shift": floats(32), "w": floats(32, 1), "b": floats(1)}
    model = small_model([node("LayerNormalization", "x scale shift", "h", axis=-1), node("MatMul", "h w", "m"), node("Add", "m b", "p"),
                         node("Add", "h p", "y")], constants)
    x = floats(2, 5, 32)
    (found,), (right,) = run(quantized(model), x), run(model, x)
    assert np.abs(found - right).max() < 0.03 * np.abs(right).max()


def test_what_attention_puts_out_is_not_rotated(quantized: Callable[..., onnx.ModelProto]) -> None:
    weights, x = floats(32, 4), floats(2, 5, 32)
    model = quantized(small_model([node("Transpose", "x", "t", perm=[0, 2, 1]), node("MatMul", "x t", "s"), node("MatMul", "s x", "m"),
                                   node("MatMul", "m w", "y")], {"w": weights}))
    (found,) = run(model, x)
    mixed = (x @ x.transpose(0, 2, 1)) @ x
    right = rounded_tokens(mixed) @ rounded_weights(weights)
    assert np.abs(found - right).max() < 1e-3 * np.abs(right).max()  # a number between two steps may fall to either side
    assert operators(model).count("MatMul") == 2


def gelu_nodes(order: str) -> list[onnx.NodeProto]:
    """GELU as it may be written; the exporter's way is ``half first``."""
    start = [node("Div", "x root", "d"), node("Erf", "d", "e"), node("Add", "e one", "p")]
    return start + {"half first": [node("Mul", "half p", "h"), node("Mul", "x h", "g")],
                    "half last": [node("Mul", "x p", "h"), node("Mul", "h half", "g")]}[order]


@pytest.mark.parametrize("order", ["half first", "half last"])
def test_after_gelu_the_grid_reaches_from_its_minimum_to_the_largest(quantized: Callable[..., onnx.ModelProto], order: str) -> None:
    """24 steps below zero, 231 above, and none so small that the minimum, -0.17, lies below the 24."""
    from math import erf

    weights, bias, x = floats(32, 4), floats(4), floats(2, 5, 32) * np.geomspace(0.1, 5, 5).astype(np.float32)[:, None]
    constants = {"root": np.float32(np.sqrt(2)), "one": np.float32(1), "half": np.float32(0.5), "w": weights, "b": bias}
    model = quantized(small_model([*gelu_nodes(order), node("MatMul", "g w", "h2"), node("Add", "h2 b", "y")], constants))
    gelu = x * (1 + np.vectorize(erf)(x / np.sqrt(2))) / 2
    step = np.maximum(gelu.max(axis=-1, keepdims=True) / 231, 0.16998 / 24)
    right = (np.round(gelu / step) * step) @ rounded_weights(weights) + bias
    (found,) = run(model, x)
    assert np.abs(found - right).max() < 1e-4 * np.abs(right).max()


def test_gelu_is_in_the_order_that_onnxruntime_fuses(quantized: Callable[..., onnx.ModelProto], tmp_path: Path) -> None:
    """And its bias is kept apart: the fused kernel is the slower one."""
    constants = {"root": np.float32(np.sqrt(2)), "one": np.float32(1), "half": np.float32(0.5), "w": floats(32, 32), "b": floats(32)}
    first = [node("MatMul", "i w", "h0"), node("Add", "h0 b", "x2")]
    nodes = [node("Identity", "x", "i"), *first, *gelu_nodes("half first"), node("MatMul", "g w", "y")]
    for entry in nodes[3:8]:
        entry.input[:] = ["x2" if name == "x" else name for name in entry.input]
    model = quantized(small_model(nodes, constants))
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / "optimized.onnx"), 4
    onnxruntime.InferenceSession(model.SerializeToString(), options)
    found = operators(onnx.load(tmp_path / "optimized.onnx"))
    assert found.count("Gelu") == 1
    assert not {"BiasGelu", "Erf"} & set(found)


def test_after_relu_all_steps_are_above_zero(quantized: Callable[..., onnx.ModelProto]) -> None:
    """A token of zeros gives the bias and nothing else."""
    weights, bias, x = floats(32, 4), floats(4), floats(2, 5, 32)
    x[0, 1] = -1
    model = quantized(small_model([node("Relu", "x", "r"), node("MatMul", "r w", "h"), node("Add", "h b", "y")], {"w": weights, "b": bias}))
    relu = x.clip(min=0)
    step = relu.max(axis=-1, keepdims=True) / 255
    right = (np.round(relu / np.where(step > 0, step, 1)) * step) @ rounded_weights(weights) + bias
    (found,) = run(model, x)
    assert np.abs(found - right).max() < 1e-4 * np.abs(right).max()
    assert np.array_equal(found[0, 1], bias)


def test_a_token_of_zeros_gives_the_bias(quantized: Callable[..., onnx.ModelProto]) -> None:
    bias, x = floats(4), floats(2, 5, 32)
    x[1, 2] = 0
    (found,) = run(quantized(small_model([node("MatMul", "x w", "h"), node("Add", "h b", "y")], {"w": floats(32, 4), "b": bias})), x)
    assert np.array_equal(found[1, 2], bias)


def test_a_table_that_is_a_product_too_is_stored_once(quantized: Callable[..., onnx.ModelProto]) -> None:
    table, x = floats(100, 32), floats(2, 5, 32)
    nodes = [node("Gather", "table ids", "rows"), node("Add", "x rows", "sum"), node("Transpose", "table", "t", perm=[1, 0]),
             node("MatMul", "sum t", "y")]
    model = quantized(small_model(nodes, {"table": table, "ids": np.array([7, 1, 4, 9, 99])}))
    assert {name: value.shape for name, value in integer_weights(model).items()} == {"table_quantized": (100, 32)}
    assert not [tensor for tensor in model.graph.initializer if tensor.name == "table"]
    stored = rounded_weights(table.T)
    (found,) = run(model, x)
    right = rounded_tokens(x + stored.T[[7, 1, 4, 9, 99]]) @ stored
    assert np.abs(found - right).max() < 1e-3 * np.abs(right).max()


def test_small_tables_stay_float(quantized: Callable[..., onnx.ModelProto]) -> None:
    nodes = [node("Gather", "large ids", "a"), node("Gather", "small ids", "b"), node("Add", "a b", "s"), node("Add", "x s", "y")]
    model = quantized(small_model(nodes, {"large": floats(1000, 32), "small": floats(8, 32), "ids": np.arange(5)}))
    assert set(integer_weights(model)) == {"large_quantized"}
    assert "small" in {tensor.name for tensor in model.graph.initializer}


# Exactness

def worst_pair(weights: np.ndarray) -> int:
    """The largest sum of two neighbouring products that AVX2 may have to keep, with activations from 0 to 255."""
    padded = np.concatenate([weights.astype(int), np.zeros((len(weights) % 2, weights.shape[1]), int)])
    pairs = padded.reshape(-1, 2, padded.shape[1])
    return int(255 * max(pairs.clip(min=0).sum(axis=1).max(), -pairs.clip(max=0).sum(axis=1).min()))


def adversary(kind: str) -> np.ndarray:
    """Weights whose pairs are as heavy as can be."""
    return {"equal": np.full((32, 8), 0.3, np.float32), "alternating": np.tile([[1.0], [-1.0]], (16, 8)).astype(np.float32),
            "heavy tail": (floats(32, 8) ** 5).astype(np.float32), "one pair": np.eye(32, 8, dtype=np.float32).repeat(2, 0)[:32],
            "halves": np.full((32, 8), -63.5 / 127, np.float32), "nothing": np.zeros((32, 8), np.float32)}[kind]


@pytest.mark.parametrize("kind", ["equal", "alternating", "heavy tail", "one pair", "halves", "nothing"])
def test_no_pair_of_products_exceeds_16_bits(quantized: Callable[..., onnx.ModelProto], kind: str) -> None:
    """Also for what is not rotated, as after ReLU."""
    for before in ("Relu", "Identity"):
        model = quantized(small_model([node(before, "x", "r"), node("MatMul", "r w", "y")], {"w": adversary(kind)}))
        (weights,) = integer_weights(model).values()
        assert worst_pair(weights) <= 2**15 - 1
        assert kind == "nothing" or worst_pair(weights) > 2**14  # the range is used


def test_saturating_pairs_give_the_same_integers(quantized: Callable[..., onnx.ModelProto]) -> None:
    """AVX2's way, in NumPy, against whole integers; plain INT8 weights would fail."""
    model = quantized(small_model([node("Relu", "x", "r"), node("MatMul", "r w", "y")], {"w": np.abs(floats(32, 8))}))
    (weights,) = integer_weights(model).values()

    def saturating(x: np.ndarray, w: np.ndarray) -> np.ndarray:
        pairs = (x.reshape(-1, 16, 2, 1).astype(int) * w.reshape(1, 16, 2, -1)).sum(axis=2)
        return pairs.clip(-2**15, 2**15 - 1).sum(axis=1)

    x = np.concatenate([np.full((1, 32), 255), RANDOM.integers(0, 256, (50, 32))])
    assert np.array_equal(saturating(x, weights), x @ weights.astype(int))
    plain = np.round(weights / np.abs(weights).max(axis=0) * 127).astype(int)
    assert not np.array_equal(saturating(x, plain), x @ plain)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_architecture(zoo: Zoo, case: Case) -> None:
    """Near the original, all products with weights in exact INT8, and no large weight left or stored twice."""
    view = zoo.quantized(case, "onnx", "dynamic-int8")
    model, report = onnx.load(model_file(view)), inspect_file(model_file(view))
    onnx.checker.check_model(model)
    assert report.integer_compute_share == 1
    assert report.integer_weight_share is not None and report.integer_weight_share > 0.9
    assert max(map(worst_pair, product_weights(model))) <= 2**15 - 1
    if case.architecture != "mobilebert":  # its decoder is the table beside other columns
        assert not [entry for entry in report.stored_twice if "quantized" in entry.names[0]]

    original, session = zoo.original(case), zoo.session(case, view)
    texts = texts_for(original)
    right = [expected(original, text) for text in texts]
    errors = []
    for text, wanted in zip(texts, right, strict=True):
        encoded = session.encode(*text)
        for name, value in session.outputs(encoded).items():
            errors.append(np.abs(value.reshape(-1)[:wanted[name].size] - wanted[name].reshape(-1)).mean())
    assert np.mean(errors) < 0.1 * spread(right)


# A text's answer is its own

def test_padding_and_batch_change_nothing(zoo: Zoo) -> None:
    """Not one bit by padding; and by company nothing but how the last sums are rounded."""
    session = zoo.session(EMBEDDER, zoo.quantized(EMBEDDER, "onnx", "dynamic-int8"))
    encoded = [session.encode(*text) for text in texts_for(zoo.original(EMBEDDER))]
    alone = [outputs_at(session, one, len(one.ids))["sentence_embedding"] for one in encoded]
    feeds = [one.feeds(session.payload.spec, MAX_LENGTH) for one in encoded]
    together = session.model.run({name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]})["sentence_embedding"]
    for one, feed, vector, in_batch in zip(encoded, feeds, alone, together, strict=True):
        assert np.abs(session.model.run(feed)["sentence_embedding"] - vector).max() < 1e-6, len(one.ids)
        assert np.abs(in_batch - vector).max() < 1e-6


def test_a_tokens_integers_are_its_own(quantized: Callable[..., onnx.ModelProto]) -> None:
    x = floats(3, 7, 32)
    x[2] *= 100
    model = quantized(small_model([node("MatMul", "x w", "y")], {"w": floats(32, 8)}))
    (name,) = [entry.output[0] for entry in model.graph.node if entry.op_type == "QuantizeLinear"]
    whole, integers = run(model, x, name)
    assert integers.dtype == np.uint8
    for row in range(3):
        for token in range(7):
            alone, own = run(model, x[row:row + 1, token:token + 1], name)
            assert np.array_equal(own[0, 0], integers[row, token])
            assert np.array_equal(alone[0, 0], whole[row, token])


# Files

def test_two_runs_give_the_same_bytes(zoo: Zoo) -> None:
    step = find_step("quantize_onnx")(precision="dynamic-int8", policy=policy("dynamic"))
    views = [zoo.run(step, {"model": zoo.exported(CLASSIFIER, "onnx")}) for _ in range(2)]
    assert digest_file(model_file(views[0])) == digest_file(model_file(views[1]))


def test_layers_that_share_weights_store_them_once(zoo: Zoo) -> None:
    case = Case("albert", Task.TEXT_CLASSIFICATION)
    view = zoo.quantized(case, "onnx", "dynamic-int8")
    assert computed(view)["com.microsoft.MatMulIntegerToFloat", "int8-dynamic"] == 1 + 2 * 4 + 2
    assert len([name for name in integer_weights(onnx.load(model_file(view))) if "albert_layers" in name]) == 4
