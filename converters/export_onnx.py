"""A checkpoint as a float32 ONNX graph with dynamic batch and length."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from edgeexport.artifact import Kind, Spec
from edgeexport.policy import Policy
from edgeexport.session.tasks import output_names
from edgeexport.step import Context, Step, View

from ._onnx_external import MODEL, save_model
from ._task_model import read_text, task_module
from .measure_outliers import read_outliers

if TYPE_CHECKING:
    import onnx


class ExportOnnx(Step):
    """Export through PyTorch's dynamo exporter.

    Attributes:
        opset: version of the ONNX operator set.
        smoothed: the policy by which measured outliers move into the weights; see :mod:`._smoothing`.
    """

    name: ClassVar[str] = "export_onnx"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {"checkpoint": frozenset({Kind.CHECKPOINT})}
    backends: ClassVar[tuple[str, ...]] = ("torch", "transformers", "onnx", "onnxscript")
    extra: ClassVar[str | None] = "onnx"
    seconds_guess: ClassVar[float] = 20.0

    opset: int = 18
    smoothed: Policy = Policy(default="float")

    def infer(self, inputs: Mapping[str, Spec]) -> Spec:
        """A float32 graph of about the size of the weights."""
        checkpoint = inputs["checkpoint"]
        return Spec(kind=Kind.ONNX, task=checkpoint.task, architecture=checkpoint.architecture, precision="float32",
                    parameters=checkpoint.parameters, bytes=4 * (checkpoint.parameters or 0))

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Trace the module at one length and export it for all."""
        import torch

        torch.set_num_threads(context.threads)
        path, spec = inputs["checkpoint"]
        context.report(None, "loading the model")
        module = task_module(path, spec.require_task(), read_outliers(inputs, self.smoothed), self.smoothed.smoothing or 0.0)
        text = read_text(path)

        # Two rows, since a batch of one would be taken for a constant.
        length = min(16, text.max_length)
        sample = {name: torch.ones(2, length, dtype=torch.int64) for name in text.inputs}
        batch, sequence = torch.export.Dim("batch"), torch.export.Dim("sequence", max=text.max_length)
        context.report(None, "tracing")
        program = torch.onnx.export(
            module, kwargs=sample, dynamo=True, opset_version=self.opset, verbose=False,
            input_names=list(text.inputs), output_names=list(output_names(spec.require_task().value, text.pooling)),
            dynamic_shapes={name: {0: batch, 1: sequence} for name in text.inputs})
        if program is None:
            raise RuntimeError("the exporter returned nothing")
        context.report(None, "writing")
        model = program.model_proto
        name_nodes_by_module(model)
        save_model(model, out / MODEL)
        return self.infer({"checkpoint": spec})


def name_nodes_by_module(model: onnx.ModelProto) -> None:
    """Name each node by the module it came from, and drop the exporter's notes.

    The notes hold stack traces with the paths of the building machine: they would make two builds differ, and tell what is nobody's
    business. Of them the module's path is worth keeping: overrides and audits speak of modules.
    """
    taken: Counter[str] = Counter()
    for node in model.graph.node:
        notes = {entry.key: entry.value for entry in node.metadata_props}
        scopes = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))
        module = next((scope for scope in reversed(scopes[:-1]) if scope), "")
        base = f"{module.removeprefix('model.')}/{node.op_type}"
        taken[base] += 1
        node.name = base if taken[base] == 1 else f"{base}_{taken[base]}"
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.value_info[:]  # shapes; a runtime infers them, and quantizers trip over stale ones
    for value in (*model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
