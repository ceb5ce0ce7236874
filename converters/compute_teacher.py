"""What a teacher makes of texts: its answers, hidden states and attention relations, computed once for all students."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import ClassVar

from edgeexport.artifact import Kind, Spec
from edgeexport.step import Context, Refusal, Step, View

from ._architecture import ARCHITECTURES
from ._examples import by_length, read_examples
from ._objective import Objective
from ._relations import Projections
from ._task_model import load_model, read_text
from ._teacher_outputs import TeacherOutput, TeacherWriter, narrowed

BATCH = 16


class ComputeTeacher(Step):
    """Run the teacher over a data set.

    Attributes:
        hidden: after which shares of its layers to take the hidden states: 1.0 after the last, 0.5 in the middle.
        relations: whether to compute the attention relations of the last layer.
    """

    name: ClassVar[str] = "compute_teacher"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {"checkpoint": frozenset({Kind.CHECKPOINT}), "texts": frozenset({Kind.DATASET})}
    backends: ClassVar[tuple[str, ...]] = ("torch", "transformers", "optimum")
    extra: ClassVar[str | None] = "convert"
    seconds_guess: ClassVar[float] = 120.0

    hidden: tuple[float, ...] = (1.0,)
    relations: bool = False

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        """Evidence; refuses relations of an architecture whose attention is not described."""
        checkpoint = inputs["checkpoint"]
        architecture = ARCHITECTURES.get(checkpoint.architecture or "")
        if self.relations and (architecture is None or architecture.heads is None):
            return Refusal(reason=f"the attention of {checkpoint.architecture} is not described", hint="set compress.distill.relations = 0")
        return Spec(kind=Kind.EVIDENCE, task=checkpoint.task)

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Texts of about one length go together."""
        import numpy as np
        import torch

        torch.set_num_threads(context.threads)
        checkpoint = inputs["checkpoint"]
        context.report(None, "loading the teacher")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = load_model(checkpoint.path, checkpoint.spec.require_task())
        model.to(torch.device(device))  # type: ignore[arg-type]
        objective = Objective(checkpoint.spec, read_text(checkpoint.path))
        examples = read_examples(checkpoint, inputs["texts"].path)
        writer, done = TeacherWriter(out), 0
        with torch.inference_mode(), Projections(model) if self.relations else nullcontext() as projections:
            for batch in by_length(examples, objective.at_once(BATCH)):
                answers, found = objective.run(model, batch, output_hidden_states=bool(self.hidden))
                states = [found.hidden_states[round(share * (len(found.hidden_states) - 1))] for share in self.hidden]
                stacked = torch.stack(states, dim=2) if states else torch.zeros(len(batch), max(example.length for example in batch), 0, 0)
                rows = iter(objective.kept(answers).cpu().numpy())
                for number, example in enumerate(batch):
                    positions = list(example.anchors.values())
                    relations = (projections.logits(number, positions).cpu().numpy() if projections is not None
                                 else np.zeros((0, len(positions), len(positions))))
                    writer.add(example, TeacherOutput(
                        answers=np.stack([next(rows) for _ in range(objective.count(example))]).astype(np.float32),
                        anchors=np.array(list(example.anchors), np.int32), hidden=narrowed(stacked[number, positions].cpu().numpy()),
                        relations=narrowed(relations)))
                done += len(batch)
                context.report(done / len(examples), f"{done} of {len(examples)} texts")
        writer.close()
        return self.infer({"checkpoint": checkpoint.spec})  # type: ignore[return-value]
