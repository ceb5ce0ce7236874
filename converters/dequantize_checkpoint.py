"""A checkpoint that is quantized already, in float32: so that everything after it sees an ordinary one.

What quantizing cost is in these weights, and nothing here can undo that.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from edgeexport.artifact import Kind, Spec
from edgeexport.errors import CheckpointError
from edgeexport.step import Context, Refusal, Step, View

from . import _awq, _gptq
from ._awq import awq_weight
from ._bitsandbytes import ROW_ORDER, STATE, four_bit_weight, int8_weight
from ._gptq import gptq_weight

if TYPE_CHECKING:
    import torch

WEIGHTS = "model.safetensors"
# What belongs to a packed weight and to nothing else: where it is left over, something was not understood.
COMPANIONS = ("qweight", "qzeros", "scales", "g_idx", "SCB", "absmax", "quant_map", "nested_absmax", "nested_quant_map")


class DequantizeCheckpoint(Step):
    """Unpack what GPTQ, AWQ or bitsandbytes packed.

    Attributes:
        method: which of them.
        bits: of a packed number.
        kind: bitsandbytes' type of 4-bit numbers.
        zero_offset: what is to be added to GPTQ's stored zero points.
    """

    name: ClassVar[str] = "dequantize_checkpoint"
    consumes: ClassVar[Mapping[str, frozenset[Kind]]] = {"checkpoint": frozenset({Kind.CHECKPOINT})}
    backends: ClassVar[tuple[str, ...]] = ("torch", "safetensors")
    extra: ClassVar[str | None] = "convert"
    seconds_guess: ClassVar[float] = 8.0

    method: Literal["bitsandbytes", "gptq", "awq"]
    bits: int
    kind: str | None = None
    zero_offset: int = 0

    def infer(self, inputs: Mapping[str, Spec]) -> Spec | Refusal:
        """The same checkpoint with whole weights."""
        checkpoint = inputs["checkpoint"]
        return checkpoint.model_copy(update={"bytes": 4 * (checkpoint.parameters or 0)})

    def memory_mb(self, inputs: Mapping[str, Spec]) -> int:
        """The weights packed and whole."""
        checkpoint = inputs["checkpoint"]
        return 700 + ((checkpoint.bytes or 0) + 5 * (checkpoint.parameters or 0)) // 1_000_000

    def run(self, inputs: Mapping[str, View], out: Path, context: Context) -> Spec:
        """Unpack, and take the note of the packing out of config.json."""
        import torch
        from safetensors.torch import load_file, save_file

        torch.set_num_threads(context.threads)
        path, spec = inputs["checkpoint"]
        tensors: dict[str, torch.Tensor] = {}
        for file in sorted(path.rglob("*")):
            name = file.relative_to(path)
            if file.suffix == ".safetensors":
                tensors |= load_file(file)
            elif file.is_file() and file.name != f"{WEIGHTS}.index.json":
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, out / name)
        context.report(None, "unpacking")
        save_file(self.whole(tensors), out / WEIGHTS, metadata={"format": "pt"})
        config = json.loads((out / "config.json").read_text(encoding="utf-8"))
        del config["quantization_config"]
        config |= {key: "float32" for key in ("dtype", "torch_dtype") if key in config}
        (out / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True), encoding="utf-8")
        size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
        return spec.model_copy(update={"bytes": size})

    def whole(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """All weights in float32, under the names that they had before they were packed.

        Raises:
            CheckpointError: a packed weight lacks a part, or a part belongs to none.
        """
        import torch

        rest = dict(tensors)
        found = self._bitsandbytes(rest) if self.method == "bitsandbytes" else self._words(rest)
        left = next((name for name in rest if name.rpartition(".")[2] in COMPANIONS), None)
        if left is not None:
            raise CheckpointError(f"The quantized weights can't be read: {left} belongs to no packed weight.",
                                  hint="get the checkpoint again, or take the one that it was made from")
        return found | {name: value.to(torch.float32) if value.is_floating_point() else value for name, value in rest.items()}

    def _words(self, rest: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The weights of GPTQ or AWQ; what they were made of is taken out of `rest`."""
        found = {}
        needed = _gptq.PARTS if self.method == "gptq" else _awq.PARTS
        for name in [name for name in rest if name.endswith(".qweight")]:
            module = name.removesuffix(".qweight")
            parts = {part: rest.pop(f"{module}.{part}") for part in (*needed, "g_idx") if f"{module}.{part}" in rest}
            _require(module, needed, parts)
            try:
                found[f"{module}.weight"] = gptq_weight(parts, self.bits, self.zero_offset) if self.method == "gptq" else awq_weight(parts)
            except (ValueError, RuntimeError, IndexError) as exc:
                shapes = ", ".join(f"{part} {list(value.shape)}" for part, value in parts.items())
                raise CheckpointError(f"The quantized weights of {module} do not fit each other.", why=shapes) from exc
        return found

    def _bitsandbytes(self, rest: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The weights of bitsandbytes; what they were made of is taken out of `rest`."""
        found = {}
        for module in [name.removesuffix(".SCB") for name in rest if name.endswith(".SCB")]:
            form = rest.pop(f"{module}.weight_format", None)
            if form is not None and int(form) != ROW_ORDER:
                raise CheckpointError(f"The quantized weight of {module} can't be read.", why="it is stored in the tiles of one sort of GPU",
                                      hint="save the checkpoint again with a newer bitsandbytes, or take the one that it was made from")
            parts = {part: rest.pop(f"{module}.{part}") for part in ("weight", "SCB") if f"{module}.{part}" in rest}
            _require(module, ("weight",), parts)
            found[f"{module}.weight"] = int8_weight(parts["weight"], parts["SCB"])
        for name in [name.partition(f".{STATE}")[0] for name in rest if f".{STATE}" in name]:
            parts = {key.removeprefix(f"{name}."): rest.pop(key) for key in list(rest) if key.startswith(f"{name}.")}
            _require(name, ("absmax", "quant_map"), parts)
            if name not in rest:
                raise CheckpointError(f"The quantized weights lack {name}.", hint="get the whole checkpoint")
            found[name] = four_bit_weight(rest.pop(name), parts)
        return found


def _require(module: str, needed: tuple[str, ...], parts: Mapping[str, torch.Tensor]) -> None:
    missing = [part for part in needed if part not in parts]
    if missing:
        raise CheckpointError(f"The quantized weights lack {module}.{missing[0]}.", hint="get the whole checkpoint")
