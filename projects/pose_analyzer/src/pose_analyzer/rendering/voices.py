"""Who speaks the cues: eSpeak NG (GPL-3.0-or-later, optional extra `speech`), without a network."""

import ctypes
import importlib
import threading
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, final, runtime_checkable

import numpy as np
from jaxtyping import Int16

from pose_analyzer.errors import UnknownNameError, VoiceUnavailableError

INSTALL: Final = "Install the extra: pip install 'pose-analyzer[speech]'."


@runtime_checkable
class Voice(Protocol):
    """Turns texts into sound."""

    @property
    def rate_hz(self) -> int:
        """Samples per second."""
        ...

    def say(self, text: str) -> Int16[np.ndarray, "samples"]:
        """Speak a text, mono."""
        ...


# Of eSpeak NG's speak_lib.h, version 1.52.
_SYNCHRONOUS: Final = 2
_DO_NOT_EXIT: Final = 0x8000
_UTF8: Final = 1
_OnSound = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
)
# It keeps its state in globals.
_IN_USE: Final = threading.Lock()


@final
class EspeakVoice:
    """A voice of eSpeak NG, from its library inside the package ``espeakng-loader``.

    A context manager; one voice speaks at a time in a process.

    Parameters
    ----------
    name
        As eSpeak NG calls it: ``en``, ``en-us``, ``de``, or with a variant such as ``en+f3``.

    Raises
    ------
    VoiceUnavailableError
        The extra is not installed, or its library cannot be used here.
    UnknownNameError
        There is no such voice.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._library, self._data = _espeak()
        self._on_sound = _OnSound(self._keep)
        self._sound = bytearray()
        self._rate_hz = 0

    @property
    def rate_hz(self) -> int:
        """Samples per second."""
        return self._rate_hz

    def __enter__(self) -> "EspeakVoice":
        _IN_USE.acquire()
        try:
            self._start()
        except BaseException:
            _IN_USE.release()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._library.espeak_Terminate()
        _IN_USE.release()

    def say(self, text: str) -> Int16[np.ndarray, "samples"]:
        """Speak a text, mono.

        Raises
        ------
        VoiceUnavailableError
            The library refuses.
        """
        self._sound.clear()
        written = text.encode()
        failed = self._library.espeak_Synth(written, len(written) + 1, 0, 0, 0, _UTF8, None, None)
        if failed:
            raise VoiceUnavailableError(self._name, f"eSpeak NG fails with code {failed}.")
        return np.frombuffer(bytes(self._sound), np.int16)

    def _start(self) -> None:
        path = str(self._data).encode()
        self._rate_hz = self._library.espeak_Initialize(_SYNCHRONOUS, 0, path, _DO_NOT_EXIT)
        if self._rate_hz <= 0:
            reason = f"eSpeak NG cannot read {self._data}; longer paths than 150 letters it cuts."
            raise VoiceUnavailableError(self._name, reason)
        self._library.espeak_SetSynthCallback(self._on_sound)
        if self._library.espeak_SetVoiceByName(self._name.encode()):
            self._library.espeak_Terminate()
            raise UnknownNameError("voice", self._name, _names(self._data))

    def _keep(self, samples: "ctypes._Pointer[ctypes.c_short]", n_samples: int, _: int) -> int:
        if samples and n_samples > 0:
            self._sound += ctypes.string_at(samples, 2 * n_samples)
        return 0


def _espeak() -> tuple[ctypes.CDLL, Path]:
    """The library and its data."""
    try:
        loader = importlib.import_module("espeakng_loader")
        return ctypes.CDLL(loader.get_library_path()), Path(loader.get_data_path())
    except ImportError as error:
        raise VoiceUnavailableError("eSpeak NG", INSTALL) from error
    except (OSError, RuntimeError) as error:
        raise VoiceUnavailableError("eSpeak NG", f"{error}. {INSTALL}") from error


def _names(data: Path) -> tuple[str, ...]:
    """Languages that voices are named after."""
    return tuple(sorted(path.name for path in (data / "lang").rglob("*") if path.is_file()))
