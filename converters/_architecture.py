"""What each family of models is made of, declared once for every step that takes something out of a model: which tensors share a channel.

A *channel* is one number that some modules make and others read, such as a neuron between the two halves of a feed-forward network. It can
only be taken out of all of them at once. Paths of modules are relative: a group's modules to its scope, scopes to Transformers' base model,
and the vocabulary's parameters to the whole model with its head.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from edgeexport.architectures import DECODERS
from edgeexport.artifact import Spec
from edgeexport.step import Refusal

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Channels:
    """Channels that come again in each layer.

    Attributes:
        scope: regular expression of the modules that have such channels.
        made_by: linear modules below the scope whose outputs are the channels. Where one has fewer outputs than are read, as keys and values that
            several queries share, those of a head still lie side by side.
        read_by: linear module below the scope whose inputs are the channels.
        stacks: how many lists of channels the outputs are, one behind the other.
    """

    scope: str
    made_by: tuple[str, ...]
    read_by: str
    stacks: int = 1

    def places(self, model: PreTrainedModel) -> Iterator[torch.nn.Module]:
        """The modules of a model that have such channels, in the order of its layers."""
        for name, module in model.base_model.named_modules():
            if re.fullmatch(self.scope, name):
                yield module


@dataclass(frozen=True)
class Addition:
    """Where something is added to the hidden states.

    Attributes:
        scope: regular expression of the modules in which it happens.
        made_by: linear module below the scope whose outputs are added.
        summed_in: module below the scope that normalizes the sum.
    """

    scope: str
    made_by: str
    summed_in: str

    def places(self, model: PreTrainedModel) -> Iterator[tuple[torch.nn.Linear, torch.nn.Module]]:
        """The two modules of each addition of a model."""
        for name, module in model.base_model.named_modules():
            if re.fullmatch(self.scope, name):
                yield linear(module, self.made_by), module.get_submodule(self.summed_in)


@dataclass(frozen=True)
class Handover:
    """Channels that are only made to be read by linear modules, so that whoever makes them may scale each, and its readers take that back.

    Attributes:
        scope: regular expression of the modules in which it happens.
        made_by: module below the scope that makes them: a normalization; or a linear one, of which they are the last outputs, and nothing but
            a product with other numbers lies between them and the readers.
        read_by: linear modules below the scope.
    """

    scope: str
    made_by: str
    read_by: tuple[str, ...]

    def places(self, model: PreTrainedModel) -> Iterator[tuple[torch.nn.Module, list[torch.nn.Linear]]]:
        """The module that makes and those that read, of each place in a model."""
        for name, module in model.base_model.named_modules():
            if re.fullmatch(self.scope, name):
                yield module.get_submodule(self.made_by), [linear(module, path) for path in self.read_by]


@dataclass(frozen=True)
class Architecture:
    """A family of models.

    Attributes:
        layers: path of the list of layers; None where the same layers are applied again and again, and only how often can be lowered.
        heads: the channels of attention; those of a head lie side by side, and where queries share a key, those of all of them. None where heads
            share more than the channels, or their number is fixed by the width of the hidden states.
        neurons: the channels inside feed-forward networks.
        additions: to the hidden states, where the sum is normalized; the last one in a layer makes what the next layer reads.
        vocabulary: parameters with an entry for each token (regular expression of the name) → the dimension that counts them; a model has those
            of its own head.
        neurons_key: where all layers are kept equally wide, so that the pruned model is an ordinary checkpoint: what config.json calls their number.
        handovers: where channels may be scaled for free.
        scale_of_norms: what a normalization multiplies by where its weight is 0.
    """

    layers: str | None
    heads: Channels | None
    neurons: Channels
    additions: tuple[Addition, ...]
    vocabulary: dict[str, int]
    neurons_key: str | None = None
    handovers: tuple[Handover, ...] = ()
    scale_of_norms: float = 0.0


_QKV = ("attention.self.query", "attention.self.key", "attention.self.value")
_BERT = Architecture(
    layers="encoder.layer",
    heads=Channels(r"encoder\.layer\.\d+", made_by=_QKV, read_by="attention.output.dense"),
    neurons=Channels(r"encoder\.layer\.\d+", made_by=("intermediate.dense",), read_by="output.dense"),
    additions=(Addition(r"encoder\.layer\.\d+\.(attention\.)?output", "dense", "LayerNorm"),),
    vocabulary={r"(.*\.)?word_embeddings\.weight": 0, r"(cls\.predictions|lm_head)\.(decoder\.(weight|bias)|bias)": 0})

# Source: modeling_*.py of Transformers 5.23.
ARCHITECTURES = {
    "bert": _BERT,
    "roberta": _BERT,
    "camembert": _BERT,
    "xlm-roberta": _BERT,
    "electra": Architecture(_BERT.layers, _BERT.heads, _BERT.neurons, _BERT.additions,
                            {r"(.*\.)?word_embeddings\.weight": 0, r"generator_lm_head\.(weight|bias)": 0}),
    "distilbert": Architecture(
        layers="transformer.layer",
        heads=Channels(r"transformer\.layer\.\d+", made_by=("attention.q_lin", "attention.k_lin", "attention.v_lin"), read_by="attention.out_lin"),
        neurons=Channels(r"transformer\.layer\.\d+", made_by=("ffn.lin1",), read_by="ffn.lin2"),
        additions=(Addition(r"transformer\.layer\.\d+", "attention.out_lin", "sa_layer_norm"),
                   Addition(r"transformer\.layer\.\d+", "ffn.lin2", "output_layer_norm")),
        vocabulary={r"(.*\.)?word_embeddings\.weight": 0, r"vocab_projector\.(weight|bias)": 0}),
    "albert": Architecture(
        layers=None,
        heads=Channels(r"encoder\.albert_layer_groups\.\d+\.albert_layers\.\d+",
                       made_by=("attention.query", "attention.key", "attention.value"), read_by="attention.dense"),
        neurons=Channels(r"encoder\.albert_layer_groups\.\d+\.albert_layers\.\d+", made_by=("ffn",), read_by="ffn_output"),
        additions=(Addition(r"encoder\.albert_layer_groups\.\d+\.albert_layers\.\d+\.attention", "dense", "LayerNorm"),
                   Addition(r"encoder\.albert_layer_groups\.\d+\.albert_layers\.\d+", "ffn_output", "full_layer_layer_norm")),
        vocabulary={r"(.*\.)?word_embeddings\.weight": 0, r"predictions\.(decoder\.(weight|bias)|bias)": 0}),
    # Several feed-forward networks in a layer. The head that fills in tokens makes the wide part of its table from a second one, which counts
    # tokens in its second dimension.
    "mobilebert": Architecture(
        layers="encoder.layer", heads=_BERT.heads,
        neurons=Channels(r"encoder\.layer\.\d+(\.ffn\.\d+)?", made_by=("intermediate.dense",), read_by="output.dense"),
        # All but the last in a narrow copy of the hidden states.
        additions=(Addition(r"encoder\.layer\.\d+\.((attention|ffn\.\d+)\.)?output(\.bottleneck)?", "dense", "LayerNorm"),),
        vocabulary={r"(.*\.)?word_embeddings\.weight": 0, r"cls\.predictions\.(decoder\.(weight|bias)|bias)": 0,
                    r"cls\.predictions\.dense\.weight": 1}),
    # All layers share one table of position biases with an entry for each head.
    "mpnet": Architecture(_BERT.layers, None, _BERT.neurons,
                          (Addition(r"encoder\.layer\.\d+\.attention", "attn.o", "LayerNorm"),
                           Addition(r"encoder\.layer\.\d+\.output", "dense", "LayerNorm")), _BERT.vocabulary),
}

# Decoders. Tools for language models, onnxruntime-genai's builder among them, know one width for all layers.
_TABLES = {r"(.*\.)?(embed_tokens|wte|embed_in|word_embeddings)\.weight": 0, r"(lm_head|embed_out)\.(weight|bias)": 0}
_LAYER = r"layers\.\d+"
_GATED = Architecture(
    layers="layers", heads=Channels(rf"{_LAYER}\.self_attn", made_by=("q_proj", "k_proj", "v_proj"), read_by="o_proj"),
    neurons=Channels(rf"{_LAYER}\.mlp", made_by=("gate_proj", "up_proj"), read_by="down_proj"),
    additions=(), vocabulary=_TABLES, neurons_key="intermediate_size",
    handovers=(Handover(_LAYER, "input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
               Handover(_LAYER, "post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
               Handover(_LAYER, "mlp.up_proj", ("mlp.down_proj",))))
# They normalize what attention and feed-forward networks give, too.
_GEMMA = replace(_GATED, scale_of_norms=1.0, handovers=(
    _GATED.handovers[0], Handover(_LAYER, "pre_feedforward_layernorm", ("mlp.gate_proj", "mlp.up_proj")), _GATED.handovers[2]))
_FOUR_TIMES = Channels(r"(layers|h)\.\d+\.mlp", made_by=("dense_h_to_4h",), read_by="dense_4h_to_h")
ARCHITECTURES |= {
    "llama": _GATED,
    "qwen2": _GATED,
    "qwen3": _GATED,
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "phi3": Architecture(
        "layers", None, Channels(rf"{_LAYER}\.mlp", made_by=("gate_up_proj",), read_by="down_proj", stacks=2), (), _TABLES, "intermediate_size",
        (Handover(_LAYER, "input_layernorm", ("self_attn.qkv_proj",)), Handover(_LAYER, "post_attention_layernorm", ("mlp.gate_up_proj",)),
         Handover(_LAYER, "mlp.gate_up_proj", ("mlp.down_proj",)))),
    "gpt2": Architecture(
        "h", None, Channels(r"h\.\d+\.mlp", made_by=("c_fc",), read_by="c_proj"), (), _TABLES, "n_inner",
        (Handover(r"h\.\d+", "ln_1", ("attn.c_attn",)), Handover(r"h\.\d+", "ln_2", ("mlp.c_fc",)))),
    "gpt_neox": Architecture(
        "layers", None, _FOUR_TIMES, (), _TABLES, "intermediate_size",
        (Handover(_LAYER, "input_layernorm", ("attention.query_key_value",)), Handover(_LAYER, "post_attention_layernorm", ("mlp.dense_h_to_4h",)))),
    "opt": Architecture(
        "decoder.layers", None, Channels(r"decoder\.layers\.\d+", made_by=("fc1",), read_by="fc2"), (), _TABLES, "ffn_dim",
        (Handover(r"decoder\.layers\.\d+", "self_attn_layer_norm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
         Handover(r"decoder\.layers\.\d+", "final_layer_norm", ("fc1",)))),
    # Its configuration has no word for the number of neurons, which is four times that of the hidden states.
    "bloom": Architecture(
        "h", None, _FOUR_TIMES, (), _TABLES, None,
        (Handover(r"h\.\d+", "input_layernorm", ("self_attention.query_key_value",)),
         Handover(r"h\.\d+", "post_attention_layernorm", ("mlp.dense_h_to_4h",)))),
}


def linear(scope: torch.nn.Module, path: str) -> torch.nn.Linear:
    """The linear module at a path below a scope; GPT-2's Conv1D is one with its matrix the other way round, see :func:`matrix`."""
    return cast("torch.nn.Linear", scope.get_submodule(path))


def matrix(module: torch.nn.Module) -> torch.Tensor:
    """The weights of a linear module, float32 [outputs, inputs]."""
    import torch

    weight = cast("torch.Tensor", module.weight)
    return weight if isinstance(module, torch.nn.Linear) else weight.T


def narrow(module: torch.nn.Module, dimension: int, kept: torch.Tensor) -> None:
    """Leave a linear module some of its outputs (dimension 0) or inputs (1), int64 [kept], in place."""
    import torch

    weight = matrix(module).detach().index_select(dimension, kept)
    is_linear = isinstance(module, torch.nn.Linear)
    module.weight = torch.nn.Parameter((weight if is_linear else weight.T).contiguous())
    bias = cast("torch.Tensor | None", module.bias)
    if dimension == 0 and bias is not None:
        module.bias = torch.nn.Parameter(bias.detach()[kept].clone())
    names = ("out_features", "in_features") if is_linear else ("nf", "nx")
    setattr(module, names[dimension], len(kept))


class Layers:
    """The layers of a model, of which some can be taken out."""

    def __init__(self, model: PreTrainedModel) -> None:
        """Of a model whose architecture is described."""
        self._model = model
        self._path = ARCHITECTURES[model.config.model_type].layers
        # In which of them attention sees everything, and in which a window.
        self._types: list[str] = list(getattr(model.config, "layer_types", None) or [])
        self._layers: list[Any] = list(self._holder()) if self._path else [None] * model.config.num_hidden_layers

    @property
    def differ(self) -> bool:
        """Whether it matters which are kept, and not only how many."""
        return self._path is not None

    def __len__(self) -> int:
        """How many there were at first."""
        return len(self._layers)

    def keep(self, numbers: Iterable[int]) -> None:
        """Have the model run only these, counted from 0 among those that there were at first; in place."""
        import torch

        numbers = list(numbers)
        if self._types:
            self._model.config.layer_types = [self._types[number] for number in numbers]
        kept = [self._layers[number] for number in numbers]
        if self._path is not None:
            owner, _, name = self._path.rpartition(".")
            setattr(self._model.base_model.get_submodule(owner), name, torch.nn.ModuleList(kept))
        self._model.config.num_hidden_layers = len(kept)

    def now(self) -> list[torch.nn.Module]:
        """Those that run; none where they are one."""
        return list(self._holder()) if self.differ else []

    def _holder(self) -> Iterable[torch.nn.Module]:
        return cast("torch.nn.ModuleList", self._model.base_model.get_submodule(str(self._path)))


def head_size(model: PreTrainedModel) -> int:
    """Channels of an attention head; where queries share a key, of all heads that share one."""
    config = model.config
    if config.model_type in DECODERS:
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return cast("int", width * config.num_attention_heads // (getattr(config, "num_key_value_heads", None) or config.num_attention_heads))
    sizes = {cast("int", module.attention_head_size) for module in model.modules() if hasattr(module, "attention_head_size")}
    (size,) = sizes
    return size


def no_description(checkpoint: Spec) -> Refusal:
    """Why a checkpoint can't be made smaller."""
    return Refusal(reason=f"which tensors of {checkpoint.architecture} share a channel is not described",
                   hint=f"described are {', '.join(sorted(ARCHITECTURES))}")
