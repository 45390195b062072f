"""A spoken track of the cues: what is said when, as a WAV file and as the sound of a video."""

import wave
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from jaxtyping import Int16

from pose_analyzer.form_types import FormUpdate
from pose_analyzer.rendering.voices import Voice

PAUSE_S: Final = 0.3
"""Between two texts."""
TOO_LATE_S: Final = 4.0
"""What cannot be said within so much of its time is left out: it would be about something else."""
_BLOCK_S: Final = 1.0
_BIT_RATE: Final = 64_000


@dataclass(frozen=True, slots=True, eq=False)
class Utterance:
    """One text, spoken."""

    begin_s: float
    text: str
    samples: Int16[np.ndarray, "samples"]


@dataclass(frozen=True, slots=True, eq=False)
class SpokenTrack:
    """Everything that is said, one thing after the other."""

    rate_hz: int
    utterances: tuple[Utterance, ...]

    @property
    def end_s(self) -> float:
        """When the last word is spoken; 0 if there is none."""
        if not self.utterances:
            return 0.0
        last = self.utterances[-1]
        return last.begin_s + len(last.samples) / self.rate_hz

    def blocks(self, end_s: float = 0.0) -> Iterator[Int16[np.ndarray, "samples"]]:
        """Sound from 0 on without a gap, silence included, until `end_s` or the last word."""
        n_done = 0
        for utterance in self.utterances:
            begin = round(utterance.begin_s * self.rate_hz)
            yield from self._silence(begin - n_done)
            yield utterance.samples
            n_done = begin + len(utterance.samples)
        yield from self._silence(round(end_s * self.rate_hz) - n_done)

    def _silence(self, n_samples: int) -> Iterator[Int16[np.ndarray, "samples"]]:
        block = round(_BLOCK_S * self.rate_hz)
        for begin in range(0, n_samples, block):
            yield np.zeros(min(block, n_samples - begin), np.int16)


def speak_cues(forms: Iterable[FormUpdate], voice: Voice) -> SpokenTrack:
    """Have all cues spoken, each at its time, or as soon as the one before has been said.

    Where several people get cues, each is preceded by the person's number.

    Parameters
    ----------
    forms
        What was said of the repetitions, with the cues.
    voice
        Who speaks.
    """
    told = [(form.track_id, form.cue) for form in forms if form.cue is not None]
    several = len({track_id for track_id, _ in told}) > 1
    utterances: list[Utterance] = []
    free_s = 0.0
    for track_id, cue in sorted(told, key=lambda one: one[1].time_s):
        begin_s = max(cue.time_s, free_s)
        if begin_s - cue.time_s > TOO_LATE_S:
            continue
        text = f"{track_id}: {cue.text}" if several else cue.text
        samples = voice.say(text)
        utterances.append(Utterance(begin_s, text, samples))
        free_s = begin_s + len(samples) / voice.rate_hz + PAUSE_S
    return SpokenTrack(voice.rate_hz, tuple(utterances))


def write_wav(track: SpokenTrack, path: Path, end_s: float = 0.0) -> None:
    """Write the whole track as 16 bit mono, from 0 to `end_s` at least; whole or not at all."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with wave.open(str(partial), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(track.rate_hz)
            for samples in track.blocks(end_s):
                file.writeframes(samples.astype("<i2", copy=False).tobytes())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def add_sound(video: Path, track: SpokenTrack, end_s: float = 0.0) -> None:
    """Give a video the track as its sound (AAC); pictures are copied as they are.

    Parameters
    ----------
    video
        MP4, replaced in one step.
    track
        Its time 0 is the video's.
    end_s
        How long the sound lasts at least.
    """
    partial = video.with_name(f".{video.name}.partial")
    try:
        with (
            av.open(str(video)) as source,
            av.open(str(partial), "w", format="mp4", options={"movflags": "+faststart"}) as out,
        ):
            pictures = source.streams.video[0]
            copied = out.add_stream_from_template(pictures)
            sound = out.add_stream("aac", rate=track.rate_hz)
            sound.layout, sound.bit_rate = "mono", _BIT_RATE
            spoken = _Encoder(out, sound, track.blocks(end_s))
            for packet in source.demux(pictures):
                if packet.dts is None or packet.time_base is None:
                    continue
                spoken.write_until(float(packet.dts * packet.time_base))
                packet.stream = copied
                out.mux(packet)
            spoken.write_until(float("inf"))
        partial.replace(video)
    finally:
        partial.unlink(missing_ok=True)


class _Encoder:
    """Writes sound into a file a little ahead of its pictures, so that players need not search."""

    def __init__(
        self, out: OutputContainer, stream: AudioStream, blocks: Iterable[np.ndarray]
    ) -> None:
        self._out, self._stream, self._blocks = out, stream, iter(blocks)
        self._n_samples = 0
        self._ended = False

    def write_until(self, time_s: float) -> None:
        rate_hz = self._stream.rate
        while not self._ended and self._n_samples <= time_s * rate_hz:
            samples: Sequence[int] | np.ndarray | None = next(self._blocks, None)
            if samples is None:
                self._out.mux(self._stream.encode(None))
                self._ended = True
                return
            frame = av.AudioFrame.from_ndarray(np.asarray(samples)[None], "s16", "mono")
            frame.sample_rate, frame.pts = rate_hz, self._n_samples
            frame.time_base = Fraction(1, rate_hz)
            self._out.mux(self._stream.encode(frame))
            self._n_samples += frame.samples
