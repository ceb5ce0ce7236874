"""Models of which something was taken out, written and read again.

Transformers makes a model by its configuration, which has one width for all layers. What is narrower is written beside it, as
``pruned_shapes``: the names of the tensors and their shapes. A table of token vectors in two factors is written as ``embedding_rank``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeexport.artifact import Spec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

PRUNED_SHAPES = "pruned_shapes"
EMBEDDING_RANK = "embedding_rank"
# Where a class whose models have other shapes keeps the one that it was made of.
PLAIN_CLASS = "plain_class"
# What Transformers writes; the rest of a checkpoint artifact (tokenizer, text spec, licence) is carried over.
WRITTEN = ("config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json")


def save_model(model: PreTrainedModel, source: Path, out: Path) -> None:
    """Write a checkpoint artifact: the model, and beside it the other files of the one that it was made from.

    Args:
        model: the changed model.
        source: the checkpoint artifact that it was made from.
        out: an empty directory.
    """
    import torch

    for path in sorted(source.rglob("*")):
        name = path.relative_to(source)
        if path.is_file() and path.suffix != ".safetensors" and str(name) not in WRITTEN:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, out / name)
    with torch.device("meta"):
        plain = getattr(type(model), PLAIN_CLASS, type(model))(model.config)
        rank = token_table(model).embedding_dim if is_factorized(model) else None
        if rank is not None:
            factorize(plain, rank)
    usual = {name: parameter.shape for name, parameter in plain.named_parameters()}
    pruned = {name: list(parameter.shape) for name, parameter in model.named_parameters() if parameter.shape != usual[name]}
    model.save_pretrained(out)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    for key, value in ((PRUNED_SHAPES, pruned), (EMBEDDING_RANK, rank)):
        config.pop(key, None)
        if value:
            config[key] = value
    (out / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True), encoding="utf-8")


def as_written(model_class: type[PreTrainedModel], config: Mapping[str, Any]) -> type[PreTrainedModel]:
    """The class whose models have what :func:`save_model` wrote into the configuration, so that Transformers loads them like any other."""
    shapes, rank = config.get(PRUNED_SHAPES, {}), config.get(EMBEDDING_RANK)
    if not shapes and rank is None:
        return model_class

    def make(self: Any, config: Any, *inputs: Any, **settings: Any) -> None:
        """Make the usual model, and give it the other shapes."""
        model_class.__init__(self, config, *inputs, **settings)
        if rank is not None:
            factorize(self, rank)
        for name, shape in shapes.items():
            path, _, kind = name.rpartition(".")
            resize(self.get_submodule(path), kind, tuple(shape))

    # Its name goes into config.json, and means the class that everybody has.
    return type(model_class.__name__, (model_class,), {"__init__": make, "__module__": model_class.__module__, PLAIN_CLASS: model_class})


def factorize(model: PreTrainedModel, rank: int) -> tuple[torch.nn.Embedding, torch.nn.Linear]:
    """Put a narrower table and a linear layer, both without values yet, in the place of a model's table of token vectors; returns the two."""
    import torch

    table = token_table(model)
    factors = torch.nn.Embedding(table.num_embeddings, rank, padding_idx=table.padding_idx), torch.nn.Linear(rank, table.embedding_dim)
    model.set_input_embeddings(torch.nn.Sequential(*factors))
    return factors


def is_factorized(model: PreTrainedModel) -> bool:
    """Whether the table of token vectors is in two factors."""
    import torch

    return isinstance(model.get_input_embeddings(), torch.nn.Sequential)


def token_table(model: PreTrainedModel) -> torch.nn.Embedding:
    """The table that tokens are looked up in."""
    found: Any = model.get_input_embeddings()
    table: torch.nn.Embedding = found[0] if is_factorized(model) else found
    return table


def resize(module: torch.nn.Module, kind: str, shape: tuple[int, ...]) -> None:
    """Give a module's ``weight`` or ``bias`` another shape; its values are lost."""
    import torch

    old = getattr(module, kind)
    setattr(module, kind, torch.nn.Parameter(old.new_empty(shape)))
    if isinstance(module, torch.nn.Linear) and kind == "weight":
        module.out_features, module.in_features = shape


def pruned_spec(model: PreTrainedModel, spec: Spec, out: Path, **facts: Any) -> Spec:
    """The spec of a checkpoint that was written to `out`, with what its weights count now."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return spec.model_copy(update={"parameters": parameters, "bytes": size, "facts": spec.facts | facts})
