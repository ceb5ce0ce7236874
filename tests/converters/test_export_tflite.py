"""TFLite export of every architecture, against Transformers' own answer."""

from __future__ import annotations

import pytest
from architectures import CASES, assert_equals_the_original, assert_padding_changes_nothing, output_names_of
from tiny import LENGTHS, Case
from zoo import Zoo

from edgeexport.inspection import inspect_file


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_equals_the_original(zoo: Zoo, case: Case) -> None:
    assert_equals_the_original(zoo, case, "tflite")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_padding_changes_nothing(zoo: Zoo, case: Case) -> None:
    """The same text in a short and a long signature."""
    assert_padding_changes_nothing(zoo, case, "tflite", LENGTHS)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_outputs_are_named_by_the_task(zoo: Zoo, case: Case) -> None:
    signatures = inspect_file(zoo.exported(case, "tflite").path / "model.tflite").signatures
    assert {signature.name for signature in signatures} == {f"seq_{length}" for length in LENGTHS}
    assert all({value.name for value in signature.outputs} == set(output_names_of(case)) for signature in signatures)
