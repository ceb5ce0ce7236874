"""A bundle as a model of lm-evaluation-harness, against the harness's own model of the float32 checkpoint in Transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command_line import TINY_DECODER_RECIPE, Cli
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tiny_decoders import CONTEXT, write_decoder

from edgeexport.errors import BundleError, DataError
from edgeexport.harness import BundleModel
from edgeexport.session import Bundle

RECIPE = TINY_DECODER_RECIPE + """[precision.onnx]
preset = "float32"
"""
TASK = """task: colours
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: ["red", "blue", "a long time ago"]
metric_list:
  - metric: acc
"""
PAIRS = [("The sky is", " blue"), ("", "Once upon a time"), ("One two ", "three four"), ("a" * 300, " and so on"), ("Yes", " no maybe")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, new_cli: Callable[[], Cli]) -> tuple[Path, Path]:
    """A checkpoint, and its bundle whose ONNX lane is in float32."""
    checkpoint = write_decoder(tmp_path_factory.mktemp("models") / "tiny", "llama", tie_word_embeddings=False)
    cli = new_cli()
    (cli.directory / "edgeexport.toml").write_text(RECIPE.format(model=checkpoint))
    ran = cli("build", "--target", "linux-x86_64")
    assert ran.code in {0, 1, 3}, ran.err
    return checkpoint, cli.directory / "bundles" / "tiny-chat-linux-x86_64"


@pytest.fixture(scope="module")
def original(models: tuple[Path, Path]) -> HFLM:
    return HFLM(pretrained=str(models[0]), device="cpu", dtype="float32", batch_size=1, max_length=CONTEXT)


@pytest.fixture(scope="module")
def bundle(models: tuple[Path, Path]) -> BundleModel:
    return BundleModel(str(models[1]), lane="onnx-generate")


def instances(kind: str, arguments: list[tuple[object, ...]]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=each, idx=number) for number, each in enumerate(arguments)]


def test_continuations_are_as_likely_as_the_original_says(original: HFLM, bundle: BundleModel) -> None:
    given = instances("loglikelihood", [*PAIRS])
    expected, found = original.loglikelihood(given), bundle.loglikelihood(given)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    assert np.allclose([value for value, _ in found], [value for value, _ in expected], rtol=1e-4)
    assert len({round(value, 3) for value, _ in found}) == len(PAIRS)


def test_texts_longer_than_the_context_are_read_in_windows(original: HFLM, bundle: BundleModel) -> None:
    given = instances("loglikelihood_rolling", [("A short text.",), ("So it went on, and on. " * 60,)])
    assert len(bundle.tok_encode(given[1].args[0])) > 2 * CONTEXT
    assert np.allclose(bundle.loglikelihood_rolling(given), original.loglikelihood_rolling(given), rtol=1e-4)


def test_answers_are_the_originals(original: HFLM, bundle: BundleModel) -> None:
    wishes = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False}
    given = instances("generate_until", [("The sky is", wishes), ("x" * 400, wishes), ("One, two", wishes | {"until": []})])
    assert bundle.generate_until(given) == original.generate_until(given)


def test_answers_that_are_drawn_are_drawn_anew_and_the_same_in_another_run(bundle: BundleModel) -> None:
    given = instances("generate_until", [("The sky is", {"until": [], "max_new_tokens": 8, "temperature": 5.0})] * 4)
    found = bundle.generate_until(given)
    assert len(set(found)) == 4
    assert bundle.generate_until(given) == found


def test_a_wish_for_answers_as_long_as_the_context_leaves_the_prompt(bundle: BundleModel, caplog: pytest.LogCaptureFixture) -> None:
    prompt, read = "So it went on, and on, as it ever had", []
    with pytest.MonkeyPatch.context() as patch:
        plain = bundle._model.generate
        patch.setattr(bundle._model, "generate", lambda given, *others: read.append(given.ids.tolist()) or plain(given, *others))
        for text in (prompt, prompt * 20):
            bundle.generate_until(instances("generate_until", [(text, {"until": ["e"], "max_gen_toks": 2048})]))
    assert read == [bundle.tok_encode(prompt), bundle.tok_encode(prompt * 20)[-CONTEXT // 2:]]
    assert caplog.text.count("have to share") == 1


def test_a_continuation_that_the_bundle_cannot_hold_is_told(bundle: BundleModel) -> None:
    with pytest.raises(DataError, match="can't be scored"):
        bundle.loglikelihood(instances("loglikelihood", [("Once", " upon a time" * CONTEXT)]))


def test_conversations_are_written_by_the_bundles_template(original: HFLM, bundle: BundleModel) -> None:
    talk = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}, {"role": "user", "content": "How are you?"}]
    assert bundle.apply_chat_template(talk) == original.apply_chat_template(talk)
    assert bundle.chat_template(True) == original.chat_template(True)


def test_a_published_task_runs_from_the_command_line(models: tuple[Path, Path], tmp_path: Path) -> None:
    rows = [{"question": question, "answer": number % 3} for number, question in enumerate(("The sky is", "Blood is", "It happened", "Grass"))]
    data = tmp_path / "test.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "colours.yaml").write_text(TASK.format(data=data))
    environment = os.environ | {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "edgeexport.harness", "run", "--model", "edgeexport", "--model_args", f"bundle={models[1]},lane=onnx-generate",
         "--tasks", "colours", "--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")],
        env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(path.read_text())
    assert found["n-samples"]["colours"]["effective"] == len(rows)
    assert 0 <= found["results"]["colours"]["acc,none"] <= 1


def test_what_is_no_bundle_and_what_answers_in_no_words_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BundleError):
        BundleModel(str(tmp_path))
    monkeypatch.setattr(Bundle, "open", lambda *_, **__: SimpleNamespace(payload=SimpleNamespace(generation=None)))
    with pytest.raises(BundleError, match="no language model"):
        BundleModel("a classifier")
    monkeypatch.setattr(Bundle, "open", lambda *_, **__: SimpleNamespace(payload=SimpleNamespace(generation=()), session=object(), lane="litert-lm"))
    with pytest.raises(BundleError, match="lane litert-lm cannot be asked"):
        BundleModel("a runtime that chooses the tokens")
