"""A checkpoint as one PyTorch module with the named inputs and outputs of its task: what both exporters trace."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from edgeexport.artifact import Task
from edgeexport.errors import CheckpointError
from edgeexport.session.tasks import output_names
from edgeexport.session.text import TextSpec, read_text_spec

from ._own_code import brings_code, brings_model
from ._pruned_model import EMBEDDING_RANK, PRUNED_SHAPES, as_written
from ._smoothing import smooth

if TYPE_CHECKING:
    import numpy as np
    import torch
    from transformers import PreTrainedModel

# Added to the attention scores of padding. Its softmax weight is 0 in float32, and unlike the smallest float32 it stays finite
# when it is added to a score, or held in 16 bits. Source: the original BERT (google-research/bert, modeling.py, attention_layer); the
# architectures here were trained with it.
MASKED = -10_000.0


def load_model(directory: Path, task: Task, attention: str | None = None) -> PreTrainedModel:
    """The checkpoint's model for a task, in float32 and evaluation mode.

    Args:
        directory: a checkpoint artifact.
        task: decides the model class.
        attention: Transformers' attention implementation; None is the one it takes for this architecture.

    Raises:
        CheckpointError: Transformers can't load it, or weights of the head are missing.
    """
    import torch
    import transformers
    from optimum.exporters.tasks import TasksManager

    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    model_class = TasksManager.get_model_class_for_task(TasksManager.map_from_synonym(task.value), framework="pt")
    try:
        written = read_config(directory)
        if PRUNED_SHAPES in written or EMBEDDING_RANK in written:
            config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True)
            model_class = as_written(model_class._model_mapping[type(config)], written)
        # Where a bare encoder has no pooler, Transformers makes a random one, which must not differ from build to build.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, info = model_class.from_pretrained(directory, dtype=torch.float32, attn_implementation=attention, local_files_only=True,
                                                      trust_remote_code=brings_code(directory), output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, AttributeError, ImportError) as exc:
        why = "the shapes of its weights are not those of config.json" if "mismatched_sizes" in str(exc) else str(exc).splitlines()[0]
        raise CheckpointError("Transformers cannot load the checkpoint.", why=why) from exc
    # A bare encoder has a pooler whose output is not used; a classifier that has one answers through it.
    bare = task in {Task.FEATURE_EXTRACTION, Task.SENTENCE_SIMILARITY}
    missing = [name for name in info["missing_keys"] if not bare or "pooler" not in name]
    if missing:
        raise CheckpointError("Weights are missing from the checkpoint.", why=f"{', '.join(sorted(missing)[:4])}"
                              + (f" and {len(missing) - 4} more" if len(missing) > 4 else ""),
                              hint="the model would answer from random weights; get the whole checkpoint")
    return model.eval()  # type: ignore[no-any-return]


def read_text(directory: Path) -> TextSpec:
    """The text spec of a checkpoint artifact."""
    return read_text_spec(directory / "text.json")


def read_config(directory: Path) -> dict[str, Any]:
    """The `config.json` of a checkpoint artifact."""
    config: dict[str, Any] = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    return config


def task_module(directory: Path, task: Task, outliers: Mapping[str, np.ndarray] = MappingProxyType({}), smoothing: float = 0.0) -> torch.nn.Module:
    """The module to export: inputs as in the text spec, outputs as in :mod:`edgeexport.session.tasks`.

    Args:
        directory: a checkpoint artifact.
        task: the task.
        outliers: of the inputs of linear layers, as :func:`smooth` takes them.
        smoothing: how much of them moves into the weights, from 0 to 1.
    """
    import torch

    spec = read_text(directory)
    model = load_model(directory, task, attention="eager")
    smooth(model, outliers, smoothing)
    neighbours = joins_neighbours(model)
    own_code = brings_model(directory)

    class TaskModule(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor,
                    token_type_ids: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
            """The task's outputs by name, for integer inputs [batch, seq]."""
            # A ready-made additive mask keeps Transformers from indexing one together, which no older TFLite runtime can run. Code that
            # is not Transformers' need not know that form.
            bias = attention_mask if own_code else (1.0 - attention_mask[:, None, None, :].to(torch.float32)) * MASKED
            extra = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
            if neighbours:
                found = self.model(inputs_embeds=without_padding(self.model, input_ids, attention_mask), attention_mask=bias, **extra)
            else:
                found = self.model(input_ids=input_ids, attention_mask=bias, **extra)
            return named_outputs(found, attention_mask, task, spec)

    return TaskModule().eval()


def joins_neighbours(model: PreTrainedModel) -> bool:
    """Whether the model joins each token's embedding with those of the tokens before and after it, as MobileBERT does."""
    return bool(getattr(model.config, "trigram_input", False))


def without_padding(model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """The embeddings float32 [batch, seq, width] for a model that joins neighbours: where a text ends it wants zeros, and not padding's vector."""
    import torch

    real = attention_mask[:, :, None].to(torch.float32)
    return model.get_input_embeddings()(input_ids) * real  # type: ignore[no-any-return]


def named_outputs(found: Any, mask: torch.Tensor, task: Task, spec: TextSpec) -> dict[str, torch.Tensor]:
    """What Transformers' model gives as the outputs that :mod:`edgeexport.session.tasks` names.

    Args:
        found: the model's output.
        mask: integers [batch, seq], 1 for tokens and 0 for padding.
        task: decides the names.
        spec: decides pooling and normalization.
    """
    names = output_names(task.value, spec.pooling)
    if task not in {Task.FEATURE_EXTRACTION, Task.SENTENCE_SIMILARITY}:
        return {name: found[name] for name in names}
    hidden = found.last_hidden_state
    vector = hidden if names == ("token_embeddings",) else pool(hidden, mask, spec.pooling)
    return {names[0]: normalized(vector) if spec.normalize else vector}


def pool(hidden: torch.Tensor, mask: torch.Tensor, pooling: str | None) -> torch.Tensor:
    """One vector per text: float32 [batch, hidden] from float32 [batch, seq, hidden] and an integer mask [batch, seq].

    Source: the Pooling module of sentence-transformers, whose modes these are.
    """
    import torch

    if pooling == "cls":
        return hidden[:, 0]
    keep = mask[:, :, None].to(hidden.dtype)
    if pooling == "max":
        # Padding repeats the first token: exact whatever the values are, and no large constant stands in the way of quantization.
        return (hidden * keep + hidden[:, :1] * (1.0 - keep)).max(dim=1).values
    if pooling == "lasttoken":
        # The last real token is where the mask, counted from the right, starts.
        following = torch.cat([mask[:, 1:], torch.zeros_like(mask[:, :1])], dim=1)
        last = keep * (1.0 - following[:, :, None].to(hidden.dtype))
        return (hidden * last).sum(dim=1)
    total = keep.sum(dim=1).clamp(min=1.0)
    return (hidden * keep).sum(dim=1) / (torch.sqrt(total) if pooling == "mean_sqrt_len" else total)


def normalized(vector: torch.Tensor) -> torch.Tensor:
    """The vectors scaled to length 1 along the last axis."""
    import torch

    return torch.nn.functional.normalize(vector, dim=-1)
