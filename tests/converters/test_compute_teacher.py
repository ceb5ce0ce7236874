"""What a teacher makes of a data set, read back from disk, against Transformers and NumPy."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import pytest
import torch
from compressed import data_for, rows_for
from edgeexport.converters import _teacher_outputs
from edgeexport.converters._examples import read_examples
from edgeexport.converters._teacher_outputs import TeacherOutput, TeacherOutputs, TeacherWriter, narrowed
from reference import Original, pooled
from tiny import TEXTS, Case
from zoo import Zoo

from edgeexport.artifact import Kind, Spec, Task
from edgeexport.catalog import find_step
from edgeexport.step import Refusal, View

CASES = [
    Case("bert", Task.SENTENCE_SIMILARITY, "mean", normalize=True),
    Case("roberta", Task.FEATURE_EXTRACTION),
    Case("distilbert", Task.TEXT_CLASSIFICATION),
    Case("xlm-roberta", Task.TOKEN_CLASSIFICATION),
    Case("electra", Task.QUESTION_ANSWERING),
    Case("camembert", Task.FILL_MASK),
    Case("albert", Task.TOKEN_CLASSIFICATION, layers=3),
    Case("mobilebert", Task.TEXT_CLASSIFICATION),
]
ASKED = TEXTS[40:400:18]
QUERIES = {"distilbert": ("attention.q_lin", "attention.k_lin", "attention.v_lin"), "albert": ("attention.query", "attention.key", "attention.value")}


def outputs_of(zoo: Zoo, case: Case, rows: View, **options: Any) -> TeacherOutputs:
    found = zoo.run(find_step("compute_teacher")(**options), {"checkpoint": zoo.loaded(case), "texts": rows})
    return TeacherOutputs(found.path)


class Reference:
    """Transformers' own model on one text at a time, with what goes on inside."""

    def __init__(self, zoo: Zoo, case: Case) -> None:
        self.case, self.original = case, Original(zoo.directory(case), case.task)
        layers = [module for name, module in self.original.model.named_modules()
                  if name.endswith(("encoder.layer.1", "transformer.layer.1", "albert_layers.0"))]
        self.caught: list[np.ndarray] = []
        for name in QUERIES.get(case.architecture, ("attention.self.query", "attention.self.key", "attention.self.value")):
            layers[-1].get_submodule(name).register_forward_hook(lambda module, inputs, output: self.caught.append(output[0].numpy()))

    def run(self, *text: str) -> tuple[dict[str, np.ndarray], list[np.ndarray], list[np.ndarray]]:
        """Outputs, hidden states float32 [seq, width] after each layer, and the last layer's queries, keys and values."""
        features = {name: value for name, value in self.original.tokens(*text).items() if name in self.original.parameters}
        self.caught.clear()
        with torch.no_grad():
            found = self.original.model(**features, output_hidden_states=True)
        outputs = {name: value[0].numpy() for name, value in found.items() if name.endswith("logits") or name == "last_hidden_state"}
        return outputs, [state[0].numpy() for state in found.hidden_states], self.caught[-3:]

    def tokens(self, *text: str) -> Any:
        encoding = self.original.tokens(*text)
        return encoding["input_ids"][0].tolist(), encoding.word_ids(0), encoding.sequence_ids(0), encoding.encodings[0].offsets


def anchors_by_hand(reference: Reference, text: tuple[str, ...]) -> dict[tuple[int, int], int]:
    """Special tokens by number, words by the character at which they begin: key → position."""
    _, words, sequences, offsets = reference.tokens(*text)
    found: dict[tuple[int, int], int] = {}
    seen = set()
    for position, (word, sequence) in enumerate(zip(words, sequences, strict=True)):
        if sequence is None:
            found[-1, sum(key[0] == -1 for key in found)] = position
        elif word is not None and (sequence, word) not in seen:
            seen.add((sequence, word))
            found.setdefault((sequence, offsets[position][0]), position)
    return found


def answers_by_hand(reference: Reference, text: tuple[str, ...], outputs: dict[str, np.ndarray], anchors: dict[tuple[int, int], int]) -> np.ndarray:
    task = reference.case.task
    ids, words, _, _ = reference.tokens(*text)
    if task is Task.SENTENCE_SIMILARITY:
        vector = pooled(outputs["last_hidden_state"], "mean")
        return (vector / np.linalg.norm(vector))[None]
    if task is Task.FEATURE_EXTRACTION:
        return outputs["last_hidden_state"][list(anchors.values())]
    if task is Task.QUESTION_ANSWERING:
        return np.stack([outputs["start_logits"], outputs["end_logits"]], axis=1)[list(anchors.values())]
    if task is Task.TOKEN_CLASSIFICATION:
        return outputs["logits"][[i for i, word in enumerate(words) if word is not None and (i == 0 or word != words[i - 1])]]
    if task is Task.FILL_MASK:
        return outputs["logits"][[i for i, number in enumerate(ids) if number == reference.original.tokenizer.mask_token_id]]
    return outputs["logits"][None]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_row_is_what_the_model_says(zoo: Zoo, monkeypatch: pytest.MonkeyPatch, case: Case) -> None:
    monkeypatch.setattr(_teacher_outputs, "SHARD_ROWS", 7)
    rows = rows_for(case, ASKED)
    view = data_for(zoo, case, ASKED)
    outputs = outputs_of(zoo, case, view, hidden=(0.5, 1.0), relations=True)
    reference = Reference(zoo, case)
    examples = read_examples(zoo.loaded(case), view.path)
    assert len(examples) > 14
    for example in examples:
        row = rows[example.row]
        text = (row.text,) if row.text_pair is None else (row.text, row.text_pair)
        found, (wanted, hidden, projected) = outputs[example.row], reference.run(*text)
        anchors = anchors_by_hand(reference, text)
        positions = list(anchors.values())
        assert [tuple(key) for key in found.anchors.tolist()] == list(anchors)
        assert found.answers.dtype == np.float32
        right = answers_by_hand(reference, text, wanted, anchors)
        assert found.answers.shape == right.shape
        assert found.answers == pytest.approx(right, abs=1e-4 * max(1.0, float(np.abs(right).max())))
        middle = hidden[len(hidden) // 2 if len(hidden) % 2 else 2]
        states = np.stack([middle, hidden[-1]], axis=1)[positions]
        assert found.hidden.dtype == np.float16 and found.hidden.shape == states.shape
        assert found.hidden == pytest.approx(states, abs=1e-3 * float(np.abs(states).max()))
        related = np.stack([vectors[positions] @ vectors[positions].T / np.sqrt(vectors.shape[1]) for vectors in projected])
        assert found.relations.shape == related.shape == (3, len(positions), len(positions))
        assert found.relations == pytest.approx(related, abs=2e-3 * float(np.abs(related).max()))


def test_shards_are_mapped(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of rows and of bytes: a shard ends at whichever comes first; reading loads none of them."""
    case = CASES[0]
    view = data_for(zoo, case, ASKED)
    counts = {}
    for name, value in (("SHARD_ROWS", 7), ("SHARD_BYTES", 8_000), ("SHARD_BYTES", 1)):
        with monkeypatch.context() as patch:
            patch.setattr(_teacher_outputs, name, value)
            outputs = outputs_of(zoo, case, view, relations=True)
        counts[name, value] = len(list(outputs._path.glob("answers-*.npy")))
        rows = [outputs[row] for row in range(len(ASKED))]
        assert all(isinstance(row.hidden.base, np.memmap | mmap.mmap) or isinstance(row.hidden, np.memmap) for row in rows)
    assert counts["SHARD_ROWS", 7] == -(-len(ASKED) // 7)
    assert 1 < counts["SHARD_BYTES", 8_000] < counts["SHARD_BYTES", 1] == len(ASKED)
    assert len(ASKED) not in outputs and 0 in outputs


def test_nothing_is_stored_that_nobody_asked_for(zoo: Zoo) -> None:
    outputs = outputs_of(zoo, CASES[0], data_for(zoo, CASES[0], ASKED[:5]), hidden=(), relations=False)
    for row in range(5):
        count = len(outputs[row].anchors)
        assert outputs[row].answers.shape == (1, 32)
        assert outputs[row].hidden.size == outputs[row].relations.size == 0
        assert outputs[row].hidden.shape[0] == count


def test_a_row_without_an_answer_is_no_row(zoo: Zoo) -> None:
    """A tagger is asked about words: a text that has none is not stored, and stops nothing."""
    case = CASES[3]
    outputs = outputs_of(zoo, case, data_for(zoo, case, ["one word", " ", "and more"]))
    assert [row in outputs for row in range(3)] == [True, False, True]


def test_states_beyond_16_bits_stay_numbers(tmp_path: Any, zoo: Zoo) -> None:
    """MobileBERT's hidden states have millions: they are written in 32 bits, and those of other shards in 16."""
    large, small = np.float32([[[3e6, -1.0]]]), np.float32([[[0.5, -1.0]]])
    assert narrowed(small).dtype == np.float16 and narrowed(large).dtype == np.float32
    assert narrowed(np.zeros((0, 4, 4))).dtype == np.float16
    view = data_for(zoo, CASES[0], ASKED[:2])
    examples = read_examples(zoo.loaded(CASES[0]), view.path)
    writer = TeacherWriter(tmp_path)
    for example, hidden in zip(examples, (small, large), strict=True):
        anchors = np.zeros((1, 2), np.int32)
        writer.add(example, TeacherOutput(np.zeros((1, 2), np.float32), anchors, narrowed(hidden), narrowed(np.ones((3, 1, 1)))))
    writer.close()
    outputs = TeacherOutputs(tmp_path)
    assert np.array_equal(outputs[0].hidden, small) and np.array_equal(outputs[1].hidden, large)


def test_relations_need_a_description() -> None:
    step = find_step("compute_teacher")
    for architecture in ("mpnet", "deberta"):
        spec = Spec(kind=Kind.CHECKPOINT, task=Task.FILL_MASK, architecture=architecture)
        refused = step(relations=True).infer({"checkpoint": spec})
        assert isinstance(refused, Refusal) and architecture in refused.reason and "relations = 0" in (refused.hint or "")
        assert not isinstance(step().infer({"checkpoint": spec}), Refusal)
