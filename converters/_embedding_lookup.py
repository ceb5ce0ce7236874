"""Embedding tables in TFLite files that TensorFlow's converter made.

The converter looks rows up by GATHER, whose table no quantizer takes; most of a small text model is that table. EMBEDDING_LOOKUP does
the same and can be quantized.
"""

from __future__ import annotations

from typing import Any

import numpy as np


def use_embedding_lookup(model: Any) -> None:
    """Replace each GATHER of rows of a constant float32 table, in place.

    EMBEDDING_LOOKUP takes int32 [n] and gives float32 [n, width], so the ids are laid flat before it and the rows are shaped after it.

    Args:
        model: a ``ModelT`` of TFLite's schema, with static shapes.

    Source: TFLite's kernels gather.cc and embedding_lookup.cc.
    """
    from ai_edge_litert import schema_py_generated as schema

    codes = [code.builtinCode for code in model.operatorCodes]
    for graph in model.subgraphs:
        operators = []
        for operator in graph.operators:
            if codes[operator.opcodeIndex] == schema.BuiltinOperator.GATHER and _is_table(model, graph, operator):
                operators += _lookup(schema, model, graph, operator)
            else:
                operators.append(operator)
        graph.operators = operators
    drop_unused_codes(model)


def drop_unused_codes(model: Any) -> None:
    """Take operators that no graph uses from the list of those that a runtime must have, in place."""
    used = sorted({operator.opcodeIndex for graph in model.subgraphs for operator in graph.operators})
    for graph in model.subgraphs:
        for operator in graph.operators:
            operator.opcodeIndex = used.index(operator.opcodeIndex)
    model.operatorCodes = [model.operatorCodes[index] for index in used]


def _is_table(model: Any, graph: Any, gather: Any) -> bool:
    from ai_edge_litert import schema_py_generated as schema

    table, ids = (graph.tensors[index] for index in gather.inputs[:2])
    content = model.buffers[table.buffer].data
    options = gather.builtinOptions
    return (table.type == schema.TensorType.FLOAT32 and len(table.shape) == 2 and content is not None and len(content) > 0
            and ids.type in {schema.TensorType.INT32, schema.TensorType.INT64} and not options.axis and not options.batchDims)


def _lookup(schema: Any, model: Any, graph: Any, gather: Any) -> list[Any]:
    """The operators that do what `gather` does."""
    table, ids, output = gather.inputs[0], gather.inputs[1], gather.outputs[0]
    name, shape = graph.tensors[output].name, [int(size) for size in graph.tensors[output].shape]
    count = int(np.prod(shape[:-1]))
    builtin, types = schema.BuiltinOperator, schema.TensorType
    operators = []
    if graph.tensors[ids].type == types.INT64:
        narrow = _tensor(schema, graph, name + b"/ids32", types.INT32, shape[:-1])
        cast = schema.CastOptionsT(inDataType=types.INT64, outDataType=types.INT32)
        operators.append(_operator(schema, model, builtin.CAST, [ids], [narrow], schema.BuiltinOptions.CastOptions, cast))
        ids = narrow
    flat = _tensor(schema, graph, name + b"/ids", types.INT32, [count])
    rows = _tensor(schema, graph, name + b"/rows", types.FLOAT32, [count, shape[-1]])
    lookup = _operator(schema, model, builtin.EMBEDDING_LOOKUP, [flat, table], [rows])
    return [*operators, _reshape(schema, model, graph, ids, flat), lookup, _reshape(schema, model, graph, rows, output)]


def _reshape(schema: Any, model: Any, graph: Any, source: int, target: int) -> Any:
    shape = np.asarray(graph.tensors[target].shape, np.int32)
    wanted = _tensor(schema, graph, graph.tensors[target].name + b"/shape", schema.TensorType.INT32, [len(shape)])
    model.buffers.append(schema.BufferT(data=np.frombuffer(shape.tobytes(), np.uint8)))
    graph.tensors[wanted].buffer = len(model.buffers) - 1
    return _operator(schema, model, schema.BuiltinOperator.RESHAPE, [source, wanted], [target], schema.BuiltinOptions.ReshapeOptions,
                     schema.ReshapeOptionsT(newShape=shape))


def _tensor(schema: Any, graph: Any, name: bytes, dtype: int, shape: list[int]) -> int:
    """Index of a new tensor; buffer 0 is the empty one."""
    graph.tensors.append(schema.TensorT(name=name, type=dtype, shape=np.asarray(shape, np.int32), buffer=0))
    return len(graph.tensors) - 1


def _operator(schema: Any, model: Any, builtin: int, inputs: list[int], outputs: list[int], options_type: int = 0,
              options: Any = None) -> Any:
    index = next((i for i, code in enumerate(model.operatorCodes) if code.builtinCode == builtin), None)
    if index is None:
        # Readers of the first schema look into a field of a byte, where these operators' codes fit.
        model.operatorCodes.append(schema.OperatorCodeT(builtinCode=builtin, deprecatedBuiltinCode=builtin, version=1))
        index = len(model.operatorCodes) - 1
    return schema.OperatorT(opcodeIndex=index, inputs=np.asarray(inputs, np.int32), outputs=np.asarray(outputs, np.int32),
                            builtinOptionsType=options_type, builtinOptions=options)
