"""An operator that a quantizer does not leave in float: what the formats have in common."""

from __future__ import annotations

from typing import NamedTuple

from edgeexport.policy import Scheme


class ChosenOperator(NamedTuple):
    """An operator that is not left in float.

    Attributes:
        operator: its type.
        scope: the name by which the quantizer knows it; in ONNX its node's.
        scheme: how it is computed.
        group: what an override calls it: its module; where it has none, in TFLite ``op:NAME`` and in ONNX its node.
        weights: how many weights it multiplies an activation with; 0 where it looks rows up or has none.
        activations: names of the values of floating point that it reads and writes, constants left out.
        graph: number of its subgraph, where the format has several.
    """

    operator: str
    scope: str
    scheme: Scheme
    group: str
    weights: int
    activations: tuple[str, ...]
    graph: int = 0
