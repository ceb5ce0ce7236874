"""The house rules of imports: light at import, one direction, and each rule proven by a planted violation."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import pkgutil
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

import edgeexport
from edgeexport import converters

CORE = Path(str(edgeexport.__file__)).parent
CONVERTERS = Path(next(iter(converters.__path__)))

HEAVY = ("torch", "tensorflow", "onnx", "onnxruntime", "transformers", "ai_edge_litert", "scipy", "jax", "optimum", "litert_torch")

# Bottom up: a module imports what stands before it, and within a package its siblings.
LAYERS = (
    "errors", "session", "data", "take_place",
    "artifact", "architectures", "toml_file", "policy", "target", "recipe",
    "saved_model_signature", "quantization", "gguf_file", "text_settings", "checkpoint", "gguf_checkpoint", "adapter",
    "saved_model", "store", "source",
    "step", "catalog", "records", "dataset", "probes", "resolve", "graph", "loading", "compression", "plan",
    "run_step", "schedule", "payload", "inspection", "runner",
    "verify", "report", "bundle", "distribute", "prepare", "evaluation", "repair", "candidates", "workbench", "tune",
    "build", "verify_bundle", "cli", "harness", "__main__",
)
# What a converter may import, besides its siblings. The two of SavedModel read what TensorFlow wrote, and that of GGUF what llama.cpp did, as
# `checkpoint` does for Transformers.
FOR_CONVERTERS = ("errors", "artifact", "architectures", "step", "target", "policy", "dataset", "session", "saved_model_signature", "saved_model",
                  "gguf_file")


def modules(folder: Path, package: str) -> dict[str, Path]:
    """Module → file, below a package's folder."""
    found = {}
    for path in sorted(folder.rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        found[".".join([package, *(parts[:-1] if parts[-1] == "__init__" else parts)])] = path
    return found


@cache
def parsed(text: str) -> ast.Module:
    return ast.parse(text)


def imports(module: str, path: Path, known: dict[str, Path]) -> Iterator[tuple[str, bool]]:
    """What a file imports, wherever in it; and whether relatively."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(parsed(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, False) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = importlib.util.resolve_name("." * node.level + (node.module or ""), package) if node.level else str(node.module)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                yield (inner if inner in known or base == "edgeexport" else base), bool(node.level)


def layer(module: str) -> int:
    """The place of a module of the core in the list."""
    inside = module.removeprefix("edgeexport.")
    return LAYERS.index(inside if inside in LAYERS else inside.partition(".")[0])


def wrong_direction(core: Path) -> list[str]:
    """Imports within the core that point upwards; modules that are in no layer."""
    known = modules(core, "edgeexport")
    found = []
    for module, path in known.items():
        if module == "edgeexport":
            continue  # holds the version; what else it offers it imports when asked
        if module.split(".")[1] not in LAYERS:
            found.append(f"{module} is in no layer")
            continue
        found += [f"{module} imports {other}" for other, _ in imports(module, path, known)
                  if other in known and other != "edgeexport" and layer(other) > layer(module)]
    return found


def cycles(core: Path) -> list[str]:
    """Modules that can't be put into any order: each imports one of the others."""
    known = modules(core, "edgeexport")
    rest = {module: {other for other, _ in imports(module, path, known)} & known.keys() - {module, "edgeexport"} for module, path in known.items()}
    while ready := [module for module, needs in rest.items() if not needs & rest.keys()]:
        for module in ready:
            del rest[module]
    return sorted(rest)


def converters_in_the_core(core: Path) -> list[str]:
    """Modules of the core that import a converter, or the package itself."""
    known = modules(core, "edgeexport")
    return [module for module, path in known.items() for other, _ in imports(module, path, known) if other.startswith("edgeexport.converters")]


def strangers_in_converters(folder: Path) -> list[str]:
    """Imports of converters from elsewhere in the core; siblings that are not imported relatively."""
    known = modules(folder, "edgeexport.converters")
    found = []
    for module, path in known.items():
        for other, relative in imports(module, path, known):
            if other.partition(".")[0] == "edgeexport" and not relative and ".".join(other.split(".")[1:2]) not in FOR_CONVERTERS:
                found.append(f"{module} imports {other}")
    return found


def heavy_at_import(folder: Path) -> list[str]:
    """Files that import a heavy package outside of a function and of `if TYPE_CHECKING`."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        todo: list[ast.AST] = [parsed(path.read_text(encoding="utf-8"))]
        while todo:
            node = todo.pop()
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                continue
            if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                todo += node.orelse
                continue
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [str(node.module)] if isinstance(
                node, ast.ImportFrom) and not node.level else []
            found += [f"{path.name} imports {name}" for name in names if name.partition(".")[0] in HEAVY]
            todo += ast.iter_child_nodes(node)
    return found


def loaded_by(names: list[str], path: Path | None = None) -> tuple[set[str], str]:
    """The modules that a fresh process has after importing `names`, and what it complained of."""
    code = "import importlib, json, sys\nfor name in json.load(sys.stdin): importlib.import_module(name)\nprint(json.dumps(list(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], input=json.dumps(names), capture_output=True, text=True, check=False,
                         env=os.environ | ({"PYTHONPATH": str(path)} if path else {}))
    return (set(json.loads(ran.stdout)) if ran.returncode == 0 else set()), ran.stderr


# -- the house as it stands


def test_importing_everything_loads_nothing_heavy() -> None:
    core = [name for name in modules(CORE, "edgeexport") if name not in {"edgeexport.__main__", "edgeexport.data.sample"}]
    steps = [f"edgeexport.converters.{info.name}" for info in pkgutil.iter_modules(converters.__path__)]
    assert len(core) > 60
    assert len(steps) > 10
    loaded, complaint = loaded_by([*core, *steps])
    assert set(core + steps) <= loaded, complaint
    assert loaded & set(HEAVY) == set()


def test_the_first_page_of_help_and_the_errors_load_next_to_nothing() -> None:
    loaded, complaint = loaded_by(["edgeexport", "edgeexport.cli", "edgeexport.errors"])
    assert "edgeexport.cli" in loaded, complaint
    assert loaded & {"numpy", "pydantic", "rich", "huggingface_hub", "psutil", "jinja2", "edgeexport.session"} == set()


def test_the_session_loads_only_what_a_device_has() -> None:
    loaded, complaint = loaded_by(["edgeexport.session", "edgeexport.session.agent"])
    assert "edgeexport.session.agent" in loaded, complaint
    assert loaded & {"pydantic", "psutil", "rich", "click", "platformdirs", "filelock", "huggingface_hub", "tokenizers"} == set()
    assert {name for name in loaded if name.startswith("edgeexport.")} <= {f"edgeexport.{name}" for name in (
        "errors", "session", *(f"session.{path.stem}" for path in (CORE / "session").glob("*.py")))}


@pytest.mark.parametrize("rule", [wrong_direction, cycles, converters_in_the_core, heavy_at_import])
def test_the_core_keeps_the_rule(rule: Callable[[Path], list[str]]) -> None:
    assert rule(CORE) == []


@pytest.mark.parametrize("rule", [strangers_in_converters, heavy_at_import])
def test_the_converters_keep_the_rule(rule: Callable[[Path], list[str]]) -> None:
    assert rule(CONVERTERS) == []


def test_the_session_that_travels_imports_only_errors_and_itself() -> None:
    known = modules(CORE, "edgeexport")
    found = {other for module, path in known.items() if module.startswith("edgeexport.session") for other, _ in imports(module, path, known)
             if other.startswith("edgeexport")}
    assert {other for other in found if not other.startswith("edgeexport.session")} == {"edgeexport.errors"}


def test_the_session_is_written_for_the_python_of_older_devices() -> None:
    """Python 3.9, which Raspberry Pi OS 11 has, knows no `match`, no `zip(strict=…)` and no `X | Y` outside of annotations."""
    for path in [*(CORE / "session").glob("*.py"), CORE / "errors.py", CORE / "data" / "sample.py"]:
        tree = ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
        keywords = [keyword.arg for node in ast.walk(tree) if isinstance(node, ast.Call) for keyword in node.keywords]
        assert not {"strict", "kw_only", "slots"} & set(keywords), path


# -- each rule sees what it forbids


@pytest.fixture(scope="module")
def copies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copies of the core and the converters, to plant things in."""
    place = tmp_path_factory.mktemp("copies")
    shutil.copytree(CORE, place / "core", ignore=shutil.ignore_patterns("__pycache__", "data"))
    shutil.copytree(CONVERTERS, place / "converters", ignore=shutil.ignore_patterns("__pycache__"))
    return place


@pytest.mark.parametrize(("rule", "file", "text", "told"), [
    (wrong_direction, "artifact.py", "from edgeexport.plan import Plan\n", "edgeexport.artifact imports edgeexport.plan"),
    (wrong_direction, "store.py", "def late():\n    import edgeexport.cli.build\n", "edgeexport.store imports edgeexport.cli.build"),
    (wrong_direction, "verify/check.py", "from edgeexport.report import model\n", "edgeexport.verify.check imports edgeexport.report.model"),
    (wrong_direction, "session/tasks.py", "from ..artifact import Task\n", "edgeexport.session.tasks imports edgeexport.artifact"),
    (wrong_direction, "policy.py", "from edgeexport import recipe\n", "edgeexport.policy imports edgeexport.recipe"),
    (wrong_direction, "misc.py", "", "edgeexport.misc is in no layer"),
    (cycles, "errors.py", "def late():\n    from edgeexport import policy\n", "edgeexport.policy"),
    (cycles, "session/text.py", "from edgeexport.session.tasks import Head\n", "edgeexport.session.tasks"),
    (converters_in_the_core, "plan.py", "from edgeexport.converters.export_onnx import ExportOnnx\n", "edgeexport.plan"),
    (converters_in_the_core, "plan.py", "def late():\n    from edgeexport import converters\n", "edgeexport.plan"),
    (strangers_in_converters, "export_onnx.py", "from edgeexport.store import Store\n", "edgeexport.converters.export_onnx imports edgeexport.store"),
    (strangers_in_converters, "export_onnx.py", "def late():\n    from edgeexport import plan\n",
     "edgeexport.converters.export_onnx imports edgeexport.plan"),
    (strangers_in_converters, "export_onnx.py", "from edgeexport.converters._overrides import Matcher\n",
     "edgeexport.converters.export_onnx imports edgeexport.converters._overrides"),
    (heavy_at_import, "plan.py", "import torch.nn\n", "plan.py imports torch.nn"),
    (heavy_at_import, "plan.py", "class Late:\n    from scipy.stats import binom\n", "plan.py imports scipy.stats"),
    (heavy_at_import, "plan.py", "try:\n    import onnx\nexcept ImportError:\n    pass\n", "plan.py imports onnx"),
])
def test_a_planted_violation_is_seen(copies: Path, rule: Callable[[Path], list[str]], file: str, text: str, told: str) -> None:
    copy = copies / ("converters" if rule is strangers_in_converters else "core")
    assert rule(copy) == []
    place = copy / file
    before = place.read_text(encoding="utf-8") if place.exists() else None
    place.write_text((before or "") + text, encoding="utf-8")
    try:
        assert told in rule(copy)
    finally:
        place.unlink() if before is None else place.write_text(before, encoding="utf-8")


def test_what_is_imported_in_a_function_or_for_types_is_not_at_import(tmp_path: Path) -> None:
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\ndef f():\n    import onnx\n"
    (tmp_path / "fine.py").write_text(text, encoding="utf-8")
    assert heavy_at_import(tmp_path) == []


def test_a_module_that_loads_something_heavy_is_seen(tmp_path: Path) -> None:
    (tmp_path / "planted.py").write_text("import scipy\n", encoding="utf-8")
    loaded, complaint = loaded_by(["edgeexport.errors", "planted"], tmp_path)
    assert "scipy" in loaded, complaint
