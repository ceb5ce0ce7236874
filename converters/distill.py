"""A student that answers as its teacher does: training on the teacher's outputs, and on labels where there are some."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from edgeexport.artifact import Kind, Model, Spec, Task
from edgeexport.errors import CheckpointError, DataError
from edgeexport.step import Context, Refusal, Step, View

from ._architecture import ARCHITECTURES
from ._examples import Example, by_length, evenly, read_examples
from ._fake_quantization import rounded
from ._objective import VECTORS, Objective, has_one_class
from ._processes import process_count, run_processes, serve, tell
from ._pruned_model import pruned_spec, save_model, token_table
from ._relations import Projections
from ._task_model import load_model, read_text
from ._teacher_outputs import TeacherOutputs
from ._training import Schedule, Trainer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

EVALUATION_BATCH = 32
# Of the teacher's vectors, about how many each of the student's is compared with: 2 % of what a step of a model of 4 million weights costs.
NEIGHBOURS = 4096


class Distill(Step):
    """Train a student.

    The loss is a weighted sum; a weight of 0 leaves a part out.

    Attributes:
        answers: weight of the distance of the answers: vectors, or distributions over classes or tokens.
        similarities: of vectors, weight of the distance of the similarities to the teacher's vectors of other texts.
        hidden: weight of the relative squared error of the hidden states, at tokens that both models have.
        relations: weight of the divergence of the attention relations of the last layers.
        labels: weight of the cross entropy of labelled examples; of a language model, of the tokens that come.
        hidden_after: after which shares of the layers hidden states are compared; as the teacher's outputs hold them.
        epochs, batch, learning_rate, patience, seed: see :class:`Schedule`.
        embeddings: whether the table of token vectors is trained too.
        quantization_aware: whether linear layers compute with rounded numbers; see :mod:`._fake_quantization`.

    Source: the losses are those of DistilBERT (V. Sanh and others, 2019), TinyBERT (X. Jiao and others, 2020), MiniLMv2 (W. Wang and others,
    2021) and of "Improving Efficient Neural Ranking Models with Cross-Architecture Knowledge Distillation" (S. Hofstätter and others, 2020).
    """

    name: ClassVar[str] = "distill"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {
        "student": frozenset({Kind.CHECKPOINT}), "teacher": frozenset({Kind.EVIDENCE}), "training": frozenset({Kind.DATASET})}
    backends: ClassVar[tuple[str, ...]] = ("torch", "transformers", "optimum", "accelerate")
    extra: ClassVar[str | None] = "convert"
    seconds_guess: ClassVar[float] = 600.0

    answers: float = Field(1.0, ge=0)
    similarities: float = Field(0.0, ge=0)
    hidden: float = Field(0.0, ge=0)
    relations: float = Field(0.0, ge=0)
    labels: float = Field(0.0, ge=0)
    hidden_after: tuple[float, ...] = (1.0,)
    epochs: float = Field(gt=0)
    batch: int = Field(32, ge=1)
    learning_rate: float = Field(3e-4, gt=0)
    patience: int = Field(4, ge=1)
    seed: int = 0
    embeddings: bool = False
    quantization_aware: bool = False

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        """The student with other weights; refuses a part of the loss that there is nothing for."""
        student = inputs["student"]
        if self.labels and student.task is not Task.TEXT_GENERATION:
            if not (student.task in {Task.TEXT_CLASSIFICATION, Task.TOKEN_CLASSIFICATION} and has_one_class(student)):
                return Refusal(reason="labels are trained on where a text or a word has one class", hint="set compress.distill.labels = 0")
            if not inputs["training"].facts.get("labelled"):
                return Refusal(reason="the training data have no labels", hint="set compress.distill.labels = 0, or give labelled data")
        if self.similarities and student.task not in VECTORS:
            return Refusal(reason=f"the answers of {student.task} are no vectors that could be similar", hint="set compress.distill.similarities = 0")
        architecture = ARCHITECTURES.get(student.architecture or "")
        if self.relations and (architecture is None or architecture.heads is None):
            return Refusal(reason=f"the attention of {student.architecture} is not described", hint="set compress.distill.relations = 0")
        return student

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Train, and write the student as it was best; in several processes where there are several GPUs, or Accelerate is told so."""
        count = min(process_count(), self.batch)
        if count == 1:
            return self.train(inputs, out, context)
        job = Job(step=self, inputs={name: (view.path, view.spec) for name, view in inputs.items()}, out=out, scratch=context.scratch,
                  threads=max(1, context.threads // count), seed=context.seed)
        path = context.scratch / "job.json"
        path.write_text(job.model_dump_json(), encoding="utf-8")
        context.report(None, f"starting {count} processes")
        return Spec.model_validate(run_processes(__name__, path, count, context.threads, context.scratch / "processes.txt", context.report))

    def train(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Train in this process, which may be one of several; the first one writes the student."""
        import torch

        torch.set_num_threads(context.threads)
        torch.manual_seed(self.seed)
        student = inputs["student"]
        context.report(None, "loading the student")
        model = load_model(student.path, student.spec.require_task())
        lessons = Lessons(self, student, inputs)
        prepare(model, embeddings=self.embeddings)
        trainer = Trainer(model, Schedule(self.epochs, self.batch, self.learning_rate, self.patience, self.seed), lessons.examples, context.scratch,
                          context.report)
        with rounded(model) if self.quantization_aware else nullcontext():
            progress = trainer.run(lessons.loss, lessons.distance if lessons.development else None)
        training = {"steps": progress.step, "of": trainer.steps, "history": progress.history, "restarts": progress.restarts}
        if not trainer.accelerator.is_main_process:
            return student.spec
        model = trainer.accelerator.unwrap_model(trainer.model).eval().cpu()
        save_model(model, student.path, out)
        return pruned_spec(model, student.spec, out, training=training)


class Job(Model):
    """What a process of several has to do: a step with what it is given."""

    step: Distill
    inputs: dict[str, tuple[Path, Spec]]
    out: Path
    scratch: Path
    threads: int
    seed: int


def work(path: Path) -> dict[str, Any]:
    """Do a job; returns the spec of what came out."""
    job = Job.model_validate_json(path.read_text(encoding="utf-8"))
    context = Context(job.scratch, job.threads, job.seed, report=lambda fraction, message: tell(fraction=fraction, message=message))
    inputs = {name: View(*given) for name, given in job.inputs.items()}
    return job.step.train(inputs, job.out, context).model_dump(mode="json")


def prepare(model: PreTrainedModel, *, embeddings: bool) -> None:
    """Choose what is trained, and take dropout out: the teacher is followed at every point, not on average."""
    import torch

    for parameter in model.parameters():
        parameter.requires_grad_(True)
    if not embeddings:
        token_table(model).weight.requires_grad_(False)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


class Lessons:
    """What a student is taught: examples with what the teacher makes of them.

    Attributes:
        examples: to train on.
        development: to be judged by.
        neighbours: vectors of the teacher, where similarities to them are learned.
    """

    def __init__(self, step: Distill, student: View, inputs: Mapping[str, View]) -> None:
        """Read the data and match them with the teacher's outputs.

        Raises:
            CheckpointError: the student's tokenizer cuts words where the teacher's does not.
        """
        self._step = step
        self._objective = Objective(student.spec, read_text(student.path))
        self._teacher = TeacherOutputs(inputs["teacher"].path)
        self.examples = self._matched(read_examples(student, inputs["training"].path), self._teacher)
        if step.similarities:
            self.neighbours = self._neighbours()
        self.development: list[Example] = []
        if "development" in inputs:
            self._judge = TeacherOutputs(inputs["development_teacher"].path)
            self.development = self._matched(read_examples(student, inputs["development"].path), self._judge)

    def _matched(self, examples: Sequence[Example], teacher: TeacherOutputs) -> list[Example]:
        found = [example for example in examples if example.row in teacher]
        by_token = self._objective.by_token
        for example in found if self._step.hidden or self._step.relations or by_token else ():
            if not same_words(example.anchors, map(tuple, teacher[example.row].anchors.tolist())):
                raise CheckpointError("Teacher and student do not share a tokenizer.", why="they divide a text into other words",
                                      hint="take a student that was made from the teacher" if by_token else
                                      "compare answers alone: hidden = 0 and relations = 0 in [compress.distill]")
        if not found:
            raise DataError("Teacher and student have no text in common.", why="each answers other rows of the data",
                            hint="compute the teacher's outputs on the same data")
        return found

    def _neighbours(self) -> torch.Tensor:
        """Vectors of the teacher, evenly spread over the training texts and their tokens: float32 [vectors, width], of length 1."""
        import numpy as np
        import torch

        texts = [self._teacher[example.row].answers for example in evenly(self.examples, NEIGHBOURS)]  # mapped, not read
        step = math.ceil(sum(map(len, texts)) / NEIGHBOURS)
        return torch.nn.functional.normalize(torch.from_numpy(np.concatenate([vectors[::step] for vectors in texts])), dim=-1)

    def loss(self, model: PreTrainedModel, batch: list[Example]) -> torch.Tensor:
        """The weighted sum of what is to be learned from a batch."""
        import torch

        step, objective = self._step, self._objective
        inner: Any = getattr(model, "module", model)
        with Projections(inner) if step.relations else nullcontext() as projections:
            answers, found = objective.run(model, batch, output_hidden_states=bool(step.hidden))
            lessons = [self._teacher[example.row] for example in batch]
            total = answers.new_zeros(())
            wanted, rows = self._answers(batch, self._teacher)
            wanted = wanted.to(answers.device)
            if step.answers:
                total = total + step.answers * objective.distance(answers[rows], wanted)
            if step.similarities:
                total = total + step.similarities * objective.similarity_distance(answers[rows], wanted, self.neighbours.to(answers.device))
            error = objective.error(answers, batch) if step.labels else None
            if error is not None:
                total = total + step.labels * error
            if step.hidden or step.relations:
                shared = [self._shared(example, lesson.anchors) for example, lesson in zip(batch, lessons, strict=True)]
                if step.hidden:
                    states = [found.hidden_states[round(share * (len(found.hidden_states) - 1))] for share in step.hidden_after]
                    stacked = torch.stack(states, dim=2)
                    mine = torch.cat([stacked[number, own] for number, (own, _) in enumerate(shared)])
                    theirs = torch.cat([torch.from_numpy(lesson.hidden[index]) for lesson, (_, index) in zip(lessons, shared, strict=True)])
                    total = total + step.hidden * relative_error(mine, theirs.to(mine))
                if projections is not None:
                    total = total + step.relations * sum(
                        divergence(projections.logits(number, own), torch.from_numpy(lesson.relations[:, index][:, :, index]).to(answers))
                        for number, (lesson, (own, index)) in enumerate(zip(lessons, shared, strict=True))) / len(batch)
        return total

    def distance(self, model: PreTrainedModel) -> float:
        """How far the student's answers to the development data are from the teacher's."""
        import torch

        total, count = 0.0, 0
        with torch.inference_mode():
            for batch in by_length(self.development, self._objective.at_once(EVALUATION_BATCH)):
                answers, _ = self._objective.run(model, batch)
                wanted, rows = self._answers(batch, self._judge)
                total += len(rows) * self._objective.distance(answers[rows], wanted.to(answers.device)).item()
                count += len(rows)
        return total / count

    def _answers(self, batch: Sequence[Example], teacher: TeacherOutputs) -> tuple[torch.Tensor, torch.Tensor]:
        """The teacher's answers, float32 [rows, values], and which of the student's rows they belong to.

        A text of which one of them cuts more off has fewer answers by token; those at its beginning are about the same words.
        """
        import numpy as np
        import torch

        wanted, start = [], 0
        rows: list[int] = []
        for example in batch:
            lesson, own = teacher[example.row], self._objective.count(example)
            if self._objective.at_anchors:
                place = {key: number for number, key in enumerate(example.anchors)}
                both = [(place[key], index) for index, key in enumerate(map(tuple, lesson.anchors.tolist())) if key in place]
            else:
                both = [(number, number) for number in range(min(own, len(lesson.answers)))]
            wanted.append(lesson.answers[[theirs for _, theirs in both]])
            rows += [start + mine for mine, _ in both]
            start += own
        return torch.from_numpy(np.concatenate(wanted)), torch.tensor(rows)

    @staticmethod
    def _shared(example: Example, anchors: Any) -> tuple[list[int], list[int]]:
        """Positions in the student's text, and indices among the teacher's anchors, of the tokens that both have."""
        pairs = [(example.anchors[key], index) for index, key in enumerate(map(tuple, anchors.tolist())) if key in example.anchors]
        return [own for own, _ in pairs], [index for _, index in pairs]


def same_words(mine: Iterable[tuple[int, ...]], theirs: Iterable[tuple[int, ...]]) -> bool:
    """Whether two tokenizers' anchors are those of the same words; where one of them cuts a long text earlier, it has fewer."""
    texts = [sorted(keys) for keys in (mine, theirs)]
    for text in (0, 1):
        first, second = ([key for key in keys if key[0] == text] for keys in texts)
        shorter = min(len(first), len(second))
        if first[:shorter] != second[:shorter]:
            return False
    return True


def relative_error(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Squared distance as a share of the squared length."""
    return ((found - wanted) ** 2).sum() / (wanted**2).sum()


def divergence(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence of the distributions that logits mean: a mean over all rows."""
    from torch.nn import functional

    rows = found.shape[0] * found.shape[1]
    return functional.kl_div(found.log_softmax(dim=-1), wanted.log_softmax(dim=-1), log_target=True, reduction="sum") / rows


if __name__ == "__main__":
    sys.exit(serve(work, sys.argv[1:]))
