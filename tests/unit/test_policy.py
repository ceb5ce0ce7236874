"""A policy is a default scheme and overrides; presets name the usual ones."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from edgeexport.errors import UnknownName
from edgeexport.policy import PRESETS, Override, Policy, preset


@pytest.mark.parametrize(("policy", "needs"), [
    (Policy(default="static"), True), (Policy(default="dynamic"), False), (Policy(default="float"), False),
    (Policy(default="dynamic", overrides=(Override(match="*", scheme="static"),)), True),
    (Policy(default="dynamic", overrides=(Override(match="*", scheme="float"),)), False),
])
def test_only_static_scales_need_calibration(policy: Policy, needs: bool) -> None:
    assert policy.needs_calibration is needs


def test_every_format_has_a_float_preset_and_int8_ones() -> None:
    for name, presets in PRESETS.items():
        assert preset(name, "float32") == Policy(default="float")
        assert {"dynamic-int8", "static-int8"} <= presets.keys()


def test_onnx_has_no_weight_only_preset() -> None:
    with pytest.raises(UnknownName, match="Unknown onnx precision 'weight-only-int8'") as caught:
        preset("onnx", "weight-only-int8")
    assert "dynamic-int8" in str(caught.value.why)


def test_a_scheme_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValidationError):
        Override(match="*", scheme="int4")  # type: ignore[arg-type]
