"""What may be profiled, and how a stranger's description of it is read without running anything.

Four kinds: a registered name, a Hugging Face config.json, the header of a safetensors file, the
JSON inside a torch.export archive. Everything else is refused with the reason and a way out.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from gpu_optimizer.bounded.byte_sources import ByteSource
from gpu_optimizer.errors import InvalidModelError, UnknownNameError
from gpu_optimizer.model_files.exported_programs import ExportedGraph, read_exported_program
from gpu_optimizer.model_files.hf_configs import CONFIG_LIMITS, HfModel, parse_hf_config
from gpu_optimizer.model_files.safetensors_headers import read_safetensors_header
from gpu_optimizer.model_files.tensor_tables import TensorTable

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HEAD_BYTES: Final = 512
_MAX_SOURCE_CHARACTERS: Final = 80
_INSTEAD: Final = (
    "Give a registered name, a config.json, a .safetensors file, or a .pt2 of torch.export.save."
)

# Magic numbers at offset 0; pickles of protocol 2 and later start with 0x80 and the protocol.
_REFUSED: Final[tuple[tuple[bytes, str], ...]] = (
    (b"\x80", "a pickle runs code when it is loaded"),
    (b"\x89HDF", "HDF5 weights are not read"),
    (b"GGUF", "GGUF weights are not read"),
    (b"\x1f\x8b", "compressed files are not unpacked"),
    (b"BZh", "compressed files are not unpacked"),
    (b"\xfd7zXZ", "compressed files are not unpacked"),
    (b"\x28\xb5\x2f\xfd", "compressed files are not unpacked"),
    (b"7z\xbc\xaf", "compressed files are not unpacked"),
    (b"\x7fELF", "programs are not run"),
    (b"MZ", "programs are not run"),
    (b"#!", "programs are not run"),
)


@dataclass(frozen=True, slots=True)
class RegisteredModel:
    """A model this package builds itself."""

    name: str


ModelSpec = RegisteredModel | HfModel | TensorTable | ExportedGraph


def registered_model(name: str, known: Collection[str]) -> RegisteredModel:
    """Model by its registered name.

    Raises
    ------
    InvalidModelError
        If it is a URL, a path or no name at all.
    UnknownNameError
        If no model has this name.
    """
    if "://" in name or "/" in name or "\\" in name:
        raise InvalidModelError(
            _shown_source(name), f"URLs and paths are never fetched or opened. {_INSTEAD}"
        )
    if not _NAME.fullmatch(name):
        raise InvalidModelError("model", "a name has up to 64 letters, digits, '.', '_' and '-'.")
    if name not in known:
        raise UnknownNameError("model", name, tuple(known))
    return RegisteredModel(name)


def read_model_file(file: ByteSource, source: str, *, complete: bool = True) -> ModelSpec:
    """Model that an uploaded file describes; its content decides, not its name.

    Parameters
    ----------
    file
        Seekable.
    source
        Name to use in messages; may come from a stranger, is never opened.
    complete
        Whether this is the whole file; the head of a safetensors file suffices.

    Raises
    ------
    InvalidModelError
        For everything that is not one of the readable kinds or breaks a limit.
    """
    source = _shown_source(source)
    n_file_bytes = file.seek(0, 2)
    file.seek(0)
    head = file.read(_HEAD_BYTES)
    file.seek(0)
    for magic, reason in _REFUSED:
        # Eight bytes of length come before a safetensors header; any value may occur in them.
        if head.startswith(magic) and not _is_safetensors(head):
            raise InvalidModelError(source, f"{reason}. {_INSTEAD}")
    if head.startswith(b"PK"):
        return read_exported_program(file, source)
    if _is_safetensors(head):
        return read_safetensors_header(file, source, n_file_bytes if complete else None)
    if head.lstrip()[:1] == b"{":
        return parse_hf_config(file.read(CONFIG_LIMITS.n_bytes + 1), source)
    raise InvalidModelError(source, f"its content is of no readable kind. {_INSTEAD}")


def _is_safetensors(head: bytes) -> bool:
    # A JSON text cannot be mistaken for it: its first bytes would be a length beyond every limit.
    return head[8:9] == b"{" and head[5:8] == b"\x00\x00\x00"


def _shown_source(name: str) -> str:
    """The last part of a stranger's file name, printable and short."""
    last = re.split(r"[/\\]", name)[-1][-_MAX_SOURCE_CHARACTERS:]
    return last if last and last.isprintable() else "upload"
