"""What may be profiled: readable kinds are read exactly, everything else is refused in words."""

import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from gpu_optimizer.errors import InvalidModelError, UnknownNameError
from gpu_optimizer.model_files.exported_programs import ExportedGraph
from gpu_optimizer.model_files.hf_configs import HfModel
from gpu_optimizer.model_files.tensor_tables import TensorRole, TensorTable, bytes_by_module
from gpu_optimizer.model_specs import RegisteredModel, read_model_file, registered_model


def archive(**entries: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in entries.items():
            file.writestr(name.replace("__", "/"), content)
    return buffer.getvalue()


def safetensors(header: object, data_bytes: int = 0) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(data_bytes)


def tensor(begin: int = 0, end: int = 8, shape: object = (2,), dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def read(content: bytes, *, complete: bool = True, name: str = "upload") -> object:
    return read_model_file(io.BytesIO(content), name, complete=complete)


def test_a_registered_name_is_no_path_and_no_url():
    assert registered_model("resnet50", ["resnet50"]) == RegisteredModel("resnet50")
    for name in ("https://example.org/m.bin", "meta-llama/Llama-2-7b", "..\\m", "", "a\nb"):
        with pytest.raises(InvalidModelError):
            registered_model(name, ["resnet50"])
    with pytest.raises(UnknownNameError):
        registered_model("resnet51", ["resnet50"])


def test_a_config_is_told_by_its_content():
    assert isinstance(read(b' \n{"model_type": "gpt2"}', name="m.bin"), HfModel)
    with pytest.raises(InvalidModelError, match="it is missing"):
        read(b'{"weight_map": {}}', name="model.safetensors.index.json")


def test_a_safetensors_file_is_read_from_its_head(tmp_path: Path):
    path = tmp_path / "m.safetensors"
    save_file(
        {
            "layer.0.weight": torch.zeros(3, 5),
            "layer.0.bias": torch.zeros(3, dtype=torch.bfloat16),
            "layer.1.weight": torch.zeros(7, dtype=torch.float8_e4m3fn),
            "empty": torch.zeros(0, 4),
        },
        path,
        {"format": "pt"},
    )
    content = path.read_bytes()
    table = read(content)
    assert isinstance(table, TensorTable)
    assert table.total_bytes == 60 + 6 + 7
    assert table.bytes_by_module() == {"": 73, "layer": 73, "layer.0": 66, "layer.1": 7}
    n_head_bytes = 8 + int.from_bytes(content[:8], "little")
    assert read(content[:n_head_bytes], complete=False) == table
    for wrong in (content[:-1], content + b"x", content[: n_head_bytes - 1]):
        with pytest.raises(InvalidModelError):
            read(wrong)


@pytest.mark.parametrize(
    "header",
    [
        {"a": tensor(), "b": tensor(4, 12)},
        {"a": tensor(), "b": tensor(12, 20)},
        {"a": tensor(4, 12)},
        {"a": tensor(shape=(3,))},
        {"a": tensor(shape=(-2,))},
        {"a": tensor(shape=(True, 2))},
        {"a": tensor(shape=(2.0,))},
        {"a": tensor(shape=2)},
        {"a": tensor(dtype="F33")},
        {"a": tensor(dtype="__class__")},
        {"a": tensor(0, 1, (3,), "F4")},
        {"a": {**tensor(), "more": 1}},
        {"a": {"dtype": "F32"}},
        {"a": [1]},
        {"": tensor()},
        {"a\x00": tensor()},
        {"\ud800": tensor()},
        {".".join("a" * 100): tensor()},
        {"a": tensor(0, 2**50, (2**24, 2**24))},
        b'{"a":' + json.dumps(tensor()).encode() + b',"a":' + json.dumps(tensor()).encode() + b"}",
        b"[1]",
        b"{",
    ],
)
def test_an_inconsistent_safetensors_header_is_refused(header):
    with pytest.raises(InvalidModelError):
        read(safetensors(header, 8), complete=False)


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.BatchNorm1d(16))
        self.head = torch.nn.Linear(16, 4)
        self.tied = self.head

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tied(torch.relu(self.body(x)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("export") / "small.pt2"
    program = torch.export.export(
        Small(), (torch.zeros(3, 8),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.export.save(program, path)
    return path.read_bytes()


def test_an_exported_program_is_read_without_loading_it(exported: bytes):
    graph = read(exported, name="small.pt2")
    assert isinstance(graph, ExportedGraph)
    model = Small()
    weights = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    assert graph.weight_bytes == sum(one.numel() * one.element_size() for one in weights.values())
    assert {one.name: one.shares for one in graph.tensors if one.shares} == {
        "tied.weight": "head.weight", "tied.bias": "head.bias",
    }  # fmt: skip
    (x,) = (one for one in graph.tensors if one.role is TensorRole.INPUT)
    assert (x.shape, x.dtype, x.n_bytes) == ((3, 8), "float32", 96)
    assert dict(graph.operators)["torch.ops.aten.linear.default"] == 2
    assert dict(graph.produced_bytes_by_module)["body.0"] == 3 * 16 * 4
    assert graph.bytes_by_module()["body"] == (8 * 16 + 16 + 4 * 16) * 4 + 8


def replaced(exported: bytes, change) -> bytes:
    """The same archive with another graph."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(exported)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if "/models/" in name:
                document = json.loads(content)
                change(document["graph_module"])
                content = json.dumps(document).encode()
            new.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["graph"]["tensor_values"].pop("x"),
        lambda m: m["graph"]["tensor_values"]["x"].update(dtype=99),
        lambda m: m["graph"]["tensor_values"]["x"].update(sizes=[{"as_int": -1}]),
        lambda m: m["graph"]["tensor_values"]["x"].update(sizes=[{"as_int": True}]),
        lambda m: m["graph"]["tensor_values"]["x"].update(sizes=[{"as_int": 2**40}] * 2),
        lambda m: m["graph"]["tensor_values"]["x"].update(
            sizes=[{"as_expr": {"expr_str": "__import__('os').abort()", "hint": None}}]
        ),
        lambda m: m["graph"]["tensor_values"]["p_head_weight"].update(
            sizes=[{"as_int": 2**30}, {"as_int": 2**20}]
        ),
        lambda m: m["signature"]["input_specs"][0]["parameter"].update(parameter_name="\x1b[2J"),
        lambda m: m["graph"].pop("nodes"),
        lambda m: m["graph"].update(nodes="many"),
    ],
)
def test_a_contradictory_graph_is_refused(exported: bytes, change):
    assert isinstance(read(replaced(exported, lambda _: None)), ExportedGraph)
    with pytest.raises(InvalidModelError):
        read(replaced(exported, change))


class RunsCode:
    def __reduce__(self):
        return (Path("/nowhere/made-by-a-pickle").mkdir, ())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pickle.dumps(RunsCode()), "pickle"),
        (pickle.dumps([1], protocol=0), "no readable kind"),
        (archive(m__data__pkl=b"x").replace(b"data/pkl", b"data.pkl"), "pickle"),
        (archive(m__models__a=b"{}"), "0 exported graphs"),
        (b"", "no readable kind"),
        (b"https://example.org/model.bin", "no readable kind"),
        (b"GGUF" + bytes(600), "GGUF"),
        (b"\x1f\x8b\x08" + bytes(600), "unpacked"),
        (b"#!/bin/sh\nrm -rf /", "programs"),
        (b"PK\x03\x04" + bytes(30), "zip"),
    ],
)
def test_everything_else_is_refused_with_the_reason(content: bytes, reason: str):
    with pytest.raises(InvalidModelError, match=reason):
        read(content)


def test_a_saved_state_dict_is_refused(tmp_path: Path):
    torch.save(Small().state_dict(), tmp_path / "m.pt")
    with pytest.raises(InvalidModelError, match="pickle"):
        read((tmp_path / "m.pt").read_bytes(), name="../../m.pt")


def bomb(n_bytes: int, name: str = "m/models/model.json") -> bytes:
    return archive(**{name.replace("/", "__"): bytes(n_bytes)})


def many_entries(n_entries: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for i in range(n_entries):
            file.writestr(str(i), b"")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        bomb(80 << 20),
        bomb(5 << 20),
        many_entries(20_001),
        archive(__etc__passwd=b"", m__models__model=b"{}"),
        archive(**{"..__..__evil": b"", "m__models__model.json": b"{}"}),
        archive(**{"C:evil": b"", "m__models__model.json": b"{}"}),
        archive(**{"a\\b": b"", "m__models__model.json": b"{}"}),
        archive(**{"m__models__a.json": b"{}", "m__models__b.json": b"{}"}),
        archive(**{"m__models__model.json": b"[" * 100_000}),
        archive(**{"m__models__model.json": b"\xff\xfe"}),
        archive(**{"m__models__model.json": b"{}"}) + b"trailing",
    ],
)
def test_a_hostile_archive_is_refused(content: bytes):
    with pytest.raises(InvalidModelError):
        read(content)


@given(st.binary(max_size=400), st.sampled_from([b"", b"PK\x03\x04", b"{", struct.pack("<Q", 60)]))
def test_random_bytes_never_do_more_than_be_refused(content: bytes, prefix: bytes):
    with pytest.raises(InvalidModelError):
        read(prefix + content)


@given(st.data())
def test_damaged_archives_are_refused_or_read(exported: bytes, data: st.DataObject):
    content = bytearray(exported)
    for _ in range(data.draw(st.integers(1, 6))):
        # Most damage should hit the directory at the end, not the padding.
        at = data.draw(st.one_of(st.integers(0, len(content) - 1), st.integers(-1500, -1)))
        content[at] = data.draw(st.integers(0, 255))
    try:
        read(bytes(content))
    except InvalidModelError:
        return


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.integers(1, 300),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.text(max_size=5), VALUES, max_size=4), st.data())
def test_mutated_headers_are_refused_or_consistent(header: dict, data: st.DataObject):
    entries = {
        **header,
        **{
            name: {
                "dtype": data.draw(st.sampled_from(["F32", "F4", "I8", "X"])),
                "shape": data.draw(st.lists(st.integers(0, 4), max_size=3)),
                "data_offsets": data.draw(st.lists(st.integers(0, 64), min_size=2, max_size=2)),
            }
            for name in data.draw(st.lists(st.sampled_from("abc"), unique=True))
        },
    }
    try:
        table = read(safetensors(json.dumps(entries).encode()), complete=False)
    except InvalidModelError:
        return
    assert isinstance(table, TensorTable)
    assert bytes_by_module(table.tensors)[""] == table.total_bytes
