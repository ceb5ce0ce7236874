"""Errors in TOML files name the file, the key, what was expected and the nearest valid key."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import Field

from edgeexport.artifact import Model
from edgeexport.errors import RecipeError
from edgeexport.toml_file import read_toml


class Inner(Model):
    colour: str
    width: int = Field(1, gt=0)


class Outer(Model):
    version: int = Field(alias="schema")
    inner: Inner | None = None
    several: tuple[Inner, ...] = ()
    tables: dict[str, Inner] = {}
    hidden: str = Field("", exclude=True)
    given: str = ""


def read(tmp_path: Path, text: str, extra: dict[str, object] | None = None) -> Outer:
    path = tmp_path / "file.toml"
    path.write_text(text, encoding="utf-8")
    return read_toml(path, Outer, RecipeError, extra)


def refused(tmp_path: Path, text: str, extra: dict[str, object] | None = None) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        read(tmp_path, text, extra)
    assert "file.toml" in caught.value.what
    return caught.value


def test_a_file_becomes_its_schema(tmp_path: Path) -> None:
    found = read(tmp_path, 'schema = 1\ninner = { colour = "red" }\n[tables.x]\ncolour = "blue"\nwidth = 2\n', {"given": "by the caller"})
    assert found.inner == Inner(colour="red")
    assert found.tables == {"x": Inner(colour="blue", width=2)}
    assert found.given == "by the caller"


@pytest.mark.parametrize(("text", "key", "near"), [
    ('schem = 1', "schem", "schema"),  # by the name that the file gives it
    ('schema = 1\ninnr = {}', "innr", "inner"),
    ('schema = 1\n[inner]\ncolor = "red"', "inner.color", "colour"),  # though colour is missing, too
    ('schema = 1\n[[several]]\ncolour = "red"\n[[several]]\ncolour = "red"\nwith = 2', "several.1.with", "width"),
    ('schema = 1\n[tables.x]\ncolour = "red"\nwidht = 2', "tables.x.widht", "width"),
    ('schema = 1\n[tables.inner]\ncolour = "red"\nwidht = 2', "tables.inner.widht", "width"),  # a table named like a key
])
def test_an_unknown_key_is_named_with_the_nearest_one(tmp_path: Path, text: str, key: str, near: str) -> None:
    error = refused(tmp_path, text)
    assert error.what.startswith(f"Unknown key '{key}' in ")
    assert error.hint == f"did you mean '{near}'?"


def test_a_key_like_no_other_gets_the_list_of_those_that_a_file_may_have(tmp_path: Path) -> None:
    assert refused(tmp_path, "schema = 1\nzzzzz = 1").hint == "known keys here: given, inner, schema, several, tables"
    assert refused(tmp_path, 'schema = 1\n[inner]\ncolour = "x"\nzzzzz = 1').hint == "known keys here: colour, width"


@pytest.mark.parametrize(("text", "key", "why"), [
    ("", "schema", "it is required, and missing"),
    ("schema = 1\n[inner]", "inner.colour", "it is required, and missing"),
    ("schema = 'one'", "schema", "(got 'one')"),
    ("schema = 1\ninner = 3", "inner", "(got 3)"),
    ('schema = 1\n[inner]\ncolour = "red"\nwidth = 0', "inner.width", "greater than 0 (got 0)"),
    ('schema = 1\n[[several]]\ncolour = ["red"]', "several.0.colour", "valid string (got ['red'])"),
])
def test_a_wrong_value_is_named_with_what_was_expected(tmp_path: Path, text: str, key: str, why: str) -> None:
    error = refused(tmp_path, text)
    assert error.what == f"Key '{key}' in {tmp_path / 'file.toml'} is not valid."
    assert why in str(error.why)


def test_a_key_that_the_caller_sets_is_not_the_files_to_say(tmp_path: Path) -> None:
    error = refused(tmp_path, "schema = 1\ngiven = 'mine'", {"given": "by the caller"})
    assert error.what.startswith("Unknown key 'given'")
    assert "by the caller" in str(error.why)


def test_a_file_that_is_not_there_or_not_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"Cannot read .*gone\.toml"):
        read_toml(tmp_path / "gone.toml", Outer, RecipeError)
    assert "line 2" in str(refused(tmp_path, "schema = 1\nwhat is this").why)
    (tmp_path / "file.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(RecipeError, match=r"Cannot read .*file\.toml"):
        read_toml(tmp_path / "file.toml", Outer, RecipeError)
