"""What each family of encoders is made of, declared once for every step that takes something out of a model: which tensors share a channel.

A *channel* is one number that some modules make and others read, such as a neuron between the two halves of a feed-forward network. It can
only be taken out of all of them at once. Paths of modules are relative: a group's modules to its scope, scopes to Transformers' base model,
and the vocabulary's parameters to the whole model with its head.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Channels:
    """Channels that come again in each layer.

    Attributes:
        scope: regular expression of the modules that have such channels.
        made_by: linear modules below the scope whose outputs are the channels.
        read_by: linear modules below the scope whose inputs are the channels.
    """

    scope: str
    made_by: tuple[str, ...]
    read_by: tuple[str, ...]

    def places(self, model: PreTrainedModel) -> Iterator[torch.nn.Module]:
        """The modules of a model that have such channels, in the order of its layers."""
        for name, module in model.base_model.named_modules():
            if re.fullmatch(self.scope, name):
                yield module


@dataclass(frozen=True)
class Architecture:
    """A family of encoders.

    Attributes:
        layers: path of the list of layers; None where one layer is applied several times, and only its count can be lowered.
        heads: the channels of attention; those of a head lie side by side. None where heads share more than the channels.
        neurons: the channels inside feed-forward networks.
        vocabulary: parameters with an entry for each token (regular expression of the name) → the dimension that counts them; a model has those
            of its own head.
    """

    layers: str | None
    heads: Channels | None
    neurons: Channels
    vocabulary: dict[str, int]


_QKV = ("attention.self.query", "attention.self.key", "attention.self.value")
_BERT = Architecture(
    layers="encoder.layer",
    heads=Channels(r"encoder\.layer\.\d+", made_by=_QKV, read_by=("attention.output.dense",)),
    neurons=Channels(r"encoder\.layer\.\d+", made_by=("intermediate.dense",), read_by=("output.dense",)),
    vocabulary={r"(.*\.)?word_embeddings\.weight": 0, r"(cls\.predictions|lm_head)\.(decoder\.(weight|bias)|bias)": 0})

# Source: modeling_*.py of Transformers 5.23.
ARCHITECTURES = {
    "bert": _BERT,
    "roberta": _BERT,
    "camembert": _BERT,
    "xlm-roberta": _BERT,
    "electra": Architecture(_BERT.layers, _BERT.heads, _BERT.neurons,
                            {r"(.*\.)?word_embeddings\.weight": 0, r"generator_lm_head\.(weight|bias)": 0}),
    "distilbert": Architecture(
        layers="transformer.layer",
        heads=Channels(r"transformer\.layer\.\d+", made_by=("attention.q_lin", "attention.k_lin", "attention.v_lin"), read_by=("attention.out_lin",)),
        neurons=Channels(r"transformer\.layer\.\d+", made_by=("ffn.lin1",), read_by=("ffn.lin2",)),
        vocabulary={r"(.*\.)?word_embeddings\.weight": 0, r"vocab_projector\.(weight|bias)": 0}),
    "albert": Architecture(
        layers=None,
        heads=Channels(r"encoder\.albert_layer_groups\.\d+\.albert_layers\.\d+",
                       made_by=("attention.query", "attention.key", "attention.value"), read_by=("attention.dense",)),
        neurons=Channels(r"encoder\.albert_layer_groups\.\d+\.albert_layers\.\d+", made_by=("ffn",), read_by=("ffn_output",)),
        vocabulary={r"(.*\.)?word_embeddings\.weight": 0, r"predictions\.(decoder\.(weight|bias)|bias)": 0}),
    # Several feed-forward networks in a layer. The head that fills in tokens makes the wide part of its table from a second one, which counts
    # tokens in its second dimension.
    "mobilebert": Architecture(
        layers="encoder.layer", heads=_BERT.heads,
        neurons=Channels(r"encoder\.layer\.\d+(\.ffn\.\d+)?", made_by=("intermediate.dense",), read_by=("output.dense",)),
        vocabulary={r"(.*\.)?word_embeddings\.weight": 0, r"cls\.predictions\.(decoder\.(weight|bias)|bias)": 0,
                    r"cls\.predictions\.dense\.weight": 1}),
    # All layers share one table of position biases with an entry for each head.
    "mpnet": Architecture(_BERT.layers, None, _BERT.neurons, _BERT.vocabulary),
}
