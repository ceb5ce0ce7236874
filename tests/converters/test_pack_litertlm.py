"""What LiteRT-LM reads, says and ends with, against Transformers: in LiteRT-LM itself, with a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgeexport.converters.compute_generation_reference import Original
from tiny import TEXTS
from tiny_decoders import CONTEXT, END, START, TEMPLATE, write_decoder
from tokenizers import Tokenizer, processors
from zoo import Zoo

from edgeexport.catalog import find_step
from edgeexport.dataset import Message, Row
from edgeexport.errors import EdgeExportError, ModelFileError
from edgeexport.inspection import inspect_file
from edgeexport.recipe import ModelSection
from edgeexport.runner.environment import Environment
from edgeexport.runner.local import run_job
from edgeexport.session.evidence import Answers
from edgeexport.step import Context, View

RUNTIME = "litert-lm-api"
STAND_IN = "litert-lm-api==0.18.1"
WITH_BEGIN = "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}{{ eos_token }}\n{% endfor %}" \
             "{% if add_generation_prompt %}assistant: {% endif %}"
SPELLED = WITH_BEGIN.replace("{{ bos_token }}", START)


def conversation(*said: tuple[str, str]) -> list[Message]:
    return [Message(role=role, content=content) for role, content in said]


ROWS = [
    Row(id="text", text="The lighthouse keeper's log, 1893: nothing new."),
    Row(id="strange", text="  two  blanks\n\n<|im_end|> é 島 \u200b"),
    Row(id="asked", text="", messages=conversation(("user", "What is a lighthouse?"))),
    Row(id="told", text="", messages=conversation(("system", "Be \"brief\".\n"), ("user", " What {{ is }} it? "))),
    Row(id="answered", text="", messages=conversation(("user", "Hello"), ("assistant", "Hi <b>there</b>"))),
    Row(id="longer", text="", messages=conversation(("user", "Hello"), ("assistant", "Hi"), ("user", "And now? 1 + 1 = 2 \\ '"))),
]


class Packer:
    """Packs variants of a checkpoint around one exported model."""

    def __init__(self, zoo: Zoo) -> None:
        self.zoo = zoo
        self.model: View | None = None

    def __call__(self, change: Callable[[Path], None] = lambda _: None) -> tuple[View, View]:
        """A checkpoint, changed by a function of its directory; and its payload."""
        directory = write_decoder(self.zoo.place("packed") / "checkpoint", "llama")
        change(directory)
        checkpoint = self.zoo.load(directory, ModelSection(source="m"))
        if self.model is None:
            self.model = self.zoo.run(find_step("export_decoder_tflite")(lengths=(16,)), {"checkpoint": checkpoint})
        packed = self.zoo.run(find_step("pack_litertlm")(), {"checkpoint": checkpoint, "model": self.model})
        return checkpoint, self.zoo.payload(checkpoint, packed)

    def answers(self, payload: View, rows: list[Row]) -> Answers:
        """What LiteRT-LM says of rows, in its own environment."""
        data, out = self.zoo.dataset("rows", rows), self.zoo.place("answers")
        run_job(Environment(STAND_IN), {"do": "answers", "payload": str(payload.path), "variant": "v", "runtime": RUNTIME, "threads": 1,
                                        "datasets": {"rows": str(data.path / "rows.jsonl")}}, out, Context(self.zoo.place("scratch")))
        return Answers.load(out / "rows.npz")


@pytest.fixture(scope="module")
def packer(zoo: Zoo) -> Packer:
    return Packer(zoo)


def settings(directory: Path, **values: Any) -> None:
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def begun(directory: Path) -> None:
    """A tokenizer that puts the start token before every text."""
    path = str(directory / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A", special_tokens=[(START, tokenizer.token_to_id(START))])
    tokenizer.save(path)


def begun_twice(directory: Path) -> None:
    """As Llama 3 and Gemma: so does the template."""
    begun(directory)
    settings(directory, chat_template=WITH_BEGIN)


def dated(directory: Path) -> None:
    """As Llama 3.2: the template writes the day, if anybody tells it."""
    begun(directory)
    day = "{% set day = strftime_now('%d %b %Y') if strftime_now is defined else 'never' %}"
    settings(directory, chat_template=day + WITH_BEGIN + "{{ day }}")


@pytest.mark.parametrize("change", [
    lambda directory: None,
    dated,
    lambda directory: settings(directory, chat_template=WITH_BEGIN.removeprefix("{{ bos_token }}")),
    begun_twice,
    lambda directory: settings(directory, chat_template="\n " + TEMPLATE),
], ids=["nothing begins a text", "the day of proof", "the template names what ends a turn", "tokenizer and template begin a text",
        "blanks come first"])
def test_what_is_read_is_what_the_original_reads(packer: Packer, change: Callable[[Path], None]) -> None:
    checkpoint, payload = packer(change)
    original, found = Original(checkpoint.path), packer.answers(payload, ROWS)
    for row, ids, count in zip(ROWS, found.ids, found.tokens, strict=True):
        assert ids[:count].tolist() == original.encode(row)[0].tolist(), row.id


@pytest.mark.parametrize("change", [lambda directory: settings(directory, chat_template=WITH_BEGIN),
                                    lambda directory: settings(directory, chat_template=SPELLED)], ids=["by its name", "by its letters"])
def test_conversations_begin_once_where_the_template_alone_begins_them(packer: Packer, change: Callable[[Path], None]) -> None:
    checkpoint, payload = packer(change)
    rows = [row for row in ROWS if row.messages]
    original, found = Original(checkpoint.path), packer.answers(payload, rows)
    for row, ids, count in zip(rows, found.ids, found.tokens, strict=True):
        assert ids[:count].tolist() == original.encode(row)[0].tolist(), row.id


def test_without_a_template_a_text_begins_as_the_tokenizer_begins_it(packer: Packer) -> None:
    def change(directory: Path) -> None:
        begun(directory)
        settings(directory, chat_template=None)

    checkpoint, payload = packer(change)
    (ids,) = packer.answers(payload, ROWS[:1]).ids
    assert ids.tolist() == Original(checkpoint.path).encode(ROWS[0])[0].tolist()


@pytest.mark.parametrize("change", [lambda directory: None, begun_twice], ids=["plain", "with a start token"])
def test_what_is_likely_is_what_the_original_holds_for_likely(packer: Packer, change: Callable[[Path], None]) -> None:
    """Every scored position of texts up to the end of the context, and of one that is longer."""
    checkpoint, payload = packer(change)
    rows = [*ROWS, Row(id="long", text="the sea and the lighthouse " * 40)]
    original, expected = Original(checkpoint.path), Answers([], [], [], [])
    for row in rows:
        original.add(expected, row)
    found = packer.answers(payload, rows)
    assert found.truncated == expected.truncated == [*[False] * len(ROWS), True]
    assert found.tokens[-1] == CONTEXT and len(found.numbers[-1]) >= len(expected.numbers[-1]) - 8
    for number, row in enumerate(rows):
        mine, theirs = found.numbers[number][:, 0], expected.numbers[number][:, 0]
        if len(expected.ids[number]) == expected.tokens[number]:  # no prompt to go on with
            assert len(mine) == len(theirs) or row.id == "long"
            assert np.abs(mine - theirs[:len(mine)]).max(initial=0) < 2e-3, row.id


def test_it_goes_on_as_the_original_does_and_ends_where_each_stop_token_comes(packer: Packer) -> None:
    prompts = [Row(id=str(number), text=text, role="prompt") for number, text in enumerate(TEXTS[:40])]
    checkpoint, payload = packer()
    original, expected, whole = Original(checkpoint.path), Answers([], [], [], []), packer.answers(payload, prompts)
    for row in prompts:
        original.add(expected, row)
    told = [ids[count:].tolist() for ids, count in zip(whole.ids, whole.tokens, strict=True)]
    assert all(said == ids[count:][:len(said)].tolist() for said, ids, count in zip(told, expected.ids, expected.tokens, strict=True))
    # One of which the text tells several tokens: random weights say many that a tokenizer would not make of it.
    number, said = max(enumerate(told), key=lambda each: len(set(each[1])))
    assert len(set(said)) > 2, told
    end = Tokenizer.from_file(str(checkpoint.path / "tokenizer.json")).token_to_id(END)
    for place in (0, next(place for place in range(1, len(said)) if said[place] not in said[:place])):
        stops = [end, said[place]]

        def change(directory: Path, stops: list[int] = stops) -> None:
            for name in ("config.json", "generation_config.json"):
                path = directory / name
                path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": stops}))

        _, other = packer(change)
        ended = packer.answers(other, [prompts[number]])
        assert ended.ids[0][ended.tokens[0]:].tolist() == said[:place + 1]


def test_a_conversation_that_the_template_refuses_is_an_error(packer: Packer) -> None:
    _, payload = packer(lambda directory: settings(
        directory, chat_template="{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE))
    with pytest.raises(EdgeExportError, match="refuses this conversation"):
        packer.answers(payload, [ROWS[3]])


def test_a_file_that_ends_texts_elsewhere_is_refused(packer: Packer) -> None:
    _, payload = packer()
    path = payload.path / "text" / "generation.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"stop_ids": [0]}))
    with pytest.raises(EdgeExportError, match="ends texts at other tokens"):
        packer.answers(payload, ROWS[:1])


def test_the_same_model_is_the_same_file(packer: Packer) -> None:
    one, same, other = (packer(change)[1].path / "variants" / "v" / "model.litertlm" for change in (
        lambda directory: None, lambda directory: None, lambda directory: settings(directory, chat_template=WITH_BEGIN)))
    assert one.read_bytes() == same.read_bytes() != other.read_bytes()


def test_the_file_is_inspected_as_the_model_in_it(packer: Packer) -> None:
    _, payload = packer()
    path = payload.path / "variants" / "v" / "model.litertlm"
    found, inside = inspect_file(path), inspect_file(packer.model.path / "model.tflite")  # type: ignore[union-attr]
    assert (found.format, found.bytes) == ("litertlm", path.stat().st_size)
    assert found.operators == inside.operators and found.weight_groups == inside.weight_groups
    assert {value for signature in found.signatures for each in signature.inputs for value in each.shape if value == "?"} == set()


@pytest.mark.parametrize("length", [4, 40, 20_000])
def test_a_damaged_file_is_told(packer: Packer, tmp_path: Path, length: int) -> None:
    _, payload = packer()
    path = tmp_path / "model.litertlm"
    path.write_bytes((payload.path / "variants" / "v" / "model.litertlm").read_bytes()[:length])
    with pytest.raises(ModelFileError, match=r"damaged|no whole model|neither"):
        inspect_file(path)


