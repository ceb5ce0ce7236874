"""What is checked before a plan."""

from __future__ import annotations

import pytest

from edgeexport.errors import TargetError, UnknownName
from edgeexport.prepare import check_lanes
from edgeexport.recipe import Recipe
from edgeexport.target import Target, load_target


def recipe(**lanes: str) -> Recipe:
    return Recipe.model_validate({"schema": 1, "name": "x", "model": {"source": "a/b"}, "precision": {
        "lanes": {name: {"preset": preset} for name, preset in lanes.items()}}})


def with_lane(**changes: str) -> Target:
    target = load_target("linux-x86_64")
    return target.model_copy(update={"lanes": (target.lanes[0].model_copy(update=changes),)})


def test_a_recipe_may_name_lanes_of_these_and_of_the_shipped_targets() -> None:
    own = with_lane(name="my-lane")
    check_lanes(recipe(litert="float32", onnx="float32", **{"tflite-runtime": "float32"}), [load_target("linux-x86_64")])
    check_lanes(recipe(**{"my-lane": "float32"}), [own])
    with pytest.raises(UnknownName, match=r"Unknown lane in \[precision\.lanes\] 'litrt'") as caught:
        check_lanes(recipe(litrt="float32"), [own])
    assert caught.value.hint == "did you mean 'litert'?"


def test_a_runtime_that_does_not_run_the_format_is_told_before_any_work() -> None:
    with pytest.raises(TargetError, match="is onnx, and tflite-runtime runs tflite"):
        check_lanes(recipe(), [with_lane(format="onnx", runtime="tflite-runtime")])


def test_a_runtime_that_nothing_can_run_is_told_before_any_work() -> None:
    with pytest.raises(UnknownName, match="Unknown runtime of the lane 'fast' of linux-x86_64 'onnxruntim'") as caught:
        check_lanes(recipe(), [with_lane(name="fast", runtime="onnxruntim")])
    assert caught.value.hint == "did you mean 'onnxruntime'?"
