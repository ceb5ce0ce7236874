"""An ONNX graph to be rewritten: what makes a value, what uses it, what is constant, how many axes it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx
    from numpy.typing import NDArray


class Graph:
    """A graph's nodes and constants, by name.

    Attributes:
        nodes: in the order of computation.
        maker: value → the node it comes out of.
        initializers: stored constants by name.
    """

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.nodes = list(graph.node)
        self.maker = {output: node for node in self.nodes for output in node.output}
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._outputs = {value.name for value in graph.output}
        self._users: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in node.input:
                self._users.setdefault(name, []).append(node)

    def is_output(self, value: str) -> bool:
        """Whether the graph gives a value out."""
        return value in self._outputs

    def users(self, value: str) -> list[onnx.NodeProto]:
        """The nodes that use a value."""
        return self._users.get(value, [])

    def only_user(self, value: str) -> onnx.NodeProto | None:
        """The node that uses a value, where nothing else does."""
        users = self.users(value)
        return users[0] if len(users) == 1 and not self.is_output(value) else None

    def constant(self, value: str) -> NDArray[Any] | None:
        """What a value is in every run: a stored constant, transposed or joined to others; None if it depends on the input."""
        import numpy as np
        from onnx.numpy_helper import to_array

        if value in self.initializers:
            return to_array(self.initializers[value])
        node = self.maker.get(value)
        if node is None or node.op_type not in {"Transpose", "Concat"}:
            return None
        parts = [part for name in node.input if (part := self.constant(name)) is not None]
        if len(parts) < len(node.input):
            return None
        if node.op_type == "Transpose":
            return np.transpose(parts[0], attribute(node, "perm", None))
        return np.concatenate(parts, axis=attribute(node, "axis", 0))


def ranks(model: onnx.ModelProto) -> dict[str, int]:
    """Number of axes of each value for which it can be inferred."""
    import onnx

    # Without the matrices, whose types are enough: a model may be large, and is copied on the way.
    light = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    light.graph.name = "ranks"
    light.graph.node.extend(model.graph.node)
    light.graph.input.extend(model.graph.input)
    light.graph.output.extend(model.graph.output)
    for tensor in model.graph.initializer:
        if len(tensor.dims) < 2:
            light.graph.initializer.append(tensor)
        else:
            light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    inferred = onnx.shape_inference.infer_shapes(light, data_prop=True).graph
    return {value.name: len(value.type.tensor_type.shape.dim) for value in (*inferred.input, *inferred.value_info, *inferred.output)
            if value.type.tensor_type.HasField("shape")}


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """The attributes of a node."""
    import onnx

    return {entry.name: onnx.helper.get_attribute_value(entry) for entry in node.attribute}


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """The value of a node's attribute."""
    return attributes(node).get(name, default)
