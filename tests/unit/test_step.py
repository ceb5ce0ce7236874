"""A step's key is made of its name, code, options and backends; its code is its module and the siblings that it imports."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_steps import FILE, Write

from edgeexport.artifact import Kind, Spec
from edgeexport.step import Context, _collect_sources, _source, code_digest, version_of

PACKAGE = {
    "__init__.py": "",
    "own.py": "import json\nfrom ._sibling import help\nfrom . import second\nfrom edgeexport.artifact import Spec\n",
    "_sibling.py": "def help():\n    from apart.deep import deepest\n",
    "second.py": "X = 1\n",
    "deep.py": "deepest = 1\n",
    "stranger.py": "Y = 1\n",
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package `apart` that can be edited."""
    folder = tmp_path / "apart"
    folder.mkdir()
    for name, text in PACKAGE.items():
        (folder / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield folder
    forget()
    for name in [name for name in sys.modules if name.partition(".")[0] == "apart"]:
        del sys.modules[name]


def forget() -> None:
    code_digest.cache_clear()
    _source.cache_clear()


def digest_of_own() -> str:
    forget()
    importlib.invalidate_caches()
    return code_digest("apart.own")


@pytest.mark.parametrize("name", ["own.py", "_sibling.py", "second.py", "deep.py"])
def test_a_change_in_a_steps_module_or_a_sibling_that_it_imports_changes_the_code(package: Path, name: str) -> None:
    before = digest_of_own()
    assert digest_of_own() == before
    (package / name).write_text(PACKAGE[name] + "# another line\n", encoding="utf-8")
    assert digest_of_own() != before


def test_a_change_in_a_module_that_a_step_does_not_import_changes_nothing(package: Path) -> None:
    before = digest_of_own()
    (package / "stranger.py").write_text("Y = 2\n", encoding="utf-8")
    assert digest_of_own() == before


def test_code_is_read_without_running_it(package: Path) -> None:
    (package / "own.py").write_text("raise SystemExit('was run')\n", encoding="utf-8")
    assert len(digest_of_own()) == 64


def test_key_parts_hold_all_that_a_result_depends_on_besides_inputs() -> None:
    parts = Write(text="x").key_parts()
    assert parts == {"step": "write", "code": code_digest("fake_steps"), "options": {"text": "x", "seconds": 0.0, "megabytes": 1}, "backends": {}}


def test_a_backend_that_is_not_installed_has_no_version() -> None:
    assert version_of("no-such-distribution-anywhere") is None
    assert version_of("pydantic") == importlib.import_module("pydantic").__version__


def test_the_memory_of_a_step_that_says_nothing_grows_with_its_largest_input() -> None:
    step = super(Write, Write(text="x"))
    assert step.memory_mb({}) == 700
    assert step.memory_mb({"a": Spec(kind=Kind.ONNX, bytes=50_000_000), "b": Spec(kind=Kind.ONNX, bytes=100_000_000)}) == 1100


def test_a_step_writes_its_files_and_says_what_they_are(tmp_path: Path) -> None:
    assert Write(text="x").run({}, tmp_path, Context(tmp_path)) == Spec(kind=Kind.DATASET)
    assert (tmp_path / FILE).read_text(encoding="utf-8") == "x"


def test_what_answers_mean_is_part_of_the_code_of_the_reference() -> None:
    sources: dict[str, str] = {}
    _collect_sources("edgeexport.converters.compute_reference", sources)
    assert {"edgeexport.session.tasks", "edgeexport.session.text", "edgeexport.session.evidence", "edgeexport.converters._task_model"} < set(sources)
    assert not any(name.startswith(("edgeexport.dataset", "edgeexport.errors", "edgeexport.report")) for name in sources)
