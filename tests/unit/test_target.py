"""Targets: the shipped ones are whole and each figure has its source; a user's own is checked like them."""

from __future__ import annotations

from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from edgeexport.errors import TargetError, UnknownName
from edgeexport.runner.environment import Environment
from edgeexport.session.payload import RUNTIMES
from edgeexport.target import Target, load_target, target_names

BOARD = """
schema = 1
title = "My board"
[device]
isa = "aarch64"
cpu = "some core"
cores = 2
ram_mb = 512
[budget]
ram_mb_max = 100
[[lanes]]
name = "litert"
format = "tflite"
runtime = "ai-edge-litert"
version = ">=2.1"
precision = "dynamic-int8"
verified_by = "ai-edge-litert==2.3.0"
[[lanes]]
name = "onnx"
format = "onnx"
runtime = "onnxruntime"
version = ">=1.17"
precision = "float32"
verified_by = "onnxruntime==1.31.1"
required = false
"""


def board(tmp_path: Path, text: str = BOARD, name: str = "board.toml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def figures(target: Target) -> set[str]:
    """The dotted keys of a target that are figures or claims about the device."""
    device = {f"device.{name}" for name, value in target.device.model_dump().items() if name != "isa" and value not in (None, ())}
    budget = {f"budget.{name}" for name, value in target.budget.model_dump().items() if value is not None}
    return device | budget | {f"lanes.{lane.name}.version" for lane in target.lanes}


@pytest.mark.parametrize("name", target_names())
def test_every_figure_of_a_shipped_target_has_its_source_and_no_source_is_of_nothing(name: str) -> None:
    target = load_target(name)
    assert set(target.sources) == figures(target)
    assert all(len(source) > 10 for source in target.sources.values())


@pytest.mark.parametrize("name", target_names())
def test_every_lane_of_a_shipped_target_can_be_verified_by_a_version_that_it_admits(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert any(lane.required for lane in target.lanes)
    for lane in target.lanes:
        assert lane.runtime in RUNTIMES
        runtime, _, version = lane.verified_by.partition("==")
        assert runtime == lane.runtime
        assert version in SpecifierSet(lane.version)
        assert Environment(lane.verified_by).lock  # raises where there is none


def test_the_target_of_the_first_words_of_the_readme_is_there() -> None:
    assert "raspberrypi" in target_names()


def test_a_users_own_board_is_read_from_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board(tmp_path)
    monkeypatch.chdir(tmp_path)
    target = load_target("./board.toml")
    assert target.name == "board"
    assert target == load_target("board.toml")
    assert target.lane("onnx").required is False
    assert len(target.lane("litert").tasks) == 6  # all that there are
    assert figures(target) == {"device.cpu", "device.cores", "device.ram_mb", "budget.ram_mb_max", "lanes.litert.version", "lanes.onnx.version"}


def test_an_unknown_target_suggests_the_nearest() -> None:
    with pytest.raises(UnknownName) as caught:
        load_target("raspbery")
    assert "raspberrypi" in str(caught.value.hint)


def test_a_file_that_is_not_there_says_how_to_list_targets(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="There is no target file") as caught:
        load_target(str(tmp_path / "gone.toml"))
    assert "edgeexport targets list" in str(caught.value.hint)


def test_an_unknown_lane_suggests_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="Unknown lane of target 'board' 'onx'") as caught:
        load_target(str(board(tmp_path))).lane("onx")
    assert caught.value.hint == "did you mean 'onnx'?"


@pytest.mark.parametrize(("old", "new", "key", "near"), [
    ("title =", "titel =", "titel", "title"),
    ("cores =", "core =", "device.core", "cores"),
    ("ram_mb_max =", "ram_max_mb =", "budget.ram_max_mb", "ram_mb_max"),
    ("required = false", "requierd = false", "lanes.1.requierd", "required"),
])
def test_an_unknown_key_at_any_depth_is_named_with_the_nearest(tmp_path: Path, old: str, new: str, key: str, near: str) -> None:
    with pytest.raises(TargetError) as caught:
        load_target(str(board(tmp_path, BOARD.replace(old, new))))
    assert caught.value.what.startswith(f"Unknown key '{key}' in ")
    assert caught.value.hint == f"did you mean '{near}'?"


@pytest.mark.parametrize(("old", "new", "where"), [
    ('isa = "aarch64"', 'isa = "arm64"', "Key 'device.isa'"),
    ("cores = 2", "cores = 0", "Key 'device.cores'"),
    ("ram_mb = 512", 'ram_mb = "half"', "Key 'device.ram_mb'"),
    ("ram_mb_max = 100", "ram_mb_max = 0", "Key 'budget.ram_mb_max'"),
    ('format = "onnx"', 'format = "coreml"', "Key 'lanes.1.format'"),
    ('precision = "float32"', 'precision = "weight-only-int8"', "onnx has no precision 'weight-only-int8'; known: blockwise-int4, blockwise-int8"),
    ('name = "onnx"', 'name = "litert"', "lane names must differ, got litert, litert"),
    ('name = "onnx"', 'name = "reference"', "a lane can't be called 'reference'"),
    ('name = "onnx"', 'name = "../onnx"', "Key 'lanes.1.name'"),
    ("schema = 1", "schema = 9", "Key 'schema'"),
    ("schema = 1", 'schema = 1\nname = "other"', "Unknown key 'name'"),
])
def test_a_wrong_value_is_told_by_its_key(tmp_path: Path, old: str, new: str, where: str) -> None:
    assert old in BOARD
    with pytest.raises(TargetError) as caught:
        load_target(str(board(tmp_path, BOARD.replace(old, new))))
    assert where in str(caught.value)


def test_a_target_without_lanes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="Key 'lanes'"):
        load_target(str(board(tmp_path, "lanes = []\n" + BOARD[:BOARD.index("[[lanes]]")])))
