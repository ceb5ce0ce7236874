"""Adapters and quantized checkpoints through the command line: from a directory and from a hub, and what the user is told of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from adapters import write_adapter
from boards import BOARD
from command_line import Cli, Ran
from local_hub import COMMIT, serve
from packers import gptq, write_quantized
from tiny import CLASSES, Case, write_checkpoint

from edgeexport.artifact import Task

ADAPTER, BASE = "someone/tiny-adapter", "someone/tiny-base"
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 16, "desc_act": False, "checkpoint_format": "gptq"}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT without a head."""
    return write_checkpoint(tmp_path_factory.mktemp("base") / "base", Case("bert", Task.FEATURE_EXTRACTION, layers=1))


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter for it with a head for three classes, whose names it knows."""
    import peft

    directory = tmp_path_factory.mktemp("adapter") / "adapter"
    write_adapter(directory, base, Task.TEXT_CLASSIFICATION, peft.LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"]), num_labels=3)
    (directory / "config.json").write_text(json.dumps({"id2label": dict(enumerate(CLASSES))}))
    return directory


@pytest.fixture
def adapter(cli: Cli, base: Path, trained: Path) -> Path:
    """A copy to break, with its base model beside it, in the working directory; and a board with one lane."""
    shutil.copytree(base, cli.directory / "base")
    copy = Path(shutil.copytree(trained, cli.directory / "adapter"))
    edit(copy, base_model_name_or_path="../base")
    (cli.directory / "board.toml").write_text(BOARD, encoding="utf-8")
    return copy


def edit(directory: Path, file: str = "adapter_config.json", **changes: Any) -> None:
    """Change keys of a JSON file; None takes one out."""
    data = json.loads((directory / file).read_text(encoding="utf-8")) | changes
    (directory / file).write_text(json.dumps({key: value for key, value in data.items() if value is not None}), encoding="utf-8")


def built(ran: Ran) -> tuple[dict[str, Any], dict[str, Any]]:
    """The report and the directory's name of the only bundle."""
    assert ran.code in {0, 1, 3}, ran.err  # random weights prove nothing but the way
    (bundle,) = ran.json["bundles"]
    return bundle["report"], bundle


def test_from_an_adapter_to_an_answer(cli: Cli, adapter: Path) -> None:
    report, bundle = built(cli("build", "./adapter", "--target", "./board.toml", "--json"))
    assert {"load_checkpoint", "merge_adapter", "compute_reference", "export_onnx"} <= {step["id"] for step in report["steps"]}
    assert (report["model"]["task"], report["model"]["labels"], report["model"]["base"]) == ("text-classification", list(CLASSES), "../base")
    manifest = json.loads((cli.directory / bundle["directory"] / "manifest.json").read_text())
    assert "adapter_model.safetensors" in manifest["lineage"]["source"]["files"]
    assert manifest["lineage"]["base"]["files"].keys() >= {"model.safetensors", "config.json"}
    answer = cli("run", bundle["directory"], "a text", "--json").json["results"][0]["answer"]
    assert answer[0]["label"] in CLASSES

    # Only the two together are the original, as verifying knows.
    (cli.directory / "texts.txt").write_text("one text\nand another, which is longer\n")
    verified = cli("verify", bundle["directory"], "--source", "./adapter", "--data", "texts.txt", "--json")
    assert verified.code in {0, 1, 3}, verified.err
    assert verified.json["recomputed"][0]["checks"]
    edit(cli.directory / "base", "config.json", layer_norm_eps=0.1)
    assert "../base is not the checkpoint that adapter was made from" in " ".join(cli(
        "verify", bundle["directory"], "--source", "./adapter", "--data", "texts.txt").err.split())


def test_keys_hold_both_sources(cli: Cli, adapter: Path) -> None:
    def keys() -> dict[str, str]:
        ran = cli("plan", "./adapter", "--target", "./board.toml", "--json")
        assert ran.code == 0, ran.err
        return {name: node["key"] for name, node in ran.json["nodes"].items()}

    before = keys()
    edit(cli.directory / "base", "config.json", layer_norm_eps=0.1)
    other_base = keys()
    assert all(other_base[name] != before[name] for name in ("load_checkpoint", "merge_adapter", "export_onnx", "compute_reference"))
    edit(adapter, lora_alpha=3)
    other_adapter = keys()
    assert other_adapter["load_checkpoint"] == other_base["load_checkpoint"]
    assert all(other_adapter[name] != other_base[name] for name in ("merge_adapter", "export_onnx", "compute_reference"))


def test_a_recipe_names_another_base_model(cli: Cli, adapter: Path) -> None:
    edit(adapter, base_model_name_or_path=None)
    refused = cli("plan", "./adapter", "--target", "./board.toml")
    assert refused.code == 2
    assert "does not say which model it adapts" in refused.err
    assert 'base = "…"' in refused.err
    (cli.directory / "edgeexport.toml").write_text('schema = 1\nname = "x"\n[model]\nsource = "adapter"\nbase = "base"\n')
    assert cli("plan", "--target", "./board.toml").code == 0


def test_init_shows_the_base_model(cli: Cli, adapter: Path) -> None:
    assert cli("init", "./adapter").code == 0
    recipe = cli.directory / "edgeexport.toml"
    assert '# base = "base"' in recipe.read_text()
    for text in (recipe.read_text(), recipe.read_text().replace("# base", "base")):
        recipe.write_text(text)
        assert cli("plan", "--target", "./board.toml").code == 0


def test_both_from_a_hub(cli: Cli, adapter: Path, base: Path) -> None:
    edit(adapter, base_model_name_or_path=BASE, revision="main")
    requests: list[str] = []
    local = cli("plan", "./adapter", "--target", "./board.toml", env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(cli.directory / "hf")})
    assert local.code == 2
    assert f"can't be used: {BASE}" in " ".join(local.err.split())
    with serve({ADAPTER: adapter, BASE: base}, requests) as endpoint:
        online = {"HF_ENDPOINT": endpoint, "HF_HOME": str(cli.directory / "hf"), "HF_HUB_DISABLE_XET": "1"}
        planned = cli("plan", ADAPTER, "--target", "./board.toml", "--json", env=online)
        assert planned.code == 0, planned.err
        assert list((cli.directory / "hf").rglob("*.safetensors")) == []
        report, bundle = built(cli("build", ADAPTER, "--target", "./board.toml", "--json", env=online))
    assert (report["model"]["revision"], report["model"]["base"], report["model"]["base_revision"]) == (COMMIT, BASE, COMMIT)
    manifest = json.loads((cli.directory / bundle["directory"] / "manifest.json").read_text())
    assert (manifest["lineage"]["base"]["given"], manifest["lineage"]["base"]["revision"]) == (BASE, COMMIT)
    # And again without it.
    again = cli("build", ADAPTER, "--target", "./board.toml", "--json", env=online)
    assert again.json["bundles"][0]["payload"] == bundle["payload"]
    told = " ".join(again.err.split())
    assert f"taking {ADAPTER} at" in told and f"taking {BASE} at" in told


@pytest.mark.parametrize(("changes", "told"), [
    ({"base_model_name_or_path": "./gone"}, "can't be used: ./gone"),
    ({"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING cannot be merged"),
    ({"target_modules": ["q_proj"]}, "the base model has no module q_proj"),
])
def test_adapters_that_cannot_be_built(cli: Cli, adapter: Path, changes: dict[str, Any], told: str) -> None:
    edit(adapter, **changes)
    ran = cli("build", "./adapter", "--target", "./board.toml")
    assert ran.code == 2
    assert "Traceback" not in ran.err
    assert told in " ".join(ran.err.split())
    assert "try:" in ran.err


def test_a_quantized_source_is_built_and_said_to_be_lossy(cli: Cli, classifier: Path) -> None:
    write_quantized(cli.directory / "packed", classifier, GPTQ, gptq(4))
    (cli.directory / "board.toml").write_text(BOARD, encoding="utf-8")
    planned = cli("plan", "./packed", "--target", "./board.toml")
    assert planned.code == 0, planned.err
    ran = cli("build", "./packed", "--target", "./board.toml", "--json")
    report, bundle = built(ran)
    for err in (planned.err, ran.err):
        assert " ".join(err.split()).count("warning: ./packed is quantized already (GPTQ 4-bit)") == 1
    assert "dequantize_checkpoint" in {step["id"] for step in report["steps"]}
    assert report["model"]["lossy_source"] == "GPTQ 4-bit"
    place = cli.directory / bundle["directory"]
    assert json.loads((place / "manifest.json").read_text())["lineage"]["source"]["lossy"] == "GPTQ 4-bit"
    page = (place / "report.html").read_text()
    assert "Quantized already" in page and "GPTQ 4-bit" in page
    (cli.directory / "texts.txt").write_text("one text\nand another, which is longer\n")
    assert cli("verify", bundle["directory"], "--source", "./packed", "--data", "texts.txt").code in {0, 1, 3}


def test_an_unknown_quantization_is_refused(cli: Cli, classifier: Path) -> None:
    directory = Path(shutil.copytree(classifier, cli.directory / "packed"))
    edit(directory, "config.json", quantization_config={"quant_method": "hqq"})
    ran = cli("plan", "./packed", "--target", "linux-x86_64")
    assert ran.code == 2
    assert "quantized in a form that is not supported: hqq" in " ".join(ran.err.split())
