"""A search for a smaller classifier, from the command line to the bundle of the best."""

from __future__ import annotations

from command_line import Cli


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
