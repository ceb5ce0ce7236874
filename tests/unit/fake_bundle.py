"""A sealed bundle with two lanes, made of a few bytes; no runtime can run it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from edgeexport import bundle
from edgeexport.bundle import Manifest
from edgeexport.inspection.model import ModelReport
from edgeexport.payload import write_payload
from edgeexport.report.model import Report
from edgeexport.session.evidence import Answers
from edgeexport.verify.check import Check, Verdict
from edgeexport.verify.lane_report import LaneReport

LANES = {"onnx": ("onnx", "onnx-dynamic-int8", "onnxruntime==1.31.1"), "litert": ("tflite", "tflite-dynamic-int8", "ai-edge-litert==2.3.0")}
ROWS = [{"id": str(i), "text": f"text {i} ü"} for i in range(6)]


def answers(seed: int) -> Answers:
    numbers = np.random.default_rng(seed).normal(size=(6, 1, 4)).astype(np.float32)
    return Answers(list(numbers), [[]] * 6, [3, 4, 5, 6, 7, 8], [False] * 6)


def write_payload_of(directory: Path, variant: str, model_format: str) -> Path:
    """A one-variant payload, as the step that lays it out makes it."""
    (directory / "text").mkdir(parents=True)
    (directory / "licences").mkdir()
    (directory / "variants" / variant).mkdir(parents=True)
    (directory / "text" / "tokenizer.json").write_text("{}", encoding="utf-8")
    (directory / "text" / "text.json").write_text(json.dumps({"max_length": 8, "own_max_length": 8, "pad_id": 0, "inputs": ["input_ids"]}),
                                                  encoding="utf-8")
    (directory / "licences" / "LICENSE").write_text("free", encoding="utf-8")
    (directory / "variants" / variant / f"model.{model_format}").write_bytes(b"weights of " + variant.encode() + bytes(range(256)))
    write_payload(directory, {"schema": 1, "task": "sentence-similarity", "labels": [], "problem_type": None, "variants": {
        variant: {"format": model_format, "precision": "dynamic-int8", "lengths": [], "model": f"variants/{variant}/model.{model_format}",
                  "files": [f"variants/{variant}/model.{model_format}"]}}})
    return directory


def write_inspection_of(path: Path, variant: str, model_format: str) -> Path:
    """What the inspection of a variant's model found."""
    report = ModelReport(file=f"variants/{variant}/model.{model_format}", format=model_format, bytes=300, signatures=(), operators=(),  # type: ignore[arg-type]
                         weight_groups=(), float_weights=(), stored_twice=(), integer_weight_share=0.99, integer_compute_share=0.9, overhead_bytes=3)
    path.write_text(report.model_dump_json(), encoding="utf-8")
    return path


def report_of(verdicts: dict[str, Verdict], name: str = "help-search", target: str = "board") -> Report:
    lanes = tuple(
        LaneReport(lane=lane, format=LANES[lane][0], runtime=LANES[lane][2].partition("==")[0], runtime_version=">=1", verified_by=LANES[lane][2],
                   required=lane == "onnx", variant=LANES[lane][1], precision="dynamic-int8", verdict=verdict,
                   scope=f"{verdict.value} (host x86-64; not run on aarch64)", golden_tolerance=0.01, size_bytes=300,
                   checks=(Check(name="size", group="budget", verdict=verdict, figure=0.3, bound=1.0, relation="<="),))
        for lane, verdict in verdicts.items())
    leading = lanes[0]
    return Report(name=name, target=target, target_title="Board", isa="aarch64", host="host x86-64", verdict=leading.verdict or Verdict.FAIL,
                  scope=leading.scope, model={"licence": "apache-2.0"}, text={"max_length": 8}, datasets=(), lanes=lanes, steps=())


def fill_bundle(place: Path, scratch: Path, verdicts: dict[str, Verdict] | None = None, **names: str) -> Manifest:
    """Fill a directory with all that a bundle has, and seal it."""
    report = report_of(verdicts or {"onnx": Verdict.PASS, "litert": Verdict.PASS}, **names)
    payloads = [write_payload_of(scratch / lane.lane, str(lane.variant), lane.format) for lane in report.lanes]
    payload = bundle.lay_out_payload(place, payloads)
    bundle.add_golden(place, ROWS, [0, 2, 5], answers(0), {lane.lane: answers(1) for lane in report.lanes})
    bundle.add_inspections(place, {str(lane.variant): write_inspection_of(scratch / lane.lane / "inspection.json", str(lane.variant), lane.format)
                                   for lane in report.lanes})
    bundle.add_programs(place)
    (place / "report.json").write_text(report.model_dump_json(), encoding="utf-8")
    (place / "report.html").write_text("<p>report</p>", encoding="utf-8")
    return bundle.seal(place, report, payload, {"source": {"given": "some/model", "revision": None, "files": {"model.safetensors": "d"}}},
                       bundle.Margins(max_drop=0.02))


def make_bundle(place: Path, scratch: Path, verdicts: dict[str, Verdict] | None = None, **names: str) -> Manifest:
    """A sealed bundle at a place."""
    with bundle.new_bundle(place) as fresh:
        return fill_bundle(fresh, scratch, verdicts, **names)
