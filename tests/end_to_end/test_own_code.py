"""A checkpoint whose architecture is code of its own: refused, unless the user trusts it; then built like any other."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
from command_line import Cli

# A convolution over the tokens, which no architecture of Transformers is.
CODE = """
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class RippleConfig(PretrainedConfig):
    model_type = "ripple"

    def __init__(self, vocab_size=100, hidden_size=32, **kwargs):
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        super().__init__(**kwargs)


class RippleForSequenceClassification(PreTrainedModel):
    config_class = RippleConfig

    def __init__(self, config):
        super().__init__(config)
        self.embedding = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.ripple = torch.nn.Conv1d(config.hidden_size, config.hidden_size, 3, padding=1)
        self.classifier = torch.nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, token_type_ids=None, **kwargs):
        real = attention_mask[:, :, None].to(torch.float32)
        hidden = torch.tanh(self.ripple((self.embedding(input_ids) * real).transpose(1, 2))).transpose(1, 2)
        return SequenceClassifierOutput(logits=self.classifier((hidden * real).sum(1) / real.sum(1)))
"""


@pytest.fixture(scope="module")
def model(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint, with the tokenizer of another."""
    import torch

    directory = Path(shutil.copytree(classifier, tmp_path_factory.mktemp("ripple") / "model"))
    (directory / "modeling_ripple.py").write_text(CODE, encoding="utf-8")
    spec = importlib.util.spec_from_file_location("modeling_ripple", directory / "modeling_ripple.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(0)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    own = module.RippleForSequenceClassification(module.RippleConfig(vocab_size=config["vocab_size"], id2label=config["id2label"]))
    with torch.no_grad():
        own.classifier.weight.mul_(20)
    own.save_pretrained(directory)
    data = json.loads((directory / "config.json").read_text(encoding="utf-8")) | {"auto_map": {
        "AutoConfig": "modeling_ripple.RippleConfig",
        "AutoModelForSequenceClassification": "modeling_ripple.RippleForSequenceClassification"}}
    (directory / "config.json").write_text(json.dumps(data), encoding="utf-8")
    return directory


def test_without_trust_nothing_of_it_runs(cli: Cli, model: Path) -> None:
    for command in (("plan", "--target", "raspberrypi"), ("build", "--target", "raspberrypi"), ("init",)):
        ran = cli(command[0], str(model), *command[1:])
        assert ran.code == 2
        assert "brings code of its own" in ran.err
        assert "--trust-remote-code" in ran.err
    assert not (cli.directory / "edgeexport.toml").exists()


def test_with_trust_it_is_built_like_any_other(cli: Cli, model: Path) -> None:
    ran = cli("build", str(model), "--target", "linux-x86_64", "--trust-remote-code", "--json")
    assert ran.code in {0, 1}, ran.err  # so small a model is mostly graph: its size keeps no budget
    report = ran.json["bundles"][0]["report"]
    assert report["model"]["architecture"] == "ripple"
    assert len(report["lanes"]) == 2
    assert all("parity: pass" in lane["scope"] and "audit: pass" in lane["scope"] for lane in report["lanes"])
    bundle = Path(cli.directory) / ran.json["bundles"][0]["directory"]
    assert "modeling_ripple.py" in json.loads((bundle / "manifest.json").read_text())["lineage"]["source"]["files"]
    assert list(bundle.rglob("modeling_ripple.py")) == []
    answer = cli("run", str(bundle), "a text", "--json")
    assert answer.code == 0, answer.err


@pytest.mark.parametrize(("changes", "message"), [
    ({"AutoConfig": "someone/else--modeling_ripple.RippleConfig"}, "lies in another repository, someone/else"),
    ({"AutoConfig": "configuration_ripple.RippleConfig"}, "lacks configuration_ripple.py"),
])
def test_code_that_is_not_there(cli: Cli, model: Path, tmp_path: Path, changes: dict[str, str], message: str) -> None:
    copy = Path(shutil.copytree(model, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    (copy / "config.json").write_text(json.dumps(config | {"auto_map": config["auto_map"] | changes}), encoding="utf-8")
    ran = cli("plan", str(copy), "--target", "raspberrypi", "--trust-remote-code")
    assert ran.code == 2
    assert message in ran.err


def test_code_under_a_known_name_is_no_less_code(cli: Cli, classifier: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(classifier, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text(encoding="utf-8"))
    (copy / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "modeling.Own"}}), encoding="utf-8")
    ran = cli("plan", str(copy), "--target", "raspberrypi")
    assert ran.code == 2
    assert "auto_map names modeling.Own" in ran.err
