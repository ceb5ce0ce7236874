"""Errors say what, why and what to do, also across a process boundary."""

from __future__ import annotations

import inspect
import json

import pytest

from edgeexport import errors
from edgeexport.errors import EdgeExportError, MissingExtra, UnknownName, from_dict

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, EdgeExportError)]


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_crosses_a_process_boundary_with_class_and_words(cls: type[EdgeExportError]) -> None:
    error = cls("Something failed.", why="it was broken", hint="mend it")
    found = from_dict(json.loads(json.dumps(error.as_dict())))
    assert type(found) is cls
    assert (found.what, found.why, found.hint) == ("Something failed.", "it was broken", "mend it")
    assert str(found) == "Something failed.\n  why: it was broken\n  try: mend it"
    assert found.exit_code == 2


def test_in_a_report_an_error_is_what_and_why() -> None:
    assert EdgeExportError("It broke.", why="it was old", hint="get another").reason == "It broke: it was old"
    assert EdgeExportError("It broke.").reason == "It broke."


def test_an_error_without_cause_or_advice_is_one_line() -> None:
    assert str(EdgeExportError("It failed.")) == "It failed."
    assert from_dict(EdgeExportError("It failed.").as_dict()).why is None


@pytest.mark.parametrize("data", [{"kind": "Exception", "what": "x"}, {"kind": "os", "what": "x"}, {"what": "x"}])
def test_an_unknown_kind_becomes_a_plain_error(data: dict[str, str | None]) -> None:
    found = from_dict(data)
    assert type(found) is EdgeExportError
    assert found.what == "x"


def test_an_unknown_name_suggests_the_nearest_and_lists_the_known() -> None:
    error = UnknownName.among("target", "raspbery", ["raspberrypi", "android", "linux"])
    assert error.what == "Unknown target 'raspbery'."
    assert error.why == "known: android, linux, raspberrypi"
    assert error.hint == "did you mean 'raspberrypi'?"


def test_a_name_like_no_other_gets_no_suggestion() -> None:
    assert UnknownName.among("target", "zzz", ["android"]).hint is None


def test_a_missing_extra_says_how_to_install_it() -> None:
    error = MissingExtra.named("onnx", "onnxscript")
    assert "onnxscript" in str(error.why)
    assert error.hint == "pip install 'edgeexport[onnx]'"


def test_verdicts_and_errors_end_with_different_exit_codes() -> None:
    codes = [errors.EXIT_PASS, errors.EXIT_FAIL, errors.EXIT_ERROR, errors.EXIT_INCONCLUSIVE, errors.EXIT_INTERRUPTED]
    assert codes == [0, 1, 2, 3, 130]
