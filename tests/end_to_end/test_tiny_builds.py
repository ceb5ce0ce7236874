"""Builds of a tiny checkpoint: being killed, being two at once, being short of memory, other precisions, labelled data."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import TINY_RECIPE, Cli
from tiny import CLASSES


@pytest.fixture
def recipe(cli: Cli, classifier: Path) -> Callable[..., None]:
    def write(more: str = "") -> None:
        (cli.directory / "edgeexport.toml").write_text(TINY_RECIPE.format(model=classifier) + more)

    return write


def leftovers(cli: Cli) -> list[str]:
    """Processes that still work for a store."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if str(cli.directory).encode() in entry.read_bytes():
                found.append(entry.parent.name)
        except OSError:
            continue
    return found


def wait_until_quiet(cli: Cli) -> list[str]:
    for _ in range(50):
        if not leftovers(cli):
            break
        time.sleep(0.1)
    return leftovers(cli)


def start(cli: Cli) -> subprocess.Popen[str]:
    """A build as from a terminal: what a shell starts in the background ignores Ctrl-C, and so would its children."""
    return subprocess.Popen(cli.command("build", "--target", "linux-x86_64", "--json"), cwd=cli.directory, env=cli.environment,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


def wait_for_step(cli: Cli, step: str) -> None:
    for _ in range(600):
        if list((cli.directory / "cache" / "actions").glob(f"{step}/*.json")):
            return
        time.sleep(0.1)
    raise AssertionError(f"{step} never ended")


def test_killed_with_ctrl_c_and_with_9_then_resumed(cli: Cli, recipe: Callable[..., None]) -> None:
    recipe()
    build = start(cli)
    wait_for_step(cli, "load_checkpoint")
    time.sleep(1)
    build.send_signal(signal.SIGINT)
    _, err = build.communicate(timeout=30)
    assert build.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert wait_until_quiet(cli) == []

    build = start(cli)
    wait_for_step(cli, "export_onnx")
    build.kill()
    build.communicate(timeout=30)
    assert wait_until_quiet(cli) == []

    build = start(cli)
    out, err = build.communicate(timeout=300)
    steps = {step["id"]: step for step in json.loads(out)["bundles"][0]["report"]["steps"]}
    assert build.returncode in {0, 1, 3}, err
    assert steps["compute_reference"]["bytes"] > 0
    assert "export_onnx" not in steps or steps["export_onnx"]["stored"]


def test_two_builds_at_once_do_the_work_once(cli: Cli, recipe: Callable[..., None]) -> None:
    recipe()
    builds = [start(cli), start(cli)]
    reports = []
    for build in builds:
        out, err = build.communicate(timeout=300)
        assert build.returncode in {0, 1, 3}, err
        reports.append(json.loads(out)["bundles"][0])
    assert reports[0]["payload"] == reports[1]["payload"]
    ran = [{step["id"] for step in report["report"]["steps"] if not step["stored"]} for report in reports]
    assert not ran[0] & ran[1]


def test_a_damaged_store_entry_is_made_again(cli: Cli, recipe: Callable[..., None]) -> None:
    recipe()
    first = cli("build", "--target", "linux-x86_64", "--json").json["bundles"][0]
    model = cli.directory / first["directory"] / "variants" / "onnx-dynamic-int8" / "model.onnx"
    content = model.read_bytes()
    stored = next(path for path in (cli.directory / "cache" / "blobs").glob("*/*") if path.read_bytes() == content)
    stored.chmod(0o644)
    stored.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    again = cli("build", "--target", "linux-x86_64", "--json").json["bundles"][0]
    assert again["payload"] == first["payload"]
    assert (cli.directory / again["directory"] / "variants" / "onnx-dynamic-int8" / "model.onnx").read_bytes() == content


def test_a_step_that_needs_too_much_memory_is_named(cli: Cli, recipe: Callable[..., None]) -> None:
    recipe()
    ran = cli("build", "--target", "linux-x86_64", "--memory-mb", "500", "--jobs", "1")
    assert ran.code == 2
    assert "MB of memory it may use (peak" in ran.err
    assert "--memory-mb" in ran.err


def test_an_optional_lane_that_fails_costs_nothing_but_itself(cli: Cli, recipe: Callable[..., None]) -> None:
    recipe("""[precision.lanes.litert]
preset = "weight-only-int8"
overrides = [{match = "op:RSQRT", scheme = "weight-only"}]
""")
    shown = cli("targets", "show", "linux-x86_64", "--toml").out
    (cli.directory / "strict.toml").write_text(shown)
    lane = shown.index('name = "litert"')
    (cli.directory / "board.toml").write_text(shown[:lane] + "required = false\n" + shown[lane:])
    assert cli("build", "--target", "strict.toml").code == 2

    ran = cli("build", "--target", "board.toml", "--json")
    assert ran.code in {0, 1, 3}, ran.err
    assert "✗ quantize_tflite" in ran.err
    report = ran.json["bundles"][0]["report"]
    by_lane = {lane["lane"]: lane for lane in report["lanes"]}
    assert by_lane["onnx"]["verdict"] is not None
    assert by_lane["litert"]["variant"] is None
    assert "cannot make RSQRT weight-only" in by_lane["litert"]["refusal"]
    assert cli("verify", ran.json["bundles"][0]["directory"]).code == ran.code
    assert "litert: not offered" in cli("build", "--target", "board.toml").out


def test_labelled_data_and_static_precisions(cli: Cli, recipe: Callable[..., None]) -> None:
    words = [f"w{i}" for i in range(40)]
    rows = ["text,label"] + [f"{' '.join(words[i % 7:i % 7 + 5])} {i},{CLASSES[i % len(CLASSES)]}" for i in range(60)]
    (cli.directory / "evaluation.csv").write_text("\n".join(rows))
    (cli.directory / "calibration.txt").write_text("\n".join(f"calibrate {i} {' '.join(words[:i % 9])}" for i in range(30)))
    recipe("""[precision.onnx]
preset = "static-int8"
[precision.lanes.litert]
preset = "static-int8"
[data.evaluation]
file = "evaluation.csv"
[data.calibration]
file = "calibration.txt"
""")
    ran = cli("build", "--target", "linux-x86_64", "--no-repair", "--json")
    assert ran.code in {0, 1, 3}, ran.err
    report = ran.json["bundles"][0]["report"]
    for lane in report["lanes"]:
        assert lane["precision"] == "static-int8"
        assert [metric["name"] for metric in lane["metrics"]] == ["accuracy", "macro F1"]
        assert lane["compute"]["integer_compute_share"] > 0.5
    assert (cli.directory / ran.json["bundles"][0]["archive"]).is_file()
