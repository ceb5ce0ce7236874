"""The graph of a language model: its own exporters and reference, and what is refused before any work."""

from __future__ import annotations

from typing import Any

import pytest
from test_plan import HOST, LANES, resolved, target

from edgeexport.artifact import Task
from edgeexport.errors import PlanError
from edgeexport.plan import Plan, buckets, make_plan
from edgeexport.target import Target

GENERATE = {"tasks": ["text-generation"]}
BLOCKS = GENERATE | {"precision": "blockwise-int8"}


def board(**changes: dict[str, Any]) -> Target:
    return target("board", ("litert", "onnx"), **{"litert": GENERATE, "onnx": BLOCKS} | changes)


def planned(target: Target | None = None, **options: Any) -> Plan:
    return make_plan(resolved(task=Task.TEXT_GENERATION, max_length=1024, own=8192, **options), [target or board()], HOST)


def test_a_language_model_has_exporters_and_a_reference_of_its_own() -> None:
    plan = planned()
    assert {node.step.name for node in plan.nodes.values()} == {
        "load_checkpoint", "export_decoder_onnx", "export_decoder_tflite", "quantize_onnx", "quantize_tflite", "assemble_payload", "inspect_model",
        "measure_answers", "measure_speed", "measure_outliers", "compute_generation_reference"}
    # A context that is shorter than the model's own is no cut of texts.
    assert plan.original == plan.reference


def test_outliers_move_into_the_weights_of_tflite_unless_the_recipe_says_otherwise() -> None:
    def outliers(**options: Any) -> list[tuple[dict[str, str], float]]:
        plan = planned(**options)
        (export,) = (node for node in plan.nodes.values() if node.step.name == "export_decoder_tflite")
        return [(dict(node.inputs), export.parts["options"]["smoothing"]) for node in plan.nodes.values() if node.id == export.inputs.get("outliers")]

    def tflite(**precision: Any) -> dict[str, Any]:
        return {"precision": {"tflite": {"preset": "dynamic-int8", **precision}}}

    # On what the model writes itself, or on the user's texts.
    assert outliers() == [({"checkpoint": "load_checkpoint"}, 0.5)]
    assert outliers(recipe=tflite(smoothing=0.4)) == [({"checkpoint": "load_checkpoint"}, 0.4)]
    assert outliers(data=("probes", "calibration")) == [({"checkpoint": "load_checkpoint", "calibration": "@calibration"}, 0.5)]
    assert outliers(recipe=tflite(smoothing=0)) == outliers(recipe=tflite(preset="weight-only-int8")) == []
    with pytest.raises(PlanError, match="nothing to smooth in the lane 'onnx'"):
        planned(recipe={"precision": {"onnx": {"preset": "blockwise-int8", "smoothing": 0.5}}})


def test_lanes_for_other_tasks_are_not_planned_and_a_lane_serves_all_others_unless_it_says_so() -> None:
    everything = Target.model_validate(board().model_dump(by_alias=True) | {"lanes": [
        {"name": "a", **LANES["onnx"]}, {"name": "b", **LANES["onnx"], **BLOCKS}]})
    offered = {plan.lane.name: plan.variant for plan in planned(everything).lanes}
    assert offered == {"b": "onnx-blockwise-int8"}
    encoder = {plan.lane.name: plan.variant for plan in make_plan(resolved(), [everything], HOST).lanes}
    assert encoder == {"a": "onnx-dynamic-int8"}


@pytest.mark.parametrize(("context", "given", "expected"), [
    (1024, None, (16, 128)), (200, None, (16,)), (20, None, (1,)), (1024, (32, 256), (32, 256))])
def test_prompts_are_read_in_pieces_that_fit_twice_into_the_context(context: int, given: tuple[int, ...] | None, expected: tuple[int, ...]) -> None:
    recipe = {"export": {"lengths": given}} if given else {}
    assert buckets(resolved(task=Task.TEXT_GENERATION, max_length=context, own=8192, recipe=recipe)) == expected


@pytest.mark.parametrize(("recipe", "changes", "told"), [
    ({"compress": {"vocabulary": {"size": 100}}}, {}, "needs evaluation data"),
    ({"compress": {"embeddings": {"rank": 8}}}, {}, "what it answers with"),
    ({"compress": {"prune": {"heads": 0.5}}}, {}, "needs training data"),
    ({"export": {"lengths": [16, 2048]}}, {}, "holds 1024 tokens"),
    ({}, {"onnx": GENERATE | {"precision": "dynamic-int8"}}, "quantized in blocks"),
    ({}, {"litert": GENERATE | {"precision": "static-int8"}}, "activations are not measured"),
])
def test_what_is_not_possible_is_told_before_any_work(recipe: dict[str, Any], changes: dict[str, Any], told: str) -> None:
    with pytest.raises(PlanError) as caught:
        planned(board(**changes), recipe=recipe)
    assert told in str(caught.value)


def test_weights_beyond_two_gigabytes_are_no_reason_to_refuse() -> None:
    plan = planned(board(litert=GENERATE | {"required": False}), parameters=10**9)
    assert {lane.lane.name: lane.variant for lane in plan.lanes} == {"litert": "tflite-dynamic-int8", "onnx": "onnx-blockwise-int8"}
