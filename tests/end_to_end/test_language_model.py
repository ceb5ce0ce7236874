"""A language model from the checkpoint to a chat, through the command line."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import TINY_DECODER_RECIPE, Cli, Ran
from tiny_decoders import CONTEXT, END, START, write_decoder

from edgeexport.bundle import read_manifest
from edgeexport.errors import EdgeExportError
from edgeexport.runner.talk import TalkingLane
from edgeexport.session.evidence import Answers

LANES = ("litert-generate", "onnx-generate", "genai-generate", "litert-lm")
# A model of random weights is surprised by everything, and by a little more or less when it is rounded.
RECIPE = TINY_DECODER_RECIPE + """[budget]
size_ratio_max = 0.6
[parity]
perplexity_ratio = 1.5
agreement = 0.7
divergence = 0.5
continuations = 0.3
"""

ANIMALS = ("cat", "hen", "goose", "weasel", "donkey")
SMALLER = """[data.evaluation]
file = "evaluation.txt"
[[data.training]]
file = "training.txt"
[compress.vocabulary]
size = 400
[compress.prune]
layers = 1
heads = 0.5
neurons = 0.5
[compress.distill]
epochs = 1
"""


@pytest.fixture(scope="module")
def chatter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_decoder(tmp_path_factory.mktemp("models") / "chatter", "llama", tie_word_embeddings=False)


@pytest.fixture(scope="module")
def built(new_cli: Callable[[], Cli], chatter: Path) -> tuple[Cli, Ran, Path]:
    """A command line with a built bundle."""
    cli = new_cli()
    (cli.directory / "edgeexport.toml").write_text(RECIPE.format(model=chatter))
    return cli, cli("build", "--target", "linux-x86_64"), cli.directory / "bundles" / "tiny-chat-linux-x86_64"


def test_every_lane_passes_and_says_how_fast_it_is(built: tuple[Cli, Ran, Path]) -> None:
    _, ran, place = built
    assert ran.code == 0, ran.out + ran.err
    report = json.loads((place / "report.json").read_text())
    lanes = {lane["lane"]: lane for lane in report["lanes"] if lane["variant"]}
    assert set(lanes) == set(LANES)
    for name, lane in lanes.items():
        assert lane["verdict"] == "pass", (name, [check for check in lane["checks"] if check["verdict"] != "pass"])
        assert lane["speed"]["generation"]["decode_tokens_per_second"] > 0 and f"{name}: " in ran.out
        told = {"perplexity to the original's", "continuations that leave the original at near ties only"}
        if name != "litert-lm":  # which tells the probabilities of given tokens only
            told |= {"same likeliest token where the original is sure", "divergence from the original's expectation"}
        assert {check["name"].partition(" (")[0] for check in lane["checks"] if check["group"] == "parity"} == told
    assert "tokens a second" in ran.out and "with a full context" in (place / "report.html").read_text()


def test_the_bundle_holds_what_a_device_needs(built: tuple[Cli, Ran, Path]) -> None:
    _, _, place = built
    payload = json.loads((place / "payload.json").read_text())
    assert payload["task"] == "text-generation" and set(payload["variants"]) == {
        "onnx-blockwise-int8", "tflite-dynamic-int8", "litertlm-dynamic-int8"}
    assert [path.name for path in (place / "variants" / "litertlm-dynamic-int8").iterdir()] == ["model.litertlm"]
    assert {path.name for path in (place / "variants" / "onnx-blockwise-int8").iterdir()} == {"model.onnx", "model.onnx.data", "genai_config.json"}
    spec = json.loads((place / "text" / "generation.json").read_text())
    assert len(spec["stop_ids"]) == 1 and START in spec["chat_template"]
    assert json.loads((place / "text" / "text.json").read_text())["max_length"] == CONTEXT


def test_the_context_was_filled_and_prompts_were_gone_on_with(built: tuple[Cli, Ran, Path]) -> None:
    cli, _, _ = built
    (file,) = (cli.directory / "cache" / "actions").glob("compute_generation_reference/*.json")
    blob = json.loads(file.read_text())["artifact"]["tree"]["probes.npz"]["digest"]
    reference = Answers.load(cli.directory / "cache" / "blobs" / blob[:2] / blob)
    assert max(reference.tokens) == CONTEXT and any(reference.truncated)
    # One of the golden conversations ends with a model's words, which are read.
    assert sum(len(ids) > count for ids, count in zip(reference.ids, reference.tokens, strict=True)) == 51


def test_run_answers_and_the_same_seed_answers_the_same(built: tuple[Cli, Ran, Path]) -> None:
    cli, _, place = built
    greedy = {lane: cli("run", str(place), "What is a lighthouse?", "--lane", lane, "--max-tokens", "12", "--json").json for lane in LANES}
    for lane, found in greedy.items():
        (result,) = found["results"]
        assert found["lane"] == lane and result["tokens"] <= 12 and result["prompt_tokens"] > 20
    # One model in two runtimes each.
    for one, other in (("onnx-generate", "genai-generate"), ("litert-generate", "litert-lm")):
        assert greedy[one]["results"][0]["answer"] == greedy[other]["results"][0]["answer"]
    for lane in ("onnx-generate", "litert-lm"):
        drawn = [cli("run", str(place), "Hello", "--temperature", "20", "--seed", seed, "--max-tokens", "20", "--lane", lane, "--json").json
                 for seed in ("1", "1", "2")]
        answers = [each["results"][0]["answer"] for each in drawn]
        assert answers[0] == answers[1] != answers[2] and all(each["results"][0]["tokens"] for each in drawn)


def test_what_litert_lm_does_not_do_is_told(built: tuple[Cli, Ran, Path]) -> None:
    cli, _, place = built
    ran = cli("run", str(place), "Hello", "--repetition-penalty", "1.2", "--lane", "litert-lm")
    assert ran.code == 2 and "no repetition penalty" in ran.err and "Traceback" not in ran.err


def test_a_text_is_gone_on_with_as_it_is(built: tuple[Cli, Ran, Path]) -> None:
    cli, _, place = built
    raw = cli("run", str(place), "one two three", "--raw", "--max-tokens", "5", "--lane", "onnx-generate", "--json").json["results"][0]
    said = cli("run", str(place), "one two three", "--max-tokens", "5", "--lane", "onnx-generate", "--json").json["results"][0]
    assert raw["prompt_tokens"] < said["prompt_tokens"]


def test_a_prompt_beyond_the_context_is_told(built: tuple[Cli, Ran, Path]) -> None:
    cli, _, place = built
    ran = cli("run", str(place), "word " * 400, "--lane", "onnx-generate")
    assert ran.code == 2 and f"context holds {CONTEXT}" in ran.err and "Traceback" not in ran.err


def test_unknown_characters_are_answered(built: tuple[Cli, Ran, Path]) -> None:
    cli, _, place = built
    ran = cli("run", str(place), "𓀀 \u200b \ufffd ﷽", "--lane", "litert-generate", "--max-tokens", "3")
    assert ran.code == 0, ran.err


def chat(cli: Cli, place: Path, said: str, *arguments: str) -> Ran:
    """A conversation in which a user says a line at a time."""
    done = subprocess.run(cli.command("chat", str(place), "--lane", "onnx-generate", *arguments), cwd=cli.directory, env=cli.environment, input=said,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Ran(done.returncode, done.stdout, done.stderr)


def test_a_chat_goes_on_where_it_was(built: tuple[Cli, Ran, Path]) -> None:
    cli, _, place = built
    one, more = (chat(cli, place, text, "--max-tokens", "4", "--system", "Be brief.") for text in ("Hello\n", "Hello\nAnd now?\n/reset\nHello\n"))
    assert more.out.startswith(one.out) and more.out.endswith(one.out) and "a new conversation" in more.err
    counts = [int(line.split()[0]) for line in more.err.splitlines() if "tokens read" in line]
    # Of the second prompt only what is new is read; the third begins anew, but for what both begin with.
    assert counts[0] > 20 and counts[1] < counts[0] and counts[2] <= 2 and len(counts) == 3


def test_a_chat_that_outgrows_the_context_leaves_its_beginning_out(built: tuple[Cli, Ran, Path]) -> None:
    cli, _, place = built
    ran = chat(cli, place, "".join(f"line {number} of a long talk about lighthouses and the sea\n" for number in range(6)), "--max-tokens", "8")
    assert "first messages are left out" in ran.err and ran.err.count("tokens read") == 6


def test_earlier_messages_make_room_for_an_answer(built: tuple[Cli, Ran, Path]) -> None:
    """Not only for its first token: a quarter of the context, or what it may have."""
    cli, _, place = built
    alone, after = (chat(cli, place, text, "--max-tokens", "30") for text in ("word " * 30 + "\n", "Hello there\n" + "word " * 30 + "\n"))
    assert "left out" in after.err and "left out" not in alone.err
    assert after.out.splitlines()[-1] == alone.out.splitlines()[-1]


def test_what_is_no_text_and_no_terminal_is_told(built: tuple[Cli, Ran, Path]) -> None:
    cli, _, place = built
    for arguments in (["run", str(place), b"\xff\xfe", "--lane", "onnx-generate"], ["chat", str(place), "--lane", "onnx-generate"]):
        command = [os.fsencode(part) for part in cli.command(*arguments[:1])] + [os.fsencode(part) for part in arguments[1:]]
        done = subprocess.run(command, cwd=cli.directory, env=cli.environment, input=b"\xff\xfe\n", capture_output=True, check=False)
        assert done.returncode == 2 and b"not valid Unicode" in done.stderr and b"Traceback" not in done.stderr


def test_an_answer_that_is_left_ends_and_the_next_is_whole(built: tuple[Cli, Ran, Path]) -> None:
    _, _, place = built

    def said(events: Iterable[dict[str, Any]]) -> list[str]:
        return [event["piece"] for event in events if "piece" in event]

    with TalkingLane(place, read_manifest(place).lanes["onnx-generate"], 1, lambda _: None) as lane:
        request = {"prompt": "What is a lighthouse?", "tokens": 30}
        whole = said(lane.answer(request))
        left = lane.answer(request)
        next(left)
        left.close()
        assert len(whole) > 1 and said(lane.answer(request)) == whole
        with pytest.raises(EdgeExportError, match="context holds"):
            list(lane.answer({"prompt": "word " * 400}))
        with pytest.raises(EdgeExportError, match="failed on this request"):
            list(lane.answer({"messages": []}))
        assert said(lane.answer(request)) == whole


def test_golden_vectors_are_answered_again(built: tuple[Cli, Ran, Path]) -> None:
    cli, _, place = built
    ran = cli("verify", str(place), "--json")
    assert ran.code == 0, ran.out + ran.err
    assert {lane["lane"]: lane["verdict"] for lane in ran.json["lanes"]} == dict.fromkeys(LANES, "pass")
    assert all(np.isfinite(lane["distance"]) for lane in ran.json["lanes"])


def test_a_model_that_generates_nothing_does_not_chat(new_cli: Callable[[], Cli], classifier: Path) -> None:
    cli = new_cli()
    (cli.directory / "edgeexport.toml").write_text(f'schema = 1\nname = "c"\n[model]\nsource = "{classifier}"\ntask = "text-generation"\n')
    ran = cli("plan", "--target", "linux-x86_64")
    assert ran.code == 2 and "cannot do text-generation" in ran.err


@pytest.mark.parametrize(("file", "change", "told"), [
    ("tokenizer_config.json", {"chat_template": "{% for %}"}, "chat template has an error"),
    ("tokenizer_config.json", {"chat_template": "{{ raise_exception('I never work') }}"}, "refuses every conversation"),
    ("tokenizer_config.json", {"chat_template": None, "eos_token": None}, "does not say what ends a text"),
    ("tokenizer_config.json", {"chat_template": 5}, "is no text"),
    ("generation_config.json", {"eos_token_id": "two"}, "says that 'two' ends a text"),
    ("generation_config.json", {"eos_token_id": 99999}, "token 99999 ends a text"),
])
def test_what_would_be_wrong_in_a_chat_is_refused(cli: Cli, tmp_path: Path, file: str, change: dict[str, object], told: str) -> None:
    directory = write_decoder(tmp_path / "model", "llama")
    path = directory / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    if "eos_token" in change:
        for name in ("config.json", "generation_config.json"):
            other = directory / name
            other.write_text(json.dumps(json.loads(other.read_text()) | {"eos_token_id": None}))
    ran = cli("build", str(directory), "--target", "linux-x86_64")
    assert ran.code == 2 and told in ran.err and "Traceback" not in ran.err


def test_a_context_beyond_the_models_is_refused(cli: Cli, chatter: Path) -> None:
    ran = cli("plan", str(chatter), "--target", "linux-x86_64", "--max-length", str(CONTEXT + 1))
    assert ran.code == 2 and f"reads at most {CONTEXT} tokens" in ran.err


def test_without_a_template_a_text_is_gone_on_with_and_nobody_chats(cli: Cli, tmp_path: Path) -> None:
    directory = write_decoder(tmp_path / "model", "gpt2", chat=False, bos_token_id=None, pad_token_id=None)
    (cli.directory / "edgeexport.toml").write_text(RECIPE.format(model=directory))
    ran = cli("build", "--target", "linux-x86_64")
    place = cli.directory / "bundles" / "tiny-chat-linux-x86_64"
    assert ran.code == 0, ran.out + ran.err
    for lane in LANES:
        assert cli("run", str(place), "Once upon a time", "--max-tokens", "3", "--lane", lane).code == 0
    chat = cli("chat", str(place))
    assert chat.code == 2 and "no chat template" in chat.err
    assert END not in cli("run", str(place), "Once upon a time", "--max-tokens", "40", "--temperature", "1", "--seed", "3").out


def test_a_smaller_model_is_taught_and_judged_by_the_texts_of_the_recipe(
        built: tuple[Cli, Ran, Path], new_cli: Callable[[], Cli], chatter: Path) -> None:
    cli = new_cli()
    for name, first in (("training", 0), ("evaluation", 500)):
        sentences = (f"On day {number} the {ANIMALS[number % 5]} ate {number * 7} of the {ANIMALS[number % 3]}'s {number} cakes." for number
                     in range(first, first + 40))
        (cli.directory / f"{name}.txt").write_text("\n".join(sentences), encoding="utf-8")
    (cli.directory / "edgeexport.toml").write_text(RECIPE.format(model=chatter) + SMALLER)
    ran = cli("build", "--target", "linux-x86_64", "--json")
    assert ran.code in {0, 1, 3}, ran.err
    report = ran.json["bundles"][0]["report"]
    lanes = {lane["lane"]: lane for lane in report["lanes"] if lane["variant"]}
    assert set(lanes) == set(LANES)
    whole = {lane["lane"]: lane for lane in json.loads((built[2] / "report.json").read_text())["lanes"] if lane["variant"]}
    for name, lane in lanes.items():
        checks = {check["name"]: check for check in lane["checks"]}
        # Rounding is judged against the model that was made, and what was made against the original.
        assert checks["perplexity to the original's (evaluation)"]["figure"]["value"] < 1.1
        drop = checks["drop of log-likelihood per token"]["figure"]
        assert drop["value"] > 0.01 and drop["n"] > 100
        assert lane["size_bytes"] < 0.8 * whole[name]["size_bytes"]
    assert report["compression"]["vocabulary"][1] == 400
    page = (cli.directory / "bundles" / "tiny-chat-linux-x86_64" / "report.html").read_text(encoding="utf-8")
    assert "log-likelihood per token" in page
