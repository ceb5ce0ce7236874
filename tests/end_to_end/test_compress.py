"""A tiny classifier through vocabulary, pruning, training and search, from the command line to the bundle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import TINY_RECIPE, Cli
from tiny import CLASSES, TEXTS

RECIPE = TINY_RECIPE + """[metric]
max_drop = 0.9
[data.evaluation]
file = "evaluation.csv"
[data.development]
file = "development.csv"
[[data.training]]
file = "training.csv"
[[data.training]]
file = "more.txt"
"""


@pytest.fixture
def data(cli: Cli, classifier: Path) -> Cli:
    """A recipe with data of every role; labels are what the model itself says is likely enough not to be constant."""
    texts = [text.replace('"', "'") for text in dict.fromkeys(" ".join(text.split()) for text in TEXTS) if text.strip()]
    for name, part in (("evaluation", texts[:60]), ("development", texts[60:120]), ("training", texts[120:180])):
        rows = "".join(f'"{text}",{CLASSES[number % 3]}\n' for number, text in enumerate(part))
        (cli.directory / f"{name}.csv").write_text("text,label\n" + rows, encoding="utf-8")
    (cli.directory / "more.txt").write_text("\n".join(texts[180:240]) + "\n", encoding="utf-8")
    (cli.directory / "edgeexport.toml").write_text(RECIPE.format(model=classifier), encoding="utf-8")
    return cli


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


def test_tune_tries_candidates_and_writes_the_best_as_a_recipe(data: Cli) -> None:
    recipe = data.directory / "edgeexport.toml"
    recipe.write_text(recipe.read_text() + '[data.calibration]\nfile = "training.csv"\n')
    # Of this size a smaller table of tokens serves, untrained, and nothing drops so far: the search ends long before its time is up.
    ran = data("tune", "--target", "linux-x86_64", "--precision", "static-int8", "--max-size-mb", "0.103", "--max-drop", "0.9", "--minutes", "20",
               "--json")
    assert ran.code in {0, 1, 3}, ran.err
    found = ran.json
    candidates = found["search"]["candidates"]
    assert candidates[0]["title"] == "INT8 alone"
    assert candidates[1]["title"].startswith("static-int8 for ")
    # Which lanes then have which precision goes by their speed.
    assert {fit["title"].partition(", static-int8")[0] for fit in found["search"]["fits"]} == {"rank 24", "486 tokens"}
    nearest = min(found["search"]["fits"], key=lambda fit: fit["distance"])
    (chosen,) = (candidate["title"] for candidate in candidates if candidate["chosen"])
    assert chosen.startswith(nearest["title"])
    assert any(candidate["front"] for candidate in candidates)
    report = found["bundles"][0]["report"]
    assert report["search"] == found["search"]
    assert "How it was found" in (data.directory / "bundles" / "tiny-linux-x86_64" / "report.html").read_text(encoding="utf-8")
    # The winner is an ordinary recipe, and building it makes nothing new.
    again = data("build", "--recipe", found["recipe"], "--target", "linux-x86_64", "--json")
    assert again.code in {0, 1, 3}, again.err
    assert all(step["stored"] for step in again.json["bundles"][0]["report"]["steps"])


def test_where_speed_is_wanted_tune_times_and_trains(data: Cli) -> None:
    ran = data("tune", "--target", "linux-x86_64", "--max-size-mb", "0.103", "--min-speedup", "0.01", "--max-drop", "0.9", "--minutes", "10",
               "--json")
    assert ran.code in {0, 1, 3}, ran.err
    search = ran.json["search"]
    assert search["timed"]["title"] == "width 0.35"
    assert len(search["scouts"]) >= 2 and all(0 < scout["loss"] < float("inf") for scout in search["scouts"])
    (trained,) = (candidate for candidate in search["candidates"] if candidate["chosen"])
    assert "epochs" in trained["title"]
    # What came nearest may be some bytes too large once it is a file; then it is the next that is trained.
    def shape(title: str) -> str:
        return title.partition(",")[0]

    too_large = {shape(candidate["title"]) for candidate in search["candidates"] if candidate["misses"]}
    nearest = min((scout for scout in search["scouts"] if shape(scout["title"]) not in too_large), key=lambda scout: scout["loss"])
    assert shape(trained["title"]) == shape(nearest["title"])


def test_a_wish_that_cannot_be_fulfilled_says_how_near_it_came(data: Cli) -> None:
    ran = data("tune", "--target", "linux-x86_64", "--max-size-mb", "0.001", "--minutes", "0.1")
    assert ran.code == 1, ran.err
    assert "not reached:" in ran.out
    assert "more than 0.001" in ran.out
    assert (data.directory / "bundles" / "tiny-linux-x86_64" / "manifest.json").is_file()  # the best there is, all the same


def test_tune_without_development_data_is_refused(data: Cli) -> None:
    recipe = data.directory / "edgeexport.toml"
    recipe.write_text(recipe.read_text().replace('[data.development]\nfile = "development.csv"\n', ""))
    ran = data("tune", "--target", "linux-x86_64")
    assert ran.code == 2
    assert "tune needs labelled development data" in ran.err
    assert "Traceback" not in ran.err


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
