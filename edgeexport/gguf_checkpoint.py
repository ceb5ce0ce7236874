"""A GGUF file as a checkpoint: one file holds what elsewhere are config.json, weights and tokenizer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from edgeexport.checkpoint import Checkpoint
from edgeexport.errors import CheckpointError
from edgeexport.gguf_file import EXACT, TEMPLATE, TOKENS, WINDOW, GgufHeader, read_gguf_header

SUFFIX = ".gguf"
# general.architecture → Transformers' model_type and class. Source: modeling_gguf_pytorch_utils of Transformers 5.23, which reads the weights.
ARCHITECTURES = {
    "bloom": ("bloom", "BloomForCausalLM"),
    "gemma2": ("gemma2", "Gemma2ForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
    "gpt2": ("gpt2", "GPT2LMHeadModel"),
    "llama": ("llama", "LlamaForCausalLM"),
    "phi3": ("phi3", "Phi3ForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
}
# Tensors by which positions are scaled for long texts. Transformers leaves them out, and would read every text wrongly, without an error.
SCALED_POSITIONS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
# The same as numbers, of which 0 and 1 change nothing; the second was written by older converters. Source: llama.cpp's load_hparams.
SCALES = ("rope.scaling.factor", "rope.scale_linear")
# Families whose attention may see a window; another that has one is right for texts as long as that.
WITH_WINDOW = frozenset({"gemma2", "gemma3", "phi3", "qwen2", "qwen3"})
# Gemma's attention is scaled by a number that is not in the file: the size of a head, but in the largest models. Source: llama.cpp's models/gemma2.
GEMMA_HEAD = 256


@dataclass(frozen=True)
class GgufCheckpoint(Checkpoint):
    """A GGUF file; its tensors are turned into float32 before anything else sees them.

    Attributes:
        header: what the file says of itself.
    """

    header: GgufHeader = field(default_factory=lambda: GgufHeader({}, {}))

    @property
    def loader(self) -> str:
        """The step that takes such a source in."""
        return "load_gguf"

    @cached_property
    def config(self) -> dict[str, Any]:
        """What a `config.json` would say, as far as a plan asks for it.

        Raises:
            CheckpointError: an architecture that is not read from such files, or positions that would be read wrongly.
        """
        metadata, form = self.header.metadata, str(self.header.metadata.get("general.architecture"))
        if form not in ARCHITECTURES:
            raise CheckpointError(f"{self.name}: the architecture '{form}' is not read from GGUF files.",
                                  why=f"those are: {', '.join(ARCHITECTURES)}", hint="name the original checkpoint as source")
        scaled = next((name for name in SCALED_POSITIONS if name in self.header.tensors), None)
        stated = {key: value for key in ("rope.scaling.type", *SCALES) if (value := metadata.get(f"{form}.{key}", "none")) not in ("none", 0, 1)}
        if scaled is not None or stated:
            raise CheckpointError(f"{self.name} scales its positions for long texts, which is not read from GGUF files.",
                                  why=f"it has {scaled or ', '.join(f'{key} = {value}' for key, value in stated.items())}",
                                  hint="name the original checkpoint as source")
        if form.startswith("gemma") and metadata.get(f"{form}.attention.key_length", GEMMA_HEAD) != GEMMA_HEAD:
            raise CheckpointError(f"{self.name} does not say how its attention is scaled.",
                                  why=f"with heads of {metadata[f'{form}.attention.key_length']} numbers it is in another way than usual",
                                  hint="name the original checkpoint as source")
        model_type, name = ARCHITECTURES[form]
        keys = {"max_position_embeddings": "context_length", "n_positions": "context_length", "num_hidden_layers": "block_count",
                "hidden_size": "embedding_length"}
        found = {key: metadata.get(f"{form}.{there}") for key, there in keys.items()}
        window = metadata.get(f"{form}.{WINDOW}")
        if window and form not in WITH_WINDOW and found["max_position_embeddings"]:
            found["max_position_embeddings"] = min(window, found["max_position_embeddings"])
        return {"model_type": model_type, "architectures": [name], "vocab_size": len(metadata.get(TOKENS) or ()),
                **{key: value for key, value in found.items() if value is not None}}

    def json(self, name: str, *, required: bool = False) -> dict[str, Any]:
        """What a JSON file beside a checkpoint would say, as far as a plan asks for it."""
        template = self.header.metadata.get(TEMPLATE)
        return {"chat_template": template} if name == "tokenizer_config.json" and template else {}

    @property
    def own_code(self) -> tuple[str, ...]:
        """Such a file brings none."""
        return ()

    @property
    def weights(self) -> dict[str, int]:
        """Name → number of weights that are stored, or stand packed."""
        return {name: tensor.count for name, tensor in self.header.tensors.items()}

    @property
    def lossy(self) -> str | None:
        """The form of most weights, where that is not floating point."""
        counts: dict[str, int] = {}
        for tensor in self.header.tensors.values():
            counts[tensor.type] = counts.get(tensor.type, 0) + tensor.count
        most = max(counts, key=lambda form: counts[form], default="F32")
        return None if most in EXACT else f"GGUF {most}"

    @property
    def licence(self) -> str | None:
        """The licence that the metadata state."""
        stated = self.header.metadata.get("general.license")
        return str(stated) if stated else None

    def require_tokenizer(self) -> None:
        """Raises CheckpointError where there is no tokenizer."""
        if not self.header.metadata.get(TOKENS):
            raise CheckpointError(f"{self.name} has no tokenizer.", why=f"{TOKENS} is not there",
                                  hint="convert the original checkpoint again, with its tokenizer")


def find_gguf(path: Path, files: Mapping[str, int] | Collection[str], name: str) -> Path | None:
    """The GGUF file that a path means: the path itself, or the only one in a directory without other weights; None where there is none.

    Raises:
        CheckpointError: there are several.
    """
    if path.suffix == SUFFIX and path.is_file():
        return path
    found = sorted(file for file in files if file.endswith(SUFFIX))
    if not found or any(file.endswith(".safetensors") for file in files):
        return None
    if len(found) > 1:
        raise CheckpointError(f"{name} has {len(found)} GGUF files.", why=", ".join(found[:4]), hint=f"name one of them: {name}/{found[0]}")
    return path / found[0]


def read_gguf(path: Path, name: str) -> GgufCheckpoint:
    """The checkpoint in a GGUF file.

    Args:
        path: the file.
        name: how messages call it.

    Raises:
        CheckpointError: it is no such file, damaged, cut off, one of several, or holds what can't be read.
    """
    header = read_gguf_header(path)
    parts = header.metadata.get("split.count", 1)
    if parts > 1:
        raise CheckpointError(f"{name} is one of {parts} parts.", why="split.count",
                              hint="join them: llama-gguf-split --merge FIRST-PART JOINED.gguf")
    return GgufCheckpoint(name, path.parent, {path.name: path.stat().st_size}, {}, header=header)
