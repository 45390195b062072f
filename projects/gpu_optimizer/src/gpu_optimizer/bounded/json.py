"""Parses JSON that strangers sent: bounded in size, depth, elements and numbers before it costs."""

import json
import math
import re
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from gpu_optimizer.errors import InvalidModelError

_MAX_INTEGER_DIGITS: Final = 19
_TOKEN: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)
"""Strings and brackets. The closing quote is optional: an unterminated string must not be scanned
again and again."""


@dataclass(frozen=True, slots=True)
class JsonLimits:
    """What a document may cost."""

    n_bytes: int
    n_elements: int
    """Upper bound of values: commas, colons and opening brackets, those in strings included."""
    depth: int | None = None
    """None: left to the decoder."""


def parse_json(data: bytes, source: str, limits: JsonLimits) -> Any:  # noqa: ANN401 - any JSON value
    """Value of a JSON document of bounded cost.

    Duplicate keys, NaN, infinities (also as ``1e999``) and integers of more than 19 digits are
    refused, so that no two readers can understand the document differently.

    Raises
    ------
    InvalidModelError
        Names the limit or what is wrong.
    """
    check_json_cost(data, source, limits)
    try:
        return json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_short_integer,
        )
    except (ValueError, RecursionError) as error:
        raise InvalidModelError(source, f"not valid JSON: {error}.") from error


def check_json_cost(data: bytes, source: str, limits: JsonLimits) -> None:
    """Refuse a text that is too long, too deep or has too many values, before it is parsed.

    Raises
    ------
    InvalidModelError
        Names the limit.
    """
    if len(data) > limits.n_bytes:
        raise InvalidModelError(
            source, f"{len(data):,} bytes of JSON; at most {limits.n_bytes:,} are read."
        )
    n_elements = sum(data.count(mark) for mark in (b",", b":", b"[", b"{"))
    if n_elements > limits.n_elements:
        raise InvalidModelError(
            source, f"about {n_elements:,} JSON values; at most {limits.n_elements:,} are read."
        )
    if limits.depth is not None:
        _check_depth(data, source, limits.depth, limits.n_elements)


def _check_depth(data: bytes, source: str, max_depth: int, n_elements: int) -> None:
    depth = n_strings = 0
    for token in _TOKEN.finditer(data):
        first = data[token.start()]
        if first in b"[{":
            depth += 1
        elif first in b"]}":
            depth -= 1
        else:
            n_strings += 1
        if depth > max_depth:
            raise InvalidModelError(source, f"JSON nested deeper than {max_depth} levels.")
        # Each string but one needs a comma, colon or bracket before it.
        if n_strings > n_elements + 1:
            raise InvalidModelError(source, "not valid JSON: strings that nothing separates.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key occurs twice in one object")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number is too large")
    return number


def _short_integer(text: str) -> int:
    if len(text.lstrip("-")) > _MAX_INTEGER_DIGITS:
        raise ValueError(f"an integer has more than {_MAX_INTEGER_DIGITS} digits")
    return int(text)
