"""A tiny classifier through vocabulary, pruning and training, from the command line to the bundle; and through a repair."""

from __future__ import annotations

import json

from command_line import Cli


def test_a_model_made_smaller_is_built_measured_and_judged(data: Cli) -> None:
    recipe = data.directory / "edgeexport.toml"
    recipe.write_text(recipe.read_text() + "[compress.vocabulary]\nsize = 500\n[compress.prune]\nlayers = 1\nneurons = 0.5\nheads = 0.5\n"
                      "[compress.distill]\nepochs = 3\nbatch = 8\nlearning_rate = 5e-4\n")
    ran = data("build", "--target", "linux-x86_64", "--json")
    assert ran.code in {0, 1, 3}, ran.err
    report = ran.json["bundles"][0]["report"]
    compression = report["compression"]
    assert compression["vocabulary"] == [598, 500]
    assert compression["layers"] == [2, 1]
    assert (compression["heads"], compression["neurons"]) == ([1], [32])
    before, after = compression["parameters"]
    assert after < 0.8 * before
    assert {"training", "development"} == set(compression["coverage"])
    assert compression["training"]["history"][-1][1] < compression["training"]["history"][0][1]  # nearer to the original
    parity = [check for lane in report["lanes"] for check in lane["checks"] if check["group"] == "parity"]
    assert [check for check in parity if check["verdict"] == "fail"] == []  # each lane is what it was made of
    for lane in report["lanes"]:
        assert lane["metrics"][0]["name"] == "accuracy"
        assert lane["metrics"][0]["reference"]["n"] == 60
    answered = data("run", "bundles/tiny-linux-x86_64", "How do I reset it?", "--json")
    assert answered.code == 0, answered.err
    assert data("verify", "bundles/tiny-linux-x86_64").code == ran.code
    again = data("build", "--target", "linux-x86_64", "--json")
    assert all(step["stored"] for step in again.json["bundles"][0]["report"]["steps"])


def test_a_lane_that_quantization_spoils_is_mended_and_says_what_was_harmed(data: Cli) -> None:
    recipe = data.directory / "edgeexport.toml"
    texts = (data.directory / "more.txt").read_text(encoding="utf-8")
    (data.directory / "calibration.txt").write_text(texts, encoding="utf-8")
    recipe.write_text(recipe.read_text() + '[data.calibration]\nfile = "calibration.txt"\n[parity]\nagreement = 0.4\nlogit_error_p95 = 0.8\n'
                      '[precision.tflite]\npreset = "static-int8"\n[[precision.tflite.overrides]]\nmatch = "op:*"\nscheme = "static"\n')
    named = data("build", "--target", "linux-x86_64", "--no-repair", "--json")
    lane = next(lane for lane in named.json["bundles"][0]["report"]["lanes"] if lane["format"] == "tflite")
    assert lane["verdict"] == "fail"
    spoilt = lane
    assert lane["repair"]["causes"][0]["distance"] >= lane["repair"]["causes"][-1]["distance"]
    assert lane["repair"]["promoted"] == []
    mended = data("build", "--target", "linux-x86_64", "--json")
    lane = next(lane for lane in mended.json["bundles"][0]["report"]["lanes"] if lane["format"] == "tflite")
    repair = lane["repair"]
    assert repair["promoted"], json.dumps(repair)
    assert len(repair["promoted"]) < 2 * len(repair["causes"])
    assert repair["size_before"] > 0
    assert repair["size_after"] > 0
    after, before = ([check["figure"]["value"] for check in each["checks"] if check["name"].startswith("logit error")] for each in (lane, spoilt))
    assert all(error < 0.9 * old for error, old in zip(after, before, strict=True)), (before, after)
