"""Reads the graph inside a torch.export archive (.pt2): JSON only, never weights or pickles.

Layout written by ``torch.export.save`` since PyTorch 2.8: ``<name>/models/<model>.json`` holds the
graph, ``<name>/data/weights/<model>_weights_config.json`` says which weights share a file. Before,
the graph was ``serialized_exported_program.json``. Schema: torch/_export/serde/schema.py. The
structures below name the few fields that are needed; all others are skipped without being built.
"""

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, TypeVar

import msgspec

from gpu_optimizer.bounded.byte_sources import ByteSource
from gpu_optimizer.bounded.json import JsonLimits, check_json_cost
from gpu_optimizer.bounded.zip import BoundedZip, ZipLimits
from gpu_optimizer.errors import InvalidModelError
from gpu_optimizer.model_files.tensor_tables import (
    TensorEntry,
    TensorRole,
    bytes_by_module,
    check_name,
    check_parameters,
    count_elements,
    shared_storage,
    total_bytes,
)

ARCHIVE_LIMITS: Final = ZipLimits(n_entries=20_000, directory_bytes=8 << 20, entry_bytes=64 << 20)
GRAPH_LIMITS: Final = JsonLimits(n_bytes=64 << 20, n_elements=2_000_000)
"""A Llama of 32 layers has about 300,000."""
_MODEL_NAME: Final = re.compile(
    r"(?:[^/]+/)?(?:models/([^/]+)\.json|serialized_exported_program\.json)"
)
_OPERATOR: Final = re.compile(r"[\w.:<>]{1,200}")
_MAX_RANK: Final = 64
_MAX_ELEMENTS: Final = 1 << 50

# torch/_export/serde/schema.py, enum ScalarType, with bytes per element.
_DTYPES: Final[dict[int, tuple[str, int]]] = {
    1: ("uint8", 1),
    2: ("int8", 1),
    3: ("int16", 2),
    4: ("int32", 4),
    5: ("int64", 8),
    6: ("float16", 2),
    7: ("float32", 4),
    8: ("float64", 8),
    9: ("complex32", 4),
    10: ("complex64", 8),
    11: ("complex128", 16),
    12: ("bool", 1),
    13: ("bfloat16", 2),
    28: ("uint16", 2),
    29: ("float8_e4m3fn", 1),
    30: ("float8_e5m2", 1),
    31: ("float8_e4m3fnuz", 1),
    32: ("float8_e5m2fnuz", 1),
}

_Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]


class _Hint(msgspec.Struct):
    as_int: _Size | None = None


class _Expression(msgspec.Struct):
    """A size that is a formula, which is never evaluated: the traced value stands for it."""

    hint: _Size | _Hint | None = None


class _SymbolicSize(msgspec.Struct):
    as_int: _Size | None = None
    as_expr: _Expression | None = None


class _TensorMeta(msgspec.Struct):
    dtype: int
    sizes: list[_SymbolicSize]


class _Name(msgspec.Struct):
    name: str


class _Argument(msgspec.Struct):
    as_tensor: _Name | None = None
    as_tensors: list[_Name] = []


class _NodeMetadata(msgspec.Struct):
    nn_module_stack: str = ""


class _Node(msgspec.Struct):
    target: str
    outputs: list[_Argument] = []
    metadata: _NodeMetadata = msgspec.field(default_factory=_NodeMetadata)


class _Graph(msgspec.Struct):
    tensor_values: dict[str, _TensorMeta]
    nodes: list[_Node]


class _Parameter(msgspec.Struct):
    arg: _Name
    parameter_name: str


class _Buffer(msgspec.Struct):
    arg: _Name
    buffer_name: str


class _UserInput(msgspec.Struct):
    arg: _Argument


class _InputSpec(msgspec.Struct):
    parameter: _Parameter | None = None
    buffer: _Buffer | None = None
    user_input: _UserInput | None = None


class _Signature(msgspec.Struct):
    input_specs: list[_InputSpec]


class _GraphModule(msgspec.Struct):
    graph: _Graph
    signature: _Signature


class _Program(msgspec.Struct):
    graph_module: _GraphModule


class _Payload(msgspec.Struct):
    path_name: str


class _WeightsConfig(msgspec.Struct):
    config: dict[str, _Payload]


_Decoded = TypeVar("_Decoded", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class ExportedGraph:
    """What a torch.export archive says about its model."""

    source: str
    tensors: tuple[TensorEntry, ...]
    """Parameters, buffers and inputs; symbolic sizes have the value they were traced with."""
    operators: tuple[tuple[str, int], ...]
    """Name and number of calls, most frequent first."""
    produced_bytes: int
    """Of all tensors the forward pass makes, views of others included: an upper bound."""
    produced_bytes_by_module: tuple[tuple[str, int], ...]
    """The same per module that makes them, in order of execution, submodules not included."""

    @property
    def weight_bytes(self) -> int:
        """Parameters and buffers."""
        return total_bytes(one for one in self.tensors if one.role is not TensorRole.INPUT)

    @property
    def n_operations(self) -> int:
        """Calls of operators in the forward pass."""
        return sum(n_calls for _, n_calls in self.operators)

    def bytes_by_module(self) -> dict[str, int]:
        """Weight bytes per module, submodules included."""
        return bytes_by_module(one for one in self.tensors if one.role is not TensorRole.INPUT)


def read_exported_program(file: ByteSource, source: str) -> ExportedGraph:
    """Tensors and operators of the model in a torch.export archive.

    Parameters
    ----------
    file
        The whole archive, seekable.
    source
        Name to use in messages.

    Raises
    ------
    InvalidModelError
        If it is no such archive, breaks a limit, or contradicts itself.
    """
    archive = BoundedZip(file, source, ARCHIVE_LIMITS)
    if any(name.rpartition("/")[2] == "data.pkl" for name in archive.names):
        raise InvalidModelError(
            source,
            "a PyTorch checkpoint holds a pickle, which runs code when it is loaded. "
            "Save the weights as .safetensors, or the model with torch.export.save.",
        )
    models = [match for name in archive.names if (match := _MODEL_NAME.fullmatch(name))]
    if len(models) != 1:
        raise InvalidModelError(
            source,
            f"{len(models)} exported graphs in the archive where one is read. "
            "Give a file written by torch.export.save.",
        )
    program = _decode(archive.read(models[0].string), _Program, source).graph_module
    weights_config = models[0].string.replace(
        f"models/{models[0][1]}.json", f"data/weights/{models[0][1]}_weights_config.json"
    )
    storage: dict[str, str] = {}
    if weights_config != models[0].string and weights_config in archive.names:
        config = _decode(archive.read(weights_config), _WeightsConfig, source).config
        storage = {name: payload.path_name for name, payload in config.items()}
    return _summarise(program, storage, source)


def _decode(data: bytes, kind: type[_Decoded], source: str) -> _Decoded:
    check_json_cost(data, source, GRAPH_LIMITS)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidModelError(source, f"its graph is not as expected: {error}.") from error


def _summarise(program: _GraphModule, storage: dict[str, str], source: str) -> ExportedGraph:
    graph = program.graph
    inputs = _inputs(program.signature, graph, source)
    shared = shared_storage(
        (one.name for one in inputs if one.role is not TensorRole.INPUT), storage
    )
    tensors = tuple(
        replace(one, shares=shared[one.name]) if one.name in shared else one for one in inputs
    )
    check_parameters(
        sum(
            count_elements(one.shape, source)
            for one in tensors
            if one.role is TensorRole.PARAMETER and one.shares is None
        ),
        source,
    )
    produced: Counter[str] = Counter()
    operators: Counter[str] = Counter()
    for node in graph.nodes:
        operators[node.target if _OPERATOR.fullmatch(node.target) else "?"] += 1
        produced[_module(node, source)] += sum(
            _size(_meta(graph, one.name, source), source)[2]
            for output in node.outputs
            for one in ([output.as_tensor] if output.as_tensor else []) + output.as_tensors
        )
    return ExportedGraph(
        source=source,
        tensors=tensors,
        operators=tuple(operators.most_common()),
        produced_bytes=sum(produced.values()),
        produced_bytes_by_module=tuple(produced.items()),
    )


def _inputs(signature: _Signature, graph: _Graph, source: str) -> list[TensorEntry]:
    entries: list[TensorEntry] = []
    for spec in signature.input_specs:
        if spec.parameter is not None:
            role, name, arg = (
                TensorRole.PARAMETER,
                spec.parameter.parameter_name,
                spec.parameter.arg,
            )
        elif spec.buffer is not None:
            role, name, arg = TensorRole.BUFFER, spec.buffer.buffer_name, spec.buffer.arg
        elif spec.user_input is not None and spec.user_input.arg.as_tensor is not None:
            arg = spec.user_input.arg.as_tensor
            role, name = TensorRole.INPUT, arg.name
        else:
            continue
        dtype, shape, n_bytes = _size(_meta(graph, arg.name, source), source)
        entries.append(TensorEntry(check_name(name, source), dtype, shape, n_bytes, role))
    return entries


def _meta(graph: _Graph, name: str, source: str) -> _TensorMeta:
    meta = graph.tensor_values.get(name)
    if meta is None:
        raise InvalidModelError(source, "its graph uses a tensor that it does not describe.")
    return meta


def _size(meta: _TensorMeta, source: str) -> tuple[str, tuple[int, ...], int]:
    """Type, shape and bytes of a tensor."""
    if meta.dtype not in _DTYPES or len(meta.sizes) > _MAX_RANK:
        raise InvalidModelError(source, "a tensor has an unknown dtype or too many dimensions.")
    dtype, element_bytes = _DTYPES[meta.dtype]
    shape = tuple(_traced(size, source) for size in meta.sizes)
    return dtype, shape, element_bytes * count_elements(shape, source, _MAX_ELEMENTS)


def _traced(size: _SymbolicSize, source: str) -> int:
    if size.as_int is not None:
        return size.as_int
    hint: Any = size.as_expr.hint if size.as_expr is not None else None
    value = hint.as_int if isinstance(hint, _Hint) else hint
    if value is None:
        raise InvalidModelError(
            source, "a symbolic size has no traced value. Export with example inputs of real size."
        )
    return int(value)


def _module(node: _Node, source: str) -> str:
    """Qualified name of the innermost module of a call; empty: the model itself."""
    innermost = node.metadata.nn_module_stack.rpartition(";")[2].split(",")
    name = innermost[1] if len(innermost) > 1 else ""
    return check_name(name, source) if name else ""
