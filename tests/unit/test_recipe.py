"""A recipe says what to build, and every mistake in it is told by its key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edgeexport.errors import RecipeError, UnknownName
from edgeexport.policy import Policy
from edgeexport.recipe import load_recipe, recipe_for
from edgeexport.target import Lane

FULL = """
schema = 1
name = "help-search"
[model]
source = "some/model"
revision = "main"
max_length = 64
pooling = "mean"
[export]
lengths = [16, 64]
opset = 20
[precision.onnx]
preset = "dynamic-int8"
[[precision.onnx.overrides]]
match = "*value*"
scheme = "float"
[precision.lanes.litert]
preset = "weight-only-int8"
[data]
texts = "texts.txt"
[data.evaluation]
file = "rows.csv"
fields = { text = "sentence" }
where = { split = "test" }
[metric]
max_drop = 0.01
[parity]
cosine_p5 = 0.98
[budget]
size_mb_max = 30
"""


def recipe_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "edgeexport.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(tmp_path: Path, text: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load_recipe(recipe_file(tmp_path, text))
    return caught.value


def lane(**options: Any) -> Lane:
    return Lane(**{"name": "litert", "format": "tflite", "runtime": "ai-edge-litert", "version": ">=2.1", "precision": "dynamic-int8",
                   "verified_by": "ai-edge-litert==2.3.0"} | options)


def test_a_full_recipe_is_read(tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file(tmp_path, FULL))
    assert recipe.export.lengths == (16, 64)
    assert recipe.data.evaluation is not None
    assert recipe.data.evaluation.where == {"split": "test"}
    assert recipe.directory == tmp_path
    assert load_recipe(tmp_path) == recipe


@pytest.mark.parametrize(("old", "new", "key", "near"), [
    ('name = "help-search"', 'nam = "help-search"', "nam", "name"),
    ("[budget]", "[bugdet]", "bugdet", "budget"),
    ("revision =", "revison =", "model.revison", "revision"),
    ("pooling =", "poling =", "model.poling", "pooling"),
    ("opset =", "opsett =", "export.opsett", "opset"),
    ("[precision.onnx]", "[precision.onx]", "precision.onx", "onnx"),
    ('preset = "dynamic-int8"', 'presets = "dynamic-int8"', "precision.onnx.presets", "preset"),
    ('scheme = "float"', 'schema = "float"', "precision.onnx.overrides.0.schema", "scheme"),
    ('preset = "weight-only-int8"', 'prset = "weight-only-int8"', "precision.lanes.litert.prset", "preset"),
    ("texts =", "text =", "data.text", "texts"),
    ("[data.evaluation]", "[data.evalution]", "data.evalution", "evaluation"),
    ("fields =", "field =", "data.evaluation.field", "fields"),
    ("max_drop =", "maxdrop =", "metric.maxdrop", "max_drop"),
    ("size_mb_max =", "size_max_mb =", "budget.size_max_mb", "size_mb_max"),
])
def test_an_unknown_key_at_any_depth_is_named_with_the_nearest(tmp_path: Path, old: str, new: str, key: str, near: str) -> None:
    assert FULL.count(old) == 1 or old.startswith("[precision.onnx]")
    text = FULL.replace("[[precision.onnx.overrides]]\nmatch = \"*value*\"\nscheme = \"float\"\n", "") if "onx]" in new else FULL
    error = refused(tmp_path, text.replace(old, new))
    assert error.what == f"Unknown key '{key}' in {tmp_path / 'edgeexport.toml'}."
    assert error.hint == f"did you mean '{near}'?"


@pytest.mark.parametrize(("old", "new", "key"), [
    ("schema = 1", "schema = 2", "schema"),
    ('name = "help-search"', 'name = "Help Search"', "name"),
    ('name = "help-search"', 'name = "../evil"', "name"),
    ('source = "some/model"', "source = 3", "model.source"),
    ("max_length = 64", 'max_length = "long"', "model.max_length"),
    ("max_length = 64", "max_length = 2", "model.max_length"),
    ('pooling = "mean"', 'pooling = "average"', "model.pooling"),
    ("lengths = [16, 64]", "lengths = 16", "export.lengths"),
    ("lengths = [16, 64]", "lengths = [16.5, 64]", "export.lengths.0"),
    ("opset = 20", "opset = 17", "export.opset"),
    ('scheme = "float"', 'scheme = "flat"', "precision.onnx.overrides.0.scheme"),
    ('preset = "weight-only-int8"', "preset = 8", "precision.lanes.litert.preset"),
    ('texts = "texts.txt"', "texts = 3", "data.texts"),
    ('file = "rows.csv"', "file = []", "data.evaluation.file"),
    ('where = { split = "test" }', "where = { split = 1 }", "data.evaluation.where.split"),
    ("max_drop = 0.01", "max_drop = 1.0", "metric.max_drop"),
    ("max_drop = 0.01", "max_drop = nan", "metric.max_drop"),
    ("cosine_p5 = 0.98", "cosine_p5 = nan", "parity.cosine_p5"),
    ("cosine_p5 = 0.98", "cosine_p5 = '0.98%'", "parity.cosine_p5"),
    ("size_mb_max = 30", "size_mb_max = -1", "budget.size_mb_max"),
])
def test_a_wrong_value_is_told_by_its_key(tmp_path: Path, old: str, new: str, key: str) -> None:
    assert FULL.count(old) == 1
    assert refused(tmp_path, FULL.replace(old, new)).what == f"Key '{key}' in {tmp_path / 'edgeexport.toml'} is not valid."


@pytest.mark.parametrize(("lengths", "why"), [
    ("[64, 16]", "must rise"), ("[16, 16, 64]", "must rise"), ("[2, 64]", "start at 3"), ("[]", "must rise"),
    ("[16, 32]", "ends at 32, but model.max_length is 64"),
])
def test_length_buckets_must_rise_up_to_the_longest_text(tmp_path: Path, lengths: str, why: str) -> None:
    error = refused(tmp_path, FULL.replace("lengths = [16, 64]", f"lengths = {lengths}"))
    assert why in str(error.why)
    assert "schema" not in str(error.why)  # the message, without all of the recipe behind it


def test_a_recipe_that_is_not_there_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="There is no recipe") as caught:
        load_recipe(tmp_path / "gone.toml")
    assert "edgeexport init" in str(caught.value.hint)


def test_where_paths_count_from_is_not_a_key_of_the_file(tmp_path: Path) -> None:
    assert refused(tmp_path, 'directory = "/elsewhere"\n' + FULL).what.startswith("Unknown key 'directory'")


@given(st.text(min_size=1, max_size=20))
@example("..")
@example("owner/Model_1.5-INT8")
@example("modèles/été")
@example("/")
def test_any_source_gives_a_recipe_with_a_name_that_is_valid(source: str) -> None:
    recipe = recipe_for(source)
    assert recipe.model.source == source
    assert set(recipe.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789._-")
    assert recipe.name[0] not in "._-"


def test_the_name_of_a_bare_model_is_its_last_part() -> None:
    assert recipe_for("owner/All-MiniLM L6").name == "all-minilm-l6"
    assert recipe_for("./models/SmolLM2-135M.Q4_1.gguf").name == "smollm2-135m.q4_1"


def test_options_of_the_command_line_are_checked_like_a_file() -> None:
    with pytest.raises(RecipeError, match=r"Key 'model\.task' in the command line"):
        recipe_for("owner/model", model={"source": "owner/model", "task": "cooking"})


def test_a_lanes_precision_wins_over_its_formats_and_that_over_the_targets(tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file(tmp_path, FULL))
    assert recipe.policy(lane()) == ("weight-only-int8", Policy(default="weight-only"))
    assert recipe.policy(lane(name="other")) == ("dynamic-int8", Policy(default="dynamic"))
    name, policy = recipe.policy(lane(name="o", format="onnx", precision="float32"))
    assert name.startswith("dynamic-int8-")
    assert [(override.match, override.scheme) for override in policy.overrides] == [("*value*", "float")]


def test_different_overrides_make_variants_of_different_names(tmp_path: Path) -> None:
    recipes = [load_recipe(recipe_file(tmp_path, FULL.replace("*value*", pattern))) for pattern in ("*value*", "*key*", "*value*")]
    names = [recipe.policy(lane(name="o", format="onnx"))[0] for recipe in recipes]
    assert names[0] == names[2]
    assert names[0] != names[1]


def test_an_unknown_precision_suggests_the_nearest_of_its_format(tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file(tmp_path, FULL.replace("weight-only-int8", "weights-int8")))
    with pytest.raises(UnknownName, match="Unknown tflite precision 'weights-int8'") as caught:
        recipe.policy(lane())
    assert caught.value.hint == "did you mean 'weight-only-int8'?"
