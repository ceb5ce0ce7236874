"""How what `[model]` names becomes the original in float32: taken in, unpacked where it is quantized, merged where it is an adapter."""

from __future__ import annotations

from edgeexport.catalog import make_step
from edgeexport.graph import Graph
from edgeexport.resolve import Resolved


def plan_loading(graph: Graph, resolved: Resolved) -> str:
    """Add the steps that make the original.

    Args:
        graph: gets them; has the leaf ``source``, and where that is an adapter the leaf ``base``.
        resolved: the source.

    Returns:
        The id of the node whose checkpoint is the original.

    Raises:
        PlanError: the source can't be taken in.
    """
    base, text = resolved.base, resolved.text.as_dict()
    load = make_step(resolved.loader, spec=resolved.spec, text=text) if base is None else make_step(resolved.loader, spec=base.spec)
    original = graph.must(resolved.loader, load, {"source": "@source" if base is None else "@base"})
    if resolved.quantization is not None:
        unpack = make_step("dequantize_checkpoint", **resolved.quantization.model_dump())
        original = graph.must("dequantize_checkpoint", unpack, {"checkpoint": original})
    if base is not None:
        merge = make_step("merge_adapter", spec=resolved.spec, text=text, **base.merging)
        original = graph.must("merge_adapter", merge, {"checkpoint": original, "adapter": "@source"})
    return original
