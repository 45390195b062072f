"""The settings of PyTorch's CUDA caching allocator, and the sizes that follow from them.

Rules as in c10/core/AllocatorConfig.{h,cpp} and c10/cuda/CUDACachingAllocator.cpp of torch 2.10 to
2.12; each function names the one it follows.
"""

from dataclasses import dataclass
from typing import Final

from gpu_optimizer.errors import GpuOptimizerError

MIB: Final = 1 << 20

MIN_BLOCK_BYTES: Final = 512
"""kMinBlockSize: every size is rounded up to a multiple of it."""
SMALL_BYTES: Final = MIB
"""kSmallSize: largest allocation of the small pool."""
SMALL_SEGMENT_BYTES: Final = 2 * MIB
"""kSmallBuffer: segment (or page, with expandable segments) of the small pool."""
LARGE_SEGMENT_BYTES: Final = 20 * MIB
"""kLargeBuffer: segment shared by allocations above 1 MiB and below `MIN_OWN_SEGMENT_BYTES`."""
MIN_OWN_SEGMENT_BYTES: Final = 10 * MIB
"""kMinLargeAlloc: from here on an allocation gets a segment of its own size."""
SEGMENT_ROUNDING_BYTES: Final = 2 * MIB
"""kRoundLarge: such segments are multiples of it."""
N_ROUNDUP_INTERVALS: Final = 16
"""kRoundUpPowerOfTwoIntervals: from 1 MiB to 64 GiB, one per power of two."""

_IGNORED_KEYS: Final = frozenset(
    {
        "graph_capture_record_stream_reuse",
        "pinned_num_register_threads",
        "pinned_reserve_segment_size_mb",
        "pinned_use_background_threads",
        "pinned_use_cuda_host_register",
        "release_lock_on_cudamalloc",
    }
)
"""Settings that do not change what is reserved on the device."""


class InvalidAllocatorSettingError(GpuOptimizerError):
    """A settings string that PyTorch would refuse, or that asks for another allocator."""

    def __init__(self, key: str, value: str, reason: str) -> None:
        super().__init__(f"Allocator setting {key}:{value}: {reason}")
        self.key = key
        self.value = value
        self.reason = reason


@dataclass(frozen=True, slots=True)
class AllocatorConfig:
    """How the allocator is set, and how much the device can give it."""

    max_split_size_bytes: int | None = None
    """Blocks this large are neither split nor given to smaller requests; None: no such limit."""
    max_non_split_rounding_bytes: int | None = None
    """How much larger than the request such a block may be; None: `large_segment_bytes`."""
    roundup_power2_divisions: tuple[int, ...] = (0,) * N_ROUNDUP_INTERVALS
    """Steps per power of two to which sizes are rounded, by interval; 0: to 512 bytes as usual."""
    garbage_collection_ratio: float = 0.0
    """Part of the memory allowed above which idle segments go back; 0: never.

    Does nothing unless `memory_fraction_ratio` is less than 1.
    """
    expandable_segments: bool = False
    large_segment_bytes: int = LARGE_SEGMENT_BYTES
    """Other than 20 MiB from torch 2.12 on only."""
    memory_fraction_ratio: float = 1.0
    """Of the device that the process allows itself (`set_per_process_memory_fraction`)."""
    device_bytes: int | None = None
    """What the device can give to the allocator; None: without end."""

    def __post_init__(self) -> None:
        if len(self.roundup_power2_divisions) != N_ROUNDUP_INTERVALS:
            raise ValueError(f"roundup_power2_divisions needs {N_ROUNDUP_INTERVALS} values.")
        if not 0.0 <= self.garbage_collection_ratio < 1.0:
            raise ValueError("garbage_collection_ratio must be in [0, 1).")
        if not 0.0 <= self.memory_fraction_ratio <= 1.0:
            raise ValueError("memory_fraction_ratio must be in [0, 1].")

    @classmethod
    def parse(cls, text: str, *, device_bytes: int | None = None) -> "AllocatorConfig":
        """Return what a value of `PYTORCH_ALLOC_CONF` (or `PYTORCH_CUDA_ALLOC_CONF`) sets.

        Parameters
        ----------
        text
            Such as ``expandable_segments:True,max_split_size_mb:128``; empty: all defaults.
        device_bytes
            See the attribute of this name.

        Raises
        ------
        InvalidAllocatorSettingError
            An unknown key, a value out of range, or ``backend:cudaMallocAsync``.
        """
        settings = _split_settings(text)
        large_segment_bytes = _read_mib(
            settings, "large_segment_size_mb", LARGE_SEGMENT_BYTES, MIN_OWN_SEGMENT_BYTES + MIB
        )
        assert large_segment_bytes is not None  # noqa: S101  (its default is a number)
        return cls(
            max_split_size_bytes=_read_mib(
                settings, "max_split_size_mb", None, large_segment_bytes
            ),
            max_non_split_rounding_bytes=_read_mib(
                settings, "max_non_split_rounding_mb", None, large_segment_bytes
            ),
            roundup_power2_divisions=_read_divisions(settings),
            garbage_collection_ratio=_read_ratio(settings, "garbage_collection_threshold", 0.0),
            expandable_segments=_read_bool(settings, "expandable_segments"),
            large_segment_bytes=large_segment_bytes,
            memory_fraction_ratio=_read_ratio(settings, "per_process_memory_fraction", 1.0),
            device_bytes=device_bytes,
        )

    def as_setting(self) -> str:
        """Return the value of `PYTORCH_ALLOC_CONF` that sets this.

        `expandable_segments` is always named: unlike the others it keeps its earlier value when a
        running process is given new settings without it.
        """
        parts = [f"expandable_segments:{self.expandable_segments}"]
        if self.large_segment_bytes != LARGE_SEGMENT_BYTES:
            parts.append(f"large_segment_size_mb:{self.large_segment_bytes // MIB}")
        if self.max_split_size_bytes is not None:
            parts.append(f"max_split_size_mb:{self.max_split_size_bytes // MIB}")
        if self.max_non_split_rounding_bytes is not None:
            parts.append(f"max_non_split_rounding_mb:{self.max_non_split_rounding_bytes // MIB}")
        if any(self.roundup_power2_divisions):
            parts.append(f"roundup_power2_divisions:{_format_divisions(self)}")
        if self.garbage_collection_ratio:
            parts.append(f"garbage_collection_threshold:{self.garbage_collection_ratio}")
        if self.memory_fraction_ratio < 1.0:
            parts.append(f"per_process_memory_fraction:{self.memory_fraction_ratio}")
        return ",".join(parts)

    @property
    def allowed_bytes(self) -> int | None:
        """Limit that the process has set itself (`allowed_memory_maximum`); None: none."""
        if self.memory_fraction_ratio >= 1.0 or self.device_bytes is None:
            return None
        return int(self.memory_fraction_ratio * self.device_bytes)

    def round_size(self, requested_bytes: int) -> int:
        """Return the block size of a request, as `round_size` does."""
        if requested_bytes < MIN_BLOCK_BYTES:
            return MIN_BLOCK_BYTES
        interval = min(max(requested_bytes.bit_length() - 21, 0), N_ROUNDUP_INTERVALS - 1)
        divisions = self.roundup_power2_divisions[interval]
        if divisions > 1 and requested_bytes > MIN_BLOCK_BYTES * divisions:
            return _round_to_division(requested_bytes, divisions)
        return -(-requested_bytes // MIN_BLOCK_BYTES) * MIN_BLOCK_BYTES

    def segment_bytes(self, block_bytes: int) -> int:
        """Return what is taken from the device for a new block, as `get_allocation_size` does."""
        if block_bytes <= SMALL_BYTES:
            return SMALL_SEGMENT_BYTES
        if block_bytes < MIN_OWN_SEGMENT_BYTES:
            return self.large_segment_bytes
        return -(-block_bytes // SEGMENT_ROUNDING_BYTES) * SEGMENT_ROUNDING_BYTES


def _round_to_division(size_bytes: int, divisions: int) -> int:
    """Round up to the next of so many equal steps of a power of two.

    As `roundup_power2_next_division` does: 1,200 with four divisions becomes 1,280.
    """
    if size_bytes & (size_bytes - 1) == 0:
        return size_bytes
    floor = 1 << (size_bytes.bit_length() - 1)
    step = floor >> (divisions.bit_length() - 1)
    if step == 0:
        return floor << 1
    return -(-size_bytes // step) * step


def _split_settings(text: str) -> dict[str, str]:
    """Split at commas outside of brackets; the last of equal keys holds."""
    settings: dict[str, str] = {}
    depth = 0
    part = ""
    for char in "".join(text.split()) + ",":
        if char == "," and depth == 0:
            if part:
                key, _, value = part.partition(":")
                _check_key(key, value)
                settings[key] = value
            part = ""
            continue
        depth += (char == "[") - (char == "]")
        part += char
    if part:
        raise InvalidAllocatorSettingError(part.partition(":")[0], part, "a bracket is not closed.")
    return settings


def _check_key(key: str, value: str) -> None:
    if not value:
        raise InvalidAllocatorSettingError(key, value, "a value is missing.")
    known = {
        "backend",
        "expandable_segments",
        "garbage_collection_threshold",
        "large_segment_size_mb",
        "max_non_split_rounding_mb",
        "max_split_size_mb",
        "per_process_memory_fraction",
        "roundup_power2_divisions",
    }
    if key not in known | _IGNORED_KEYS:
        raise InvalidAllocatorSettingError(key, value, "PyTorch has no such setting.")
    if key == "backend" and value != "native":
        raise InvalidAllocatorSettingError(key, value, "only the native allocator is simulated.")


def _read_int(key: str, value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) <= 18):
        raise InvalidAllocatorSettingError(key, value, "expected a whole number.")
    return int(value)


def _read_mib(
    settings: dict[str, str], key: str, default_bytes: int | None, least_bytes: int
) -> int | None:
    if key not in settings:
        return default_bytes
    size_bytes = _read_int(key, settings[key]) * MIB
    if size_bytes < least_bytes:
        reason = f"at least {least_bytes // MIB} MiB."
        raise InvalidAllocatorSettingError(key, settings[key], reason)
    return size_bytes


def _read_ratio(settings: dict[str, str], key: str, default: float) -> float:
    if key not in settings:
        return default
    try:
        value = float(settings[key])
    except ValueError as error:
        raise InvalidAllocatorSettingError(key, settings[key], "expected a number.") from error
    is_fraction = key == "per_process_memory_fraction"
    if not (0.0 <= value <= 1.0 if is_fraction else 0.0 < value < 1.0):
        raise InvalidAllocatorSettingError(key, settings[key], "must lie between 0 and 1.")
    return value


def _read_bool(settings: dict[str, str], key: str) -> bool:
    value = settings.get(key, "False")
    if value not in {"True", "False"}:
        raise InvalidAllocatorSettingError(key, value, "expected True or False.")
    return value == "True"


def _read_divisions(settings: dict[str, str]) -> tuple[int, ...]:
    """Read `roundup_power2_divisions`, as `parseRoundUpPower2Divisions` does.

    ``[64:8,256:4,>:1]`` sets the intervals up to 64 MiB, that of 256 MiB and those above it; what
    lies between two named ones keeps 0.
    """
    key = "roundup_power2_divisions"
    divisions = [0] * N_ROUNDUP_INTERVALS
    text = settings.get(key)
    if text is None:
        return tuple(divisions)
    if not text.startswith("["):
        return (_read_power2(key, text),) * N_ROUNDUP_INTERVALS
    last = 0
    is_first = True
    for pair in text.strip("[]").split(","):
        boundary, _, value_text = pair.partition(":")
        value = 0 if value_text == "0" else _read_power2(key, value_text)
        if boundary == ">":
            divisions[last + 1 :] = [value] * (N_ROUNDUP_INTERVALS - last - 1)
            continue
        last = min(_read_power2(key, boundary).bit_length() - 1, N_ROUNDUP_INTERVALS - 1)
        if is_first:
            divisions[:last] = [value] * last
            is_first = False
        divisions[last] = value
    return tuple(divisions)


def _read_power2(key: str, text: str) -> int:
    value = _read_int(key, text)
    if value < 1 or value & (value - 1):
        raise InvalidAllocatorSettingError(key, text, "must be a power of 2.")
    return value


def _format_divisions(config: AllocatorConfig) -> str:
    divisions = config.roundup_power2_divisions
    if len(set(divisions)) == 1:
        return str(divisions[0])
    # The first pair also sets all intervals below it, so the list begins with the lowest.
    return "[" + ",".join(f"{1 << i}:{value}" for i, value in enumerate(divisions)) + "]"
