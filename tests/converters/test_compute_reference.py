"""The reference step against Transformers called directly, one text at a time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference import Original
from tiny import MAX_LENGTH, TEXTS, Case, write_checkpoint
from zoo import Zoo, as_rows

from edgeexport.artifact import Kind, Spec, Task
from edgeexport.catalog import find_step
from edgeexport.dataset import Row
from edgeexport.recipe import ModelSection
from edgeexport.session.evidence import Answers, untruncated
from edgeexport.step import View

LONG = " ".join(TEXTS[100:110])
ROWS = as_rows(["", "one", *TEXTS[33:80:3], *TEXTS[100:104], LONG])


def run(zoo: Zoo, checkpoint: View, rows: list[Row], **options: Any) -> View:
    found = zoo.run(find_step("compute_reference")(datasets=("texts",), **options), {"checkpoint": checkpoint, "texts": zoo.dataset("texts", rows)})
    assert found.spec.kind is Kind.EVIDENCE
    return found


def answers(zoo: Zoo, checkpoint: View, rows: list[Row]) -> Answers:
    return Answers.load(run(zoo, checkpoint, rows).path / "texts.npz")


@pytest.mark.parametrize("case", [
    Case("bert", Task.TEXT_CLASSIFICATION), Case("mobilebert", Task.FILL_MASK), Case("roberta", Task.TOKEN_CLASSIFICATION, layers=1),
    Case("mpnet", Task.SENTENCE_SIMILARITY), Case("albert", Task.FEATURE_EXTRACTION, layers=1),
    *(Case("bert", Task.SENTENCE_SIMILARITY, pooling, layers=1) for pooling in ("max", "lasttoken", "mean_sqrt_len"))], ids=str)
def test_numbers_are_transformers_own(zoo: Zoo, case: Case) -> None:
    original = zoo.original(case)
    rows = ROWS
    if case.task is Task.FILL_MASK:
        rows = [row.model_copy(update={"text": f"{original.tokenizer.mask_token} {row.text}"}) for row in ROWS]
    found = answers(zoo, zoo.loaded(case), rows)
    for i, row in enumerate(rows):
        if case.task is Task.SENTENCE_SIMILARITY:
            wanted = original.vector(row.text, case.pooling or "mean")[None]
        elif case.task is Task.TEXT_CLASSIFICATION:
            wanted = original.outputs(row.text)["logits"]
            assert found.decisions[i] == [int(wanted.argmax())]
        elif case.task is Task.FILL_MASK:
            wanted = original.outputs(row.text)["logits"][0, 1:2]
            assert found.decisions[i] == [int(wanted.argmax())]
        elif case.task is Task.TOKEN_CLASSIFICATION:
            wanted = original.outputs(row.text)["logits"][0, original.firsts(row.text)]
            assert found.decisions[i] == wanted.argmax(axis=-1).tolist()
        else:
            wanted = original.outputs(row.text)["last_hidden_state"][0]
        assert found.numbers[i] == pytest.approx(wanted, abs=1e-4)
        tokens = original.tokens(row.text)["input_ids"].shape[1]
        assert found.tokens[i] == tokens
        assert found.truncated[i] == (len(original.tokenizer(row.text)["input_ids"]) > MAX_LENGTH)
    assert found.truncated[-1] and not found.truncated[0]


def test_pairs(zoo: Zoo) -> None:
    case = Case("bert", Task.QUESTION_ANSWERING, layers=1)
    original = zoo.original(case)
    rows = [Row(id=str(i), text=TEXTS[i], text_pair=pair) for i, pair in enumerate([TEXTS[60], LONG, "", "x"])]
    found = answers(zoo, zoo.loaded(case), rows)
    for i, row in enumerate(rows):
        outputs = original.outputs(row.text, row.text_pair)
        assert found.numbers[i] == pytest.approx(np.stack([outputs["start_logits"][0], outputs["end_logits"][0]], axis=1), abs=1e-4)
    assert found.truncated == [False, True, False, False]
    found = answers(zoo, zoo.loaded(case), [Row(id="7", text=LONG, text_pair="never seen"), rows[0]])
    assert (found.decisions[0], found.tokens[0], found.truncated[0], found.numbers[0].size) == ([], 0, True, 0)  # no room for an answer
    assert found.numbers[1].size > 0


def test_uncut_answers_are_cut_where_the_checkpoint_must(zoo: Zoo) -> None:
    case = Case("bert", Task.TEXT_CLASSIFICATION)
    checkpoint = zoo.load(zoo.directory(case), ModelSection(source="m", task=case.task, max_length=12))
    view = run(zoo, checkpoint, ROWS, untruncated=("texts",))
    for name, longest in (("texts", 12), (untruncated("texts"), MAX_LENGTH)):
        original = Original(zoo.directory(case), case.task, longest)
        found = Answers.load(view.path / f"{name}.npz")
        assert max(found.tokens) == longest
        for i, row in enumerate(ROWS):
            assert found.numbers[i] == pytest.approx(original.outputs(row.text)["logits"], abs=1e-4)
            assert found.truncated[i] == (len(original.tokenizer(row.text)["input_ids"]) > longest)


def test_prefixes_and_normalization(zoo: Zoo, tmp_path: Path) -> None:
    case = Case("bert", Task.SENTENCE_SIMILARITY, "cls", normalize=True, layers=1)
    directory = Path(shutil.copytree(zoo.directory(case), tmp_path / "m"))
    (directory / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": "find: ", "passage": "text: "}}))
    original = zoo.original(case)
    rows = [Row(id="0", text="one word", role="query"), Row(id="1", text="one word", role="document"), Row(id="2", text="one word")]
    found = answers(zoo, zoo.load(directory, ModelSection(source="m")), rows)
    for numbers, prefix in zip(found.numbers, ("find: ", "text: ", "text: "), strict=True):
        assert numbers[0] == pytest.approx(original.vector(f"{prefix}one word", "cls", normalize=True), abs=1e-5)


def test_half_precision_weights_are_computed_in_float32(zoo: Zoo, tmp_path: Path) -> None:
    case = Case("bert", Task.TEXT_CLASSIFICATION)
    directory = write_checkpoint(tmp_path / "m", case)
    import transformers

    model = transformers.AutoModelForSequenceClassification.from_pretrained(directory, dtype="bfloat16")
    model.save_pretrained(directory)
    assert json.loads((directory / "config.json").read_text())["dtype"] == "bfloat16"
    checkpoint = zoo.load(directory, ModelSection(source="m"))
    assert checkpoint.spec.parameters == sum(parameter.numel() for parameter in model.parameters())
    found = answers(zoo, checkpoint, ROWS[:6])
    original = Original(directory, case.task)  # in float32
    for numbers, row in zip(found.numbers, ROWS, strict=False):
        assert numbers == pytest.approx(original.outputs(row.text)["logits"], abs=1e-5)


def test_spec_says_what_comes_out(zoo: Zoo) -> None:
    checkpoint = zoo.loaded(Case("bert", Task.TEXT_CLASSIFICATION)).spec
    found = find_step("compute_reference")(datasets=("a",)).infer({"checkpoint": checkpoint})
    assert found == Spec(kind=Kind.EVIDENCE, task=Task.TEXT_CLASSIFICATION, precision="float32")
