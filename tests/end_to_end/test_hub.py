"""A hub id as the model, against a hub on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import Cli
from local_hub import COMMIT, serve

MODEL = "someone/tiny-classifier"


def online(endpoint: str, cli: Cli) -> dict[str, str]:
    return {"HF_ENDPOINT": endpoint, "HF_HOME": str(cli.directory / "hf"), "HF_HUB_DISABLE_XET": "1"}


def test_plan_fetches_no_weights_and_pins_the_commit(cli: Cli, classifier: Path) -> None:
    requests: list[str] = []
    with serve({MODEL: classifier}, requests) as endpoint:
        ran = cli("plan", MODEL, "--target", "linux-x86_64", "--json", env=online(endpoint, cli))
    assert ran.code == 0, ran.err
    assert ran.json["nodes"]["load_checkpoint"]["state"] == "run"
    local = cli("plan", str(classifier), "--target", "linux-x86_64", "--json")
    assert ran.json["nodes"]["load_checkpoint"]["key"] == local.json["nodes"]["load_checkpoint"]["key"]  # a copy elsewhere is the same input
    assert list((cli.directory / "hf").rglob("*.safetensors")) == []


def test_build_from_the_hub(cli: Cli, classifier: Path) -> None:
    (cli.directory / "edgeexport.toml").write_text(
        f'schema = 1\nname = "tiny"\n[model]\nsource = "{MODEL}"\nrevision = "main"\n[export]\nlengths = [32]\n')
    with serve({MODEL: classifier}, []) as endpoint:
        ran = cli("build", "--target", "linux-x86_64", "--json", env=online(endpoint, cli))
    assert ran.code in {0, 1, 3}, ran.err
    report = ran.json["bundles"][0]["report"]
    assert report["model"]["revision"] == COMMIT

    # The hub is gone: what was fetched is taken, and nothing needs to run.
    for away in (online(endpoint, cli), {**online(endpoint, cli), "HF_HUB_OFFLINE": "1"}):
        again = cli("build", "--target", "linux-x86_64", "--json", env=away)
        assert again.code == ran.code, again.err
        assert f"taking {MODEL} at {COMMIT[:12]}, fetched earlier" in " ".join(again.err.split())
        assert again.json["bundles"][0]["payload"] == ran.json["bundles"][0]["payload"]
        assert all(step["stored"] for step in again.json["bundles"][0]["report"]["steps"])


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer_config.json"])
def test_a_copy_that_is_not_whole_is_not_taken(cli: Cli, classifier: Path, file: str) -> None:
    download = f"from huggingface_hub import snapshot_download; print(snapshot_download('{MODEL}'))"
    with serve({MODEL: classifier}, []) as endpoint:
        assert cli("plan", MODEL, "--target", "linux-x86_64", env=online(endpoint, cli)).code == 0
        whole = subprocess.run([sys.executable, "-c", download], env=os.environ | online(endpoint, cli), capture_output=True, text=True, check=True)
        snapshot = Path(whole.stdout.strip())
    assert cli("plan", MODEL, "--target", "linux-x86_64", env=online(endpoint, cli)).code == 0
    (snapshot / file).unlink()
    ran = cli("plan", MODEL, "--target", "linux-x86_64", env=online(endpoint, cli))
    assert ran.code == 2
    assert f"Cannot fetch '{MODEL}'" in ran.err


def test_small_files_alone_are_no_copy(cli: Cli, classifier: Path) -> None:
    with serve({MODEL: classifier}, []) as endpoint:
        assert cli("plan", MODEL, "--target", "linux-x86_64", env=online(endpoint, cli)).code == 0
    ran = cli("plan", MODEL, "--target", "linux-x86_64", env=online(endpoint, cli))
    assert ran.code == 2
    assert f"Cannot fetch '{MODEL}'" in ran.err


@pytest.mark.parametrize(("name", "revision", "message"), [
    ("someone/no-such-model", None, "There is no model 'someone/no-such-model' on the hub"),
])
def test_a_model_that_is_not_there(cli: Cli, classifier: Path, name: str, revision: str | None, message: str) -> None:
    with serve({MODEL: classifier}, []) as endpoint:
        ran = cli("plan", name, "--target", "linux-x86_64", env=online(endpoint, cli))
    assert ran.code == 2
    assert message in ran.err
    assert "local copy" in ran.err


def test_a_pickle_only_model_is_refused_before_anything_is_fetched(cli: Cli, classifier: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((classifier / "config.json").read_text())
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04")
    requests: list[str] = []
    with serve({MODEL: tmp_path}, requests) as endpoint:
        ran = cli("build", MODEL, "--target", "linux-x86_64", env=online(endpoint, cli))
    assert ran.code == 2
    assert "pickle" in ran.err
    assert not any("pytorch_model.bin" in request for request in requests)
