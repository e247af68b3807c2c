"""ONNX files written by hand, field by field as in onnx.proto3, so that no test needs the package onnx."""

import struct

FLOAT, INT = 1, 2  # AttributeProto's types; FLOAT is also TensorProto's


def node(kind, inputs, output, **attributes):
    """A NodeProto: op_type 4, input 1, output 2, attribute 5."""
    found = [_attribute(name, value) for name, value in attributes.items()]
    return _text(4, kind) + b"".join(_text(1, x) for x in inputs) + _text(2, output) + b"".join(found)


def network(nodes, shape, output="y", tensors=()):
    """A model of one input `x` of a shape, whose names are free sizes. output: a name, or several in a list.

    tensors: constants by name, int64 lists.
    """
    graph = b"".join(_bytes(1, x) for x in nodes) + _text(2, "g")
    graph += b"".join(_bytes(5, _integers(name, values)) for name, values in dict(tensors).items())
    graph += _bytes(11, _value("x", shape))
    for name in [output] if isinstance(output, str) else output:
        graph += _bytes(12, _text(1, name) + _bytes(2, _bytes(1, _number(1, FLOAT))))
    return _number(1, 8) + _bytes(7, graph) + _bytes(8, _number(2, 17))  # ir_version, graph, opset


def two_inputs(nodes, size, numbers):
    """A model of inputs `image` (1, 3, *size) and `mask` (1, 1, *size) and an output `y`. numbers: constants by name,
    one float each.
    """
    graph = b"".join(_bytes(1, x) for x in nodes) + _text(2, "g")
    graph += b"".join(_bytes(5, _float(name, value)) for name, value in numbers.items())
    graph += b"".join(_bytes(11, _value(name, (1, n, *size))) for name, n in (("image", 3), ("mask", 1)))
    graph += _bytes(12, _text(1, "y") + _bytes(2, _bytes(1, _number(1, FLOAT))))
    return _number(1, 8) + _bytes(7, graph) + _bytes(8, _number(2, 17))


def _value(name, shape):
    dims = b"".join(_bytes(1, _text(2, n) if isinstance(n, str) else _number(1, n)) for n in shape)
    return _text(1, name) + _bytes(2, _bytes(1, _number(1, FLOAT) + _bytes(2, dims)))


def _attribute(name, value):
    if isinstance(value, list):
        return _bytes(5, _text(1, name) + b"".join(_number(8, x) for x in value) + _number(20, 7))
    return _bytes(5, _text(1, name) + _number(3, value) + _number(20, INT))


def _integers(name, values):
    raw = b"".join(x.to_bytes(8, "little", signed=True) for x in values)
    return _number(1, len(values)) + _number(2, 7) + _text(8, name) + _bytes(9, raw)


def _float(name, value):
    return _number(2, FLOAT) + _text(8, name) + _bytes(9, struct.pack("<f", value))


def _number(field, value):
    return _varint(field << 3) + _varint(value)


def _bytes(field, data):
    return _varint(field << 3 | 2) + _varint(len(data)) + data


def _text(field, text):
    return _bytes(field, text.encode())


def _varint(value):
    parts = []
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])
