"""What exports through litert-torch have in common: how large the file will be, and how traces become one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeexport.artifact import Kind, Spec
from edgeexport.step import Context

from ._tflite_file import mapped, module_paths, read_model, write_compactly

if TYPE_CHECKING:
    import torch


class Traced(NamedTuple):
    """A module to trace.

    Attributes:
        converter: litert-torch's, which traces when it converts, signature by signature.
        module: by whose parts tensors are named.
        dynamic: says, once all is traced, how names of inputs and outputs begin → their axis whose length is up to the runtime.
    """

    converter: Any
    module: torch.nn.Module
    dynamic: Callable[[], Mapping[str, int]] = dict


def float_model(checkpoint: Spec, lengths: tuple[int, ...]) -> Spec:
    """A checkpoint as a float32 TFLite file, of about the size of its weights."""
    return Spec(kind=Kind.TFLITE, task=checkpoint.task, architecture=checkpoint.architecture, precision="float32",
                parameters=checkpoint.parameters, bytes=4 * (checkpoint.parameters or 0), lengths=lengths)


def write_model(trace: Callable[[], Traced], target: Path, context: Context) -> None:
    """Convert all signatures together and write the file.

    Args:
        trace: is called here, so that nobody else holds the weights while the file is written.
        target: the file.
        context: where the converter's own file is kept meanwhile.
    """
    converter, module, dynamic = trace()
    model = converter.convert(strict_export=False)
    context.report(None, "writing")
    modules = module_paths(module)
    raw = context.scratch / "model.tflite"
    model.export(str(raw))
    del model, converter, module
    write_compactly(target, read_model(mapped(raw)), modules, dynamic())
    raw.unlink()
