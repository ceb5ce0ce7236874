"""Two builds of a checkpoint give the same bytes, and no file tells where it was made."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import Case
from zoo import Zoo

from edgeexport.artifact import Task, digest_file

CASE = Case("roberta", Task.TEXT_CLASSIFICATION, layers=1)
# Run by a fresh interpreter: the checkpoint's directory, and where the files go.
SCRIPT = """
import sys
from pathlib import Path
from tiny import Case
from test_determinism import CASE
from zoo import Zoo

zoo = Zoo(Path(sys.argv[2]))
zoo._made["directory", CASE] = Path(sys.argv[1])
for model_format, precisions in (("onnx", ("dynamic-int8", "static-int8")), ("tflite", ("dynamic-int8", "static-int8"))):
    views = {"float32": zoo.exported(CASE, model_format)} | {name: zoo.quantized(CASE, model_format, name) for name in precisions}
    for name, view in views.items():
        (view.path / f"model.{model_format}").rename(Path(sys.argv[2]) / f"{name}.{model_format}")
        (view.path / f"model.{model_format}").symlink_to(Path(sys.argv[2]) / f"{name}.{model_format}")
payload = zoo.payload(zoo.loaded(CASE), zoo.exported(CASE, "onnx"))
for path in ("payload.json", "text/text.json", "text/tokenizer.json"):
    (payload.path / path).rename(Path(sys.argv[2]) / Path(path).name)
"""
FILES = ("float32.onnx", "dynamic-int8.onnx", "static-int8.onnx", "float32.tflite", "dynamic-int8.tflite", "static-int8.tflite",
         "payload.json", "text.json", "tokenizer.json")


@pytest.fixture(scope="module")
def builds(zoo: Zoo, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The files of two processes with other hash seeds, directories and numbers of threads."""
    here, processes, places = Path(__file__).parent, [], []
    for number in (1, 2):
        root = tmp_path_factory.mktemp(f"user{number}" * number)
        source, out = root / f"checkpoint{number}", root / "out"
        shutil.copytree(zoo.directory(CASE), source)
        out.mkdir()
        environment = os.environ | {"PYTHONHASHSEED": str(number), "OMP_NUM_THREADS": str(number), "PYTHONPATH": str(here)}
        processes.append(subprocess.Popen([sys.executable, "-c", SCRIPT, str(source), str(out)], cwd=root, env=environment,
                                          stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
        places.append(out)
    for process in processes:
        _, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors[-2000:]
    return places


@pytest.mark.parametrize("name", FILES)
def test_two_builds_are_equal(builds: list[Path], name: str) -> None:
    first, second = (place / name for place in builds)
    assert first.stat().st_size > 100
    assert digest_file(first) == digest_file(second)


@pytest.mark.parametrize("name", FILES)
def test_no_file_tells_where_it_was_made(builds: list[Path], name: str) -> None:
    for place in builds:
        data = (place / name).read_bytes()
        for path in (place.parent, Path(sys.prefix), Path(__file__).parent.parent.parent, Path.home()):
            assert str(path).encode() not in data
        for telling in (b"site-packages", b".py\"", b"/tmp/", b"checkpoint1", b"checkpoint2"):
            assert telling not in data, telling
