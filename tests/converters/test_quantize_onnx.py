"""INT8 for ONNX: agreement with the original, weights against NumPy, overrides."""

from __future__ import annotations

from fnmatch import fnmatchcase

import numpy as np
import onnx
import pytest
from int8 import ASKED, CLASSIFIER, TAGGER, assert_near_the_original, assert_vectors_point_the_same_way, computed, model_file, policy
from tiny import Case
from zoo import Zoo

from edgeexport.catalog import find_step
from edgeexport.errors import RecipeError
from edgeexport.inspection import inspect_file
from edgeexport.policy import Policy
from edgeexport.step import Refusal, View


@pytest.mark.parametrize(("precision", "error", "agreement"), [("dynamic-int8", 0.08, 0.92), ("static-int8", 0.13, 0.92)])
@pytest.mark.parametrize("case", [CLASSIFIER, TAGGER], ids=str)
def test_int8_is_near_the_original(zoo: Zoo, case: Case, precision: str, error: float, agreement: float) -> None:
    assert_near_the_original(zoo, case, "onnx", precision, error, agreement)


def test_int8_vectors_point_the_same_way(zoo: Zoo) -> None:
    assert_vectors_point_the_same_way(zoo, "onnx", "dynamic-int8")


def test_static_weights_are_within_half_a_step(zoo: Zoo) -> None:
    """Each stored matrix, made float again, is off by at most half its channel's step (and by the rounding of the zero point)."""
    import onnx
    from onnx.numpy_helper import to_array

    exported, quantized = zoo.exported(CLASSIFIER, "onnx"), zoo.quantized(CLASSIFIER, "onnx", "static-int8")
    before, after = ({tensor.name: to_array(tensor) for tensor in onnx.load(model_file(view)).graph.initializer} for view in (exported, quantized))
    count = 0
    for name, weights in before.items():
        if f"{name}_quantized" not in after or weights.ndim != 2:
            continue
        integers, scale, zero = (after[f"{name}_{part}"] for part in ("quantized", "scale", "zero_point"))
        # A channel is a row or a column, and the matrix may have been turned: right is the reading that fits.
        steps = []
        for against in (weights, weights.T):
            for shape in ((1, -1), (-1, 1)):
                step, middle = scale.reshape(shape), zero.astype(np.float32).reshape(shape)
                if integers.shape == against.shape and all(a in (1, b) for a, b in zip(step.shape, integers.shape, strict=True)):
                    steps.append(np.abs((integers - middle) * step - against) / step)
        best = min(steps, key=np.max)
        assert best.max() <= 1.01, name
        assert 0.2 < best.mean() < 0.3, name  # 0.25 where rounding is all that happens
        count += 1
    assert count == 17


def float_products(view: View) -> set[str]:
    """Names of the products whose weights are still float."""
    left = {weight.used_by for weight in inspect_file(model_file(view)).float_weights}
    return {name for name in left if name.rpartition("/")[2].startswith(("MatMul", "Gemm"))}


def test_overrides_leave_modules_in_float(zoo: Zoo) -> None:
    """Six matrices in each of the two layers, three of them one product; pooler and classifier."""
    view = zoo.quantized(CLASSIFIER, "onnx", "dynamic-int8")
    assert computed(view)["com.microsoft.MatMulIntegerToFloat", "int8-dynamic"] == 2 * 4 + 2
    assert not float_products(view)
    for match, left, products in (("*.layer.0.*", 6, 6), ("*.self.query", 2, 10), ("classifier", 1, 9), ("*.layer.?.*", 12, 2)):
        view = zoo.quantized(CLASSIFIER, "onnx", "dynamic-int8-x", policy("dynamic", **{match: "float"}))
        found = float_products(view)
        assert len(found) == left, match
        assert all(fnmatchcase(name.partition("/")[0], match) for name in found)
        assert computed(view)["com.microsoft.MatMulIntegerToFloat", "int8-dynamic"] == products, match


def test_a_table_may_stay_float(zoo: Zoo) -> None:
    view = zoo.quantized(CLASSIFIER, "onnx", "dynamic-int8-x", policy("dynamic", **{"op:Gather": "float"}))
    embedding = {group.dtype: group.elements for group in inspect_file(model_file(view)).weight_groups if group.group == "embedding"}
    assert "int8" not in embedding
    assert not float_products(view)


def test_the_last_override_decides(zoo: Zoo) -> None:
    view = zoo.quantized(CLASSIFIER, "onnx", "x", policy("float", **{"op:MatMul": "dynamic", "*.layer.1.*": "float"}))
    assert computed(view)["com.microsoft.MatMulIntegerToFloat", "int8-dynamic"] == 4
    assert len(float_products(view)) == 6 + 2  # layer 1, pooler and classifier


@pytest.mark.parametrize("match", ["*.layer.9.*", "op:Conv", "query"])
def test_an_override_that_matches_nothing_is_an_error(zoo: Zoo, match: str) -> None:
    with pytest.raises(RecipeError, match="matches no operator"):
        zoo.quantized(CLASSIFIER, "onnx", "x", policy("dynamic", **{match: "float"}))


@pytest.mark.parametrize(("rules", "reason"), [
    (policy("weight-only"), "weight-only"), (policy("dynamic", classifier="weight-only"), "weight-only"),
    (policy("float", classifier="float"), "leaves everything in float")])
def test_what_onnx_cannot_compute_is_refused(zoo: Zoo, rules: Policy, reason: str) -> None:
    found = find_step("quantize_onnx")(precision="x", policy=rules).infer({"model": zoo.exported(CLASSIFIER, "onnx").spec})
    assert isinstance(found, Refusal)
    assert reason in found.reason


def test_static_beside_dynamic(zoo: Zoo) -> None:
    """Layer 1 has six matrices, layer 0 and the head eight; products of two activations become static too."""
    mixed = zoo.quantized(CLASSIFIER, "onnx", "mixed", policy("dynamic", **{"*.layer.1.*": "static"}))
    found = computed(mixed)
    assert found["com.microsoft.MatMulIntegerToFloat", "int8-dynamic"] == 6  # query, key and value of layer 0 are one product
    model = onnx.load(model_file(mixed))
    quantized = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    static = {node.name.partition("/")[0] for node in model.graph.node if node.op_type in {"MatMul", "Gemm"} and set(node.input) <= quantized}
    assert {name for name in static if ".layer.1." in name} == static
    assert len(static) == 7  # six layers, and one attention with two products
    session, original = zoo.session(CLASSIFIER, mixed), zoo.original(CLASSIFIER)
    same = [session.outputs(session.encode(text))["logits"].argmax() == original.outputs(text)["logits"].argmax() for text in ASKED]
    assert np.mean(same) > 0.85


@pytest.mark.parametrize("ranges", ["percentile", "entropy"])
def test_ranges_by_other_criteria_reach_the_file(zoo: Zoo, ranges: str) -> None:
    """Scales are then no wider than those from the extremes, and some are narrower."""
    def scales(rules: Policy) -> dict[str, float]:
        graph = onnx.load(model_file(zoo.quantized(CLASSIFIER, "onnx", "static-int8", rules))).graph
        values = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
        return {node.input[0]: float(values[node.input[1]]) for node in graph.node if node.op_type == "QuantizeLinear"}

    extremes, found = scales(policy("static")), scales(policy("static").model_copy(update={"ranges": ranges}))
    assert found.keys() == extremes.keys()
    assert all(found[name] <= 1.001 * extremes[name] for name in found)
    assert sum(found[name] < 0.99 * extremes[name] for name in found) >= 3
