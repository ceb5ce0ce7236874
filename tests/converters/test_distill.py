"""Distillation: each part of the loss against NumPy on Transformers' own outputs, and students that learn."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed import SHORT, data_for, model_of, rows_for, run_again, weights_of
from edgeexport.converters._examples import read_examples
from edgeexport.converters._objective import Objective
from edgeexport.converters.distill import Lessons, prepare, same_words
from reference import Original, softmax
from test_compute_teacher import Reference, anchors_by_hand, answers_by_hand
from tiny import ARCHITECTURES, TEXTS, Case
from tokenizers import Tokenizer, pre_tokenizers
from zoo import Zoo

from edgeexport.artifact import Kind, Spec, Task
from edgeexport.catalog import find_step
from edgeexport.dataset import Row
from edgeexport.errors import CheckpointError, DataError
from edgeexport.recipe import ModelSection
from edgeexport.session.text import read_text_spec
from edgeexport.step import Refusal, View

EMBEDDER = Case("bert", Task.SENTENCE_SIMILARITY, "mean", normalize=True)
CLASSIFIER, TAGGER = Case("bert", Task.TEXT_CLASSIFICATION), Case("bert", Task.TOKEN_CLASSIFICATION)
ASKED = [*SHORT[3:100:12], " ".join(TEXTS[100:110])]  # and one that is cut


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whatever the developer's Accelerate configuration says."""
    from accelerate.commands.config import config_args

    monkeypatch.setattr(config_args, "default_config_file", str(tmp_path / "none.yaml"))


def changed(zoo: Zoo, case: Case, seed: int = 5, share: float = 0.3, source: View | None = None) -> View:
    """A student: the teacher with noise in its weights."""
    from safetensors.torch import load_file, save_file

    teacher = source or zoo.loaded(case)
    path = Path(shutil.copytree(teacher.path, zoo.place("student") / "m"))
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(path / "model.safetensors")
    for name, tensor in sorted(tensors.items()):
        if tensor.dim() == 2 and "embeddings" not in name:
            tensors[name] = tensor + share * tensor.std() * torch.randn(tensor.shape, generator=generator)
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return View(path, teacher.spec)


def taught(zoo: Zoo, teacher: View, student: View, rows: View, **options: Any) -> dict[str, View]:
    """The inputs of a distillation."""
    outputs = zoo.run(find_step("compute_teacher")(**options), {"checkpoint": teacher, "texts": rows})
    return {"student": student, "teacher": outputs, "training": rows}


def loss_of(inputs: dict[str, View], count: int = 100, **options: Any) -> float:
    """The loss of the first examples as one batch."""
    student = inputs["student"]
    lessons = Lessons(find_step("distill")(epochs=1, **{"answers": 0.0} | options), student, inputs)
    with torch.no_grad():
        return float(lessons.loss(model_of(student), lessons.examples[:count]))


class Side(Reference):
    """A reference of a checkpoint that is not the case's own."""

    def __init__(self, zoo: Zoo, case: Case, view: View) -> None:
        super().__init__(zoo, case)
        weights = Original(view.path, case.task)
        self.original.tokenizer = weights.tokenizer
        embeddings = weights.model.get_input_embeddings().weight.shape[0]
        self.original.model.resize_token_embeddings(embeddings)
        self.original.model.load_state_dict(weights.model.state_dict())


def both_sides(zoo: Zoo, case: Case, student: View, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For each text what either says: answers at what both have, hidden states and projections at shared anchors."""
    sides = [Reference(zoo, case), Side(zoo, case, student)]
    found = []
    for row in rows:
        text = (row.text,) if row.text_pair is None else (row.text, row.text_pair)
        anchors = [anchors_by_hand(side, text) for side in sides]
        shared = [key for key in anchors[1] if key in anchors[0]]
        entry: dict[str, Any] = {"answers": [], "hidden": [], "projected": [], "shared": shared}
        for side, own in zip(sides, anchors, strict=True):
            outputs, hidden, projected = side.run(*text)
            answers = answers_by_hand(side, text, outputs, own)
            if side is sides[0]:
                entry["others"] = answers
            if case.task in {Task.QUESTION_ANSWERING, Task.FEATURE_EXTRACTION}:
                answers = answers[[list(own).index(key) for key in shared]]
            places = [own[key] for key in shared]
            entry["answers"].append(answers)
            entry["hidden"].append(hidden[-1][places])
            entry["projected"].append([vectors[places] @ vectors[places].T / math.sqrt(vectors.shape[1]) for vectors in projected])
        count = min(map(len, entry["answers"]))
        entry["answers"] = [answers[:count] for answers in entry["answers"]]
        found.append(entry)
    return found


def divergence(wanted: np.ndarray, found: np.ndarray) -> np.ndarray:
    """Kullback-Leibler, of each row of logits."""
    p, q = softmax(wanted), softmax(found)
    return (p * np.log(p / q)).sum(axis=-1)


CASES = [EMBEDDER, Case("roberta", Task.FEATURE_EXTRACTION), CLASSIFIER, TAGGER, Case("electra", Task.QUESTION_ANSWERING),
         Case("camembert", Task.FILL_MASK), Case("albert", Task.TEXT_CLASSIFICATION), Case("mobilebert", Task.TOKEN_CLASSIFICATION),
         Case("xlm-roberta", Task.TOKEN_CLASSIFICATION), Case("distilbert", Task.TEXT_CLASSIFICATION)]
SIZES = {"bert": 400, "roberta": 330, "xlm-roberta": 300, "electra": 340}
TRIMMED = [EMBEDDER, Case("roberta", Task.FEATURE_EXTRACTION), CLASSIFIER, TAGGER, Case("electra", Task.QUESTION_ANSWERING),
           Case("xlm-roberta", Task.TOKEN_CLASSIFICATION)]


@pytest.mark.parametrize(("case", "trimmed"), [*((case, False) for case in CASES), *((case, True) for case in TRIMMED)],
                         ids=lambda value: str(value) if isinstance(value, Case) else "trimmed" if value else "whole")
def test_each_part_of_the_loss(zoo: Zoo, case: Case, trimmed: bool) -> None:
    """Also of a student that cuts words into other tokens, and long texts earlier."""
    rows = rows_for(case, ASKED)
    teacher = zoo.loaded(case)
    student = changed(zoo, case, source=zoo.trimmed(case, SIZES[case.architecture]) if trimmed else None)
    inputs = taught(zoo, teacher, student, data_for(zoo, case, ASKED), relations=True)
    sides = both_sides(zoo, case, student, [rows[example.row] for example in read_examples(student, inputs["training"].path)])
    if trimmed:
        assert any(len(entry["shared"]) for entry in sides)
        lengths = [[len(side.tokens(*((row.text,) if row.text_pair is None else (row.text, row.text_pair)))[0]) for row in rows]
                   for side in (Reference(zoo, case), Side(zoo, case, student))]
        assert lengths[0] != lengths[1], "tokens must differ"

    wanted, found = (np.concatenate([entry["answers"][side] for entry in sides]) for side in (0, 1))
    if case.task in {Task.SENTENCE_SIMILARITY, Task.FEATURE_EXTRACTION}:
        unit = [values / np.linalg.norm(values, axis=-1, keepdims=True) for values in (wanted, found)]
        assert loss_of(inputs, answers=2.0) == pytest.approx(2 * (1 - (unit[0] * unit[1]).sum(axis=-1)).mean(), rel=1e-3)
        others = np.concatenate([entry["others"] for entry in sides])
        others /= np.linalg.norm(others, axis=-1, keepdims=True)
        scores = [np.where(unit[0] @ others.T > 0.999, -1e4, 20 * values @ others.T) for values in unit]
        with np.errstate(divide="ignore", invalid="ignore"):
            p, q = map(softmax, scores)
            expected = np.where(p > 0, p * np.log(p / q), 0).sum(axis=-1).mean()
        assert loss_of(inputs, similarities=1.0) == pytest.approx(expected, rel=2e-3)
    elif case.task is Task.QUESTION_ANSWERING:
        assert loss_of(inputs, answers=1.0) == pytest.approx(((wanted - found) ** 2).mean(), rel=1e-3)
    else:
        assert loss_of(inputs, answers=1.0) == pytest.approx(4 * divergence(wanted / 2, found / 2).mean(), rel=1e-3)

    theirs, mine = (np.concatenate([entry["hidden"][side] for entry in sides]) for side in (0, 1))
    assert loss_of(inputs, hidden=1.0) == pytest.approx(((theirs - mine) ** 2).sum() / (theirs**2).sum(), rel=5e-3)
    related = [np.mean([divergence(*pair).mean() for pair in zip(*entry["projected"], strict=True)]) for entry in sides]
    assert loss_of(inputs, relations=3.0) == pytest.approx(3 * np.mean(related), rel=5e-3)
    parts = [loss_of(inputs, **{name: 1.0}) for name in ("answers", "hidden", "relations")]
    assert loss_of(inputs, answers=1.0, hidden=0.5, relations=0.25) == pytest.approx(parts[0] + 0.5 * parts[1] + 0.25 * parts[2], rel=1e-5)
    assert min(parts) > 1e-4


@pytest.mark.parametrize("case", [EMBEDDER, Case("roberta", Task.FEATURE_EXTRACTION)], ids=str)
def test_neighbours_are_of_all_texts_and_not_more_than_memory_holds(zoo: Zoo, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where tokens have vectors, a text has many."""
    inputs = taught(zoo, zoo.loaded(case), changed(zoo, case), data_for(zoo, case, ASKED))
    step = find_step("distill")(epochs=1, similarities=1.0)
    everything = Lessons(step, inputs["student"], inputs).neighbours
    texts = len(Lessons(step, inputs["student"], inputs).examples)
    monkeypatch.setattr("edgeexport.converters.distill.NEIGHBOURS", texts)
    some = Lessons(step, inputs["student"], inputs).neighbours
    assert len(everything) > texts or case is EMBEDDER
    assert texts <= len(some) <= 2 * texts
    assert torch.allclose(some.norm(dim=-1), torch.ones(len(some)))
    assert (some @ everything.T).max(dim=-1).values.min() > 0.9999


def test_a_single_text_has_no_neighbours_to_differ_in(zoo: Zoo) -> None:
    inputs = taught(zoo, zoo.loaded(EMBEDDER), changed(zoo, EMBEDDER), data_for(zoo, EMBEDDER, ASKED[:1]))
    assert loss_of(inputs, similarities=1.0) == 0.0
    assert loss_of(inputs, answers=1.0) > 0


@pytest.mark.parametrize("case", [CLASSIFIER, TAGGER], ids=str)
def test_labels(zoo: Zoo, case: Case) -> None:
    """Cross entropy of the labelled rows; those without a label do not count."""
    labelled, plain = rows_for(case, ASKED, labelled=True), rows_for(case, ASKED)
    rows = [row if number % 3 else plain[number] for number, row in enumerate(labelled)]
    view = View(zoo.dataset("some", rows).path, Spec(kind=Kind.DATASET, facts={"labelled": True}))
    student = changed(zoo, case)
    inputs = taught(zoo, zoo.loaded(case), student, view)
    side, losses = Side(zoo, case, student), []
    for number, (row, example) in enumerate(zip(rows, read_examples(student, view.path), strict=True)):
        if number % 3:
            answers = answers_by_hand(side, (row.text,), side.run(row.text)[0], {})
            losses += [-float(np.log(softmax(logits)[truth])) for logits, truth in zip(answers, example.truth or (), strict=True)]
    assert loss_of(inputs, labels=2.0) == pytest.approx(2 * np.mean(losses), rel=1e-3)
    nobody = {**inputs, "training": data_for(zoo, case, ASKED)}
    assert loss_of(nobody, labels=1.0) == 0.0


def test_free_logits_are_compared_as_they_are(zoo: Zoo, tmp_path: Path) -> None:
    """Of several classes at once, or of a score, there is no distribution."""
    directory = Path(shutil.copytree(zoo.directory(CLASSIFIER), tmp_path / "several"))
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"problem_type": "multi_label_classification"}))
    teacher = zoo.load(directory, ModelSection(source="m"))
    student = changed(zoo, CLASSIFIER, source=teacher)
    inputs = taught(zoo, teacher, student, data_for(zoo, CLASSIFIER, ASKED))
    sides = both_sides(zoo, CLASSIFIER, student, rows_for(CLASSIFIER, ASKED))
    assert loss_of(inputs, answers=1.0) == pytest.approx(np.mean([(entry["answers"][0] - entry["answers"][1]) ** 2 for entry in sides]), rel=1e-3)
    refused = find_step("distill")(epochs=1, labels=0.5).infer({**{name: view.spec for name, view in inputs.items()}})
    assert isinstance(refused, Refusal) and "one class" in refused.reason


def test_development_distance_is_a_mean_over_answers(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the batches are."""
    from edgeexport.converters import distill

    student = changed(zoo, TAGGER)
    inputs = taught(zoo, zoo.loaded(TAGGER), student, data_for(zoo, TAGGER, ASKED))
    inputs |= {"development": inputs["training"], "development_teacher": inputs["teacher"]}
    sides = both_sides(zoo, TAGGER, student, rows_for(TAGGER, ASKED))
    wanted, found = (np.concatenate([entry["answers"][side] for entry in sides]) for side in (0, 1))
    for size in (2, 5, 32):
        monkeypatch.setattr(distill, "EVALUATION_BATCH", size)
        lessons = Lessons(find_step("distill")(epochs=1), student, inputs)
        assert lessons.distance(model_of(student)) == pytest.approx(4 * divergence(wanted / 2, found / 2).mean(), rel=1e-3)


# -- what is drawn, and what is no distribution

def test_a_sampled_answer_has_the_model_s_own_likelihood() -> None:
    spec = Spec(kind=Kind.CHECKPOINT, task=Task.TOKEN_CLASSIFICATION, facts={"labels": ["a", "b", "c"], "problem_type": None})
    objective = Objective(spec, None)  # type: ignore[arg-type]
    logits = torch.tensor([[0.0, 1.0, 2.0]]).repeat(20000, 1).requires_grad_()
    loss = objective.sampled_error(logits, torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad(loss, logits)
    p = softmax(np.array([0.0, 1.0, 2.0]))
    assert loss.item() / 20000 == pytest.approx(float(-(p * np.log(p)).sum()), rel=0.02)
    assert gradient.mean(dim=0).numpy() == pytest.approx(np.zeros(3), abs=0.02)  # the expected score is 0
    assert (gradient**2).mean(dim=0).numpy() == pytest.approx(p * (1 - p), rel=0.05)  # its variance the information


def test_words_of_two_tokenizers() -> None:
    whole = [(-1, 0), (0, 0), (0, 4), (0, 9), (-1, 1), (1, 0), (1, 3), (-1, 2)]
    cut = [(-1, 0), (0, 0), (0, 4), (0, 9), (-1, 1), (1, 0), (-1, 2)]
    shorter_first = [(-1, 0), (0, 0), (-1, 1), (1, 0), (1, 3), (1, 7), (-1, 2)]
    other = [(-1, 0), (0, 0), (0, 3), (0, 4), (0, 9), (-1, 1), (1, 0), (1, 3), (-1, 2)]
    for first, second, same in ((whole, whole, True), (whole, cut, True), (cut, whole, True), (whole, shorter_first, True), (whole, other, False),
                                (other, cut, False)):
        assert same_words(first, second) is same


# -- teacher and student of different tokenizers

def divided_by_blanks(zoo: Zoo, case: Case) -> View:
    """The same model, whose tokenizer takes a word and its punctuation for one word."""
    view = zoo.loaded(case)
    path = Path(shutil.copytree(view.path, zoo.place("blanks") / "m"))
    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path / "tokenizer.json"))
    return View(path, view.spec)


@pytest.mark.parametrize("case", [EMBEDDER, CLASSIFIER, TAGGER], ids=str)
@pytest.mark.parametrize("teacher_divides", [True, False])
def test_another_tokenizer_is_an_error(zoo: Zoo, case: Case, teacher_divides: bool) -> None:
    """Whichever of the two has more words; but vectors and classes of texts need no words in common."""
    texts = ["so it is", "well, I don't know", "yes!"]
    teacher, student = zoo.loaded(case), divided_by_blanks(zoo, case)
    if not teacher_divides:
        teacher, student = student, teacher
    inputs = taught(zoo, teacher, student, data_for(zoo, case, texts), relations=True)
    for options in ({"hidden": 1.0}, {"relations": 1.0}, *([{}] if case is TAGGER else [])):
        with pytest.raises(CheckpointError, match="do not share a tokenizer") as caught:
            loss_of(inputs, answers=1.0, **options)
        wanted = "made from the teacher" if case is TAGGER else "hidden = 0 and relations = 0"
        assert wanted in (caught.value.hint or "")
    if case is not TAGGER:
        assert loss_of(inputs, answers=1.0) > 0


def test_outputs_of_other_data_are_an_error(zoo: Zoo) -> None:
    inputs = taught(zoo, zoo.loaded(TAGGER), zoo.loaded(TAGGER), data_for(zoo, TAGGER, [" ", "one"]))
    with pytest.raises(DataError, match="no text in common"):
        loss_of({**inputs, "training": data_for(zoo, TAGGER, ["word", " "])}, answers=1.0)


# -- training

@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_model_in_training_answers_as_it_will(zoo: Zoo, architecture: str) -> None:
    """No dropout; and the table of tokens stays as it is unless it is asked for."""
    case = Case(architecture, Task.TEXT_CLASSIFICATION, layers=1)
    view = zoo.loaded(case)
    for embeddings in (False, True):
        model = model_of(view)
        prepare(model, embeddings=embeddings)
        objective = Objective(view.spec, read_text_spec(view.path / "text.json"))
        batch = read_examples(view, data_for(zoo, case, ASKED).path)
        wanted = objective.run(model.eval(), batch)[0]
        found = objective.run(model.train(), batch)[0]
        assert torch.equal(found, wanted)
        frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
        assert len(frozen) == (0 if embeddings else 1) and all("word_embeddings" in name for name in frozen)


def pruned_student(zoo: Zoo, case: Case) -> View:
    """Without a layer and half of the neurons that are left."""
    path = zoo.place("order")
    (path / "layers.json").write_text(json.dumps({"order": [0], "distance": [0.0]}))
    one = zoo.run(find_step("drop_layers")(layers=1), {"checkpoint": zoo.loaded(case), "order": View(path, Spec(kind=Kind.EVIDENCE))})
    importance = zoo.run(find_step("measure_channels")(method="magnitude"), {"checkpoint": one})
    return zoo.run(find_step("prune_channels")(neurons=0.5), {"checkpoint": one, "importance": importance})


def with_development(zoo: Zoo, case: Case, inputs: dict[str, View], texts: Sequence[str]) -> dict[str, View]:
    rows = data_for(zoo, case, texts)
    outputs = zoo.run(find_step("compute_teacher")(hidden=()), {"checkpoint": zoo.loaded(case), "texts": rows})
    return inputs | {"development": rows, "development_teacher": outputs}


@pytest.mark.parametrize(("case", "options"), [
    (EMBEDDER, {"similarities": 0.3, "hidden": 1.0}),
    (Case("roberta", Task.FEATURE_EXTRACTION), {"relations": 0.1}),
    (CLASSIFIER, {"hidden": 1.0}),
    (Case("xlm-roberta", Task.TOKEN_CLASSIFICATION), {"hidden": 1.0}),
    (Case("electra", Task.QUESTION_ANSWERING), {"hidden": 1.0}),
    (Case("bert", Task.FILL_MASK), {"hidden": 1.0}),
], ids=lambda value: str(value) if isinstance(value, Case) else "+".join(value))
def test_a_student_learns(zoo: Zoo, case: Case, options: dict[str, float]) -> None:
    """On texts that it was not trained on, the student's answers come nearer to the teacher's."""
    student = pruned_student(zoo, case)
    inputs = with_development(zoo, case, taught(zoo, zoo.loaded(case), student, data_for(zoo, case, SHORT[::2]), relations=True), TEXTS[1:200:9])
    step = find_step("distill")(epochs=5, batch=8, learning_rate=4e-3, patience=99, **options)
    before = Lessons(step, student, inputs).distance(model_of(student))
    trained = zoo.run(step, inputs)
    after = Lessons(step, trained, inputs).distance(model_of(trained))
    assert after < before / 4
    history = trained.spec.facts["training"]["history"]
    assert min(distance for _, distance in history) == pytest.approx(after, rel=1e-3)
    assert trained.spec.parameters == student.spec.parameters
    names = {"bert": "bert.embeddings.word_embeddings.weight"}.get(case.architecture)
    if names in weights_of(trained):
        assert torch.equal(weights_of(trained)[str(names)], weights_of(student)[str(names)])


class Killed(BaseException):
    """The end of a process, which nothing catches."""


def test_an_interrupted_distillation_ends_with_the_same_weights(zoo: Zoo, tmp_path: Path) -> None:
    case = EMBEDDER
    student = pruned_student(zoo, case)
    inputs = with_development(zoo, case, taught(zoo, zoo.loaded(case), student, data_for(zoo, case, SHORT[::4])), TEXTS[1:200:20])
    step = find_step("distill")(epochs=3, batch=8, learning_rate=3e-3)
    whole = [run_again(step, inputs, tmp_path / f"out-{number}", tmp_path / f"scratch-{number}") for number in (0, 1)]
    assert all(torch.equal(tensor, weights_of(whole[1])[name]) for name, tensor in weights_of(whole[0]).items())
    told: list[str] = []

    def killing(fraction: float | None, message: str) -> None:
        told.append(message)
        if message.startswith("epoch") and sum(each.startswith("epoch") for each in told) in {7, 19}:
            raise Killed

    for _ in range(2):
        with pytest.raises(Killed):
            run_again(step, inputs, tmp_path / "out", tmp_path / "scratch", report=killing)
    again = run_again(step, inputs, tmp_path / "out", tmp_path / "scratch", report=killing)
    assert sum(message.startswith("going on after step") for message in told) == 2
    for name, tensor in weights_of(whole[0]).items():
        assert torch.equal(tensor, weights_of(again)[name]), name
    assert [list(each) for each in again.spec.facts["training"]["history"]] == [list(each) for each in whole[0].spec.facts["training"]["history"]]
    inside = [name for name in weights_of(again) if "encoder" in name]
    assert not any(torch.equal(weights_of(again)[name], weights_of(student)[name]) for name in inside)
    other = zoo.run(step.model_copy(update={"seed": 1}), inputs)
    assert not all(torch.equal(tensor, weights_of(other)[name]) for name, tensor in weights_of(again).items())


# -- refusals

def test_what_there_is_nothing_to_learn_from_is_refused(zoo: Zoo) -> None:
    distill = find_step("distill")
    training = Spec(kind=Kind.DATASET, facts={"labelled": True})
    for case, options, word in ((EMBEDDER, {"labels": 0.5}, "labels"), (CLASSIFIER, {"similarities": 0.5}, "similarities"),
                                (Case("bert", Task.FILL_MASK), {"labels": 0.5}, "labels"),
                                (Case("electra", Task.QUESTION_ANSWERING), {"labels": 0.5}, "labels"),
                                (Case("mpnet", Task.SENTENCE_SIMILARITY), {"relations": 0.5}, "relations")):
        specs = {"student": zoo.loaded(case).spec, "training": training}
        refused = distill(epochs=1, **options).infer(specs)
        assert isinstance(refused, Refusal) and word in (refused.hint or "") and "= 0" in (refused.hint or "")
        assert distill(epochs=1).infer(specs) == specs["student"]
    unlabelled = {"student": zoo.loaded(TAGGER).spec, "training": Spec(kind=Kind.DATASET, facts={"labelled": False})}
    refused = distill(epochs=1, labels=0.5).infer(unlabelled)
    assert isinstance(refused, Refusal) and refused.reason == "the training data have no labels"
