"""The catalog finds every converter by the name of its file, and the core's own steps."""

from __future__ import annotations

from pathlib import Path

import fake_steps
import pytest

from edgeexport import converters
from edgeexport.artifact import Kind
from edgeexport.catalog import CORE_STEPS, find_step, make_step, step_in, step_modules
from edgeexport.errors import UnknownName
from edgeexport.step import Step

FILES = sorted(path.stem for path in Path(next(iter(converters.__path__))).glob("[!_]*.py"))


def test_every_public_file_of_the_converters_is_a_step() -> None:
    assert {"load_checkpoint", "export_onnx", "quantize_tflite"} <= set(FILES)
    assert set(step_modules()) == {*FILES, *CORE_STEPS}


@pytest.mark.parametrize("name", sorted({*FILES, *CORE_STEPS}))
def test_every_step_has_its_name_its_inputs_and_typed_options(name: str) -> None:
    step = find_step(name)
    assert issubclass(step, Step)
    assert step.name == name
    assert step.consumes
    assert all(kinds and kinds <= set(Kind) for kinds in step.consumes.values())
    assert step.infer is not Step.infer
    assert step.run is not Step.run
    assert step.model_config["frozen"]


def test_an_unknown_step_suggests_the_nearest() -> None:
    with pytest.raises(UnknownName) as caught:
        find_step("export_onx")
    assert caught.value.hint == "did you mean 'export_onnx'?"


def test_a_step_is_made_with_its_options() -> None:
    assert make_step("assemble_payload", variant="onnx-float32").model_dump() == {"variant": "onnx-float32"}


def test_a_module_must_define_exactly_one_step_of_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert step_in("fake_steps", "write") is fake_steps.Write
    with pytest.raises(TypeError, match="exactly one step named 'nothing', found 0"):
        step_in("fake_steps", "nothing")
    monkeypatch.setattr(fake_steps, "Second", type("Second", (fake_steps.Write,), {"__module__": "fake_steps"}), raising=False)
    with pytest.raises(TypeError, match="found 2"):
        step_in("fake_steps", "write")
