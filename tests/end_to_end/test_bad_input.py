"""What a user gets wrong, or what breaks, through the command line: one clear error each, and nothing is lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from command_line import Cli
from tiny import CLASSES


@pytest.fixture
def model(classifier: Path, tmp_path: Path) -> Path:
    """A copy of the tiny classifier to break."""
    place = tmp_path / "model"
    shutil.copytree(classifier, place)
    return place


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def fails(cli: Cli, *arguments: str) -> str:
    """The error of a command that must fail before any work: exit code 2, and no traceback."""
    ran = cli(*arguments)
    assert ran.code == 2, (ran.code, ran.out, ran.err)
    assert "Traceback" not in ran.err
    assert "error:" in ran.err.lower()
    return ran.err


def test_unknown_target_suggests_the_nearest(cli: Cli, model: Path) -> None:
    assert "did you mean 'raspberrypi'?" in fails(cli, "build", str(model), "--target", "rasberrypi")


def test_unknown_recipe_key_suggests_the_nearest(cli: Cli, model: Path) -> None:
    (cli.directory / "edgeexport.toml").write_text(f'schema = 1\nname = "x"\n[model]\nsource = "{model}"\nmax_lenght = 8\n')
    error = fails(cli, "build", "--target", "linux-x86_64")
    assert "model.max_lenght" in error
    assert "did you mean 'max_length'?" in error


@pytest.mark.parametrize(("old", "new", "said"), [
    ('version = ">=1.18"', 'version = ">=9.0"', "onnxruntime==1.31.1 is not onnxruntime >=9.0, so it would prove nothing"),
    ('verified_by = "onnxruntime==1.31.1"', 'verified_by = "ai-edge-litert==2.3.0"', "so it would prove nothing")])
def test_a_board_whose_stand_in_is_not_its_runtime(cli: Cli, model: Path, old: str, new: str, said: str) -> None:
    shown = cli("targets", "show", "linux-x86_64", "--toml").out
    assert old in shown
    (cli.directory / "board.toml").write_text(shown)
    assert cli("plan", str(model), "--target", "board.toml").code == 0
    (cli.directory / "board.toml").write_text(shown.replace(old, new))
    assert said in " ".join(fails(cli, "build", str(model), "--target", "board.toml").split())


def test_a_recipe_in_another_directory_finds_its_model(cli: Cli, model: Path) -> None:
    shutil.copytree(model, cli.directory / "mine")
    (cli.directory / "recipes").mkdir()
    ran = cli("init", "./mine", "-o", "recipes/mine.toml")
    assert ran.code == 0, ran.err
    assert "--recipe recipes/mine.toml" in " ".join(ran.out.split())
    assert cli("plan", "--recipe", "recipes/mine.toml", "--target", "linux-x86_64").code == 0


def test_missing_weights(cli: Cli, model: Path) -> None:
    (model / "model.safetensors").unlink()
    assert "has no weights" in fails(cli, "build", str(model), "--target", "linux-x86_64")


def test_truncated_weights(cli: Cli, model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    error = fails(cli, "build", str(model), "--target", "linux-x86_64")
    assert "cut off" in error
    assert "bytes" in error


def test_pickled_weights_are_never_loaded(cli: Cli, model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    assert "pickle" in fails(cli, "build", str(model), "--target", "linux-x86_64")


def test_unsupported_architecture(cli: Cli, model: Path) -> None:
    edit_json(model / "config.json", model_type="perceiver")
    error = fails(cli, "build", str(model), "--target", "linux-x86_64")
    assert "'perceiver' is not supported" in error
    assert "bert" in error


def test_wrong_task_for_the_model(cli: Cli, model: Path) -> None:
    error = fails(cli, "build", str(model), "--task", "question-answering", "--target", "linux-x86_64")
    assert "cannot do question-answering" in error
    assert "text-classification" in error


def test_unknown_task(cli: Cli, model: Path) -> None:
    assert "model.task" in fails(cli, "build", str(model), "--task", "text-clasification", "--target", "linux-x86_64")


def test_a_tokenizer_that_does_not_load(cli: Cli, model: Path) -> None:
    (model / "tokenizer.json").write_text("{}")
    assert "tokenizer does not load" in fails(cli, "build", str(model), "--target", "linux-x86_64")


def test_a_tokenizer_without_special_tokens(cli: Cli, model: Path) -> None:
    edit_json(model / "tokenizer.json", post_processor=None)
    assert "adds no special tokens" in fails(cli, "build", str(model), "--target", "linux-x86_64")


def test_weights_of_other_shapes(cli: Cli, model: Path) -> None:
    edit_json(model / "config.json", hidden_size=48)
    assert "are not those of config.json" in " ".join(fails(cli, "build", str(model), "--target", "linux-x86_64").split())


def test_no_tokenizer(cli: Cli, model: Path) -> None:
    for name in ("tokenizer.json", "vocab.txt"):
        (model / name).unlink(missing_ok=True)
    assert "has no tokenizer" in fails(cli, "build", str(model), "--target", "linux-x86_64")


def test_output_that_cannot_be_written(cli: Cli, model: Path) -> None:
    (cli.directory / "file").write_text("")
    assert "Cannot write" in fails(cli, "build", str(model), "--target", "linux-x86_64", "-o", "file/bundles")
    occupied = cli.directory / "out" / "model-linux-x86_64"
    occupied.mkdir(parents=True)
    (occupied / "thesis.txt").write_text("precious")
    assert "is not a bundle" in fails(cli, "build", str(model), "--target", "linux-x86_64", "-o", "out")
    assert (occupied / "thesis.txt").read_text() == "precious"


def test_no_network_says_how_to_use_a_local_copy(cli: Cli) -> None:
    ran = cli("build", "someone/some-model", "--target", "linux-x86_64", env={"HF_ENDPOINT": "http://127.0.0.1:9"})
    assert ran.code == 2
    assert "local copy" in ran.err


@pytest.mark.parametrize("name", ["a--b", "x/y..z", "a/b/c", ""])
def test_a_name_that_no_hub_can_have(cli: Cli, name: str) -> None:
    assert f"There is no checkpoint at {name}." in fails(cli, "plan", name, "--target", "linux-x86_64")


def test_evaluation_data_with_wrong_fields(cli: Cli, model: Path) -> None:
    (cli.directory / "data.csv").write_text(f"sentence,label\nhello,{CLASSES[0]}\n")
    (cli.directory / "edgeexport.toml").write_text(
        f'schema = 1\nname = "x"\n[model]\nsource = "{model}"\n[data.evaluation]\nfile = "data.csv"\n')
    error = fails(cli, "build", "--target", "linux-x86_64")
    assert "no field 'text'" in error
    assert "sentence, label" in error


@pytest.mark.parametrize("role", ["calibration", "training", "development"])
def test_evaluation_data_that_shapes_the_model_is_refused_with_examples(cli: Cli, model: Path, role: str) -> None:
    (cli.directory / "data.csv").write_text(f"text,label\nHello there,{CLASSES[0]}\nquite another,{CLASSES[1]}\n")
    (cli.directory / "shaping.txt").write_text("hello THERE!\nsomething else\n")
    (cli.directory / "edgeexport.toml").write_text(
        f'schema = 1\nname = "x"\n[model]\nsource = "{model}"\n[data.evaluation]\nfile = "data.csv"\n'
        f'[data.{role}]\nfile = "shaping.txt"\n')
    error = fails(cli, "build", "--target", "linux-x86_64")
    assert "'hello THERE!'" in error
    assert "something else" not in error


def test_static_int8_without_calibration_data(cli: Cli, model: Path) -> None:
    (cli.directory / "edgeexport.toml").write_text(
        f'schema = 1\nname = "x"\n[model]\nsource = "{model}"\n[precision.onnx]\npreset = "static-int8"\n')
    assert "[data.calibration]" in fails(cli, "build", "--target", "linux-x86_64")


def test_errors_as_json(cli: Cli, model: Path) -> None:
    ran = cli("build", str(model), "--target", "rasberrypi", "--json")
    assert ran.code == 2
    assert ran.json["error"]["kind"] == "UnknownName"
