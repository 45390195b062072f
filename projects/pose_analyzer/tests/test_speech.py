"""Cues are spoken at their times, one after the other, into a file and into the overlay."""

import wave
from itertools import pairwise

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pose_analyzer.errors import UnknownNameError, VoiceUnavailableError
from pose_analyzer.form_types import Cue, FormUpdate
from pose_analyzer.rendering import EspeakVoice, add_sound, speak_cues, voices, write_wav
from pose_analyzer.rendering.speech import TOO_LATE_S

from .video_files import at_rate, write_video

RATE_HZ = 8000


class Beeper:
    """Says every letter in a twentieth of a second."""

    rate_hz = RATE_HZ

    def say(self, text):
        return np.full(len(text) * RATE_HZ // 20, 12_000, np.int16)


def cue(time_s, text="Go deeper.", track_id=1):
    said = Cue("correct.x", text, "correction", "x", 1, time_s)
    return FormUpdate(track_id, 1, None, (), (), None, said)


def samples_of(track, end_s=0.0):
    blocks = list(track.blocks(end_s))
    return np.concatenate(blocks) if blocks else np.zeros(0, np.int16)


def test_each_cue_is_heard_at_its_time():
    track = speak_cues([cue(2.0), cue(5.5), FormUpdate(1, 3, None, (), (), None, None)], Beeper())
    samples = samples_of(track, 8.0)
    assert len(samples) == 8 * RATE_HZ
    loud_s = np.flatnonzero(samples) / RATE_HZ
    assert (loud_s[0], loud_s[-1]) == (2.0, pytest.approx(6.0, abs=0.001))
    assert not samples[round(2.51 * RATE_HZ) : round(5.49 * RATE_HZ)].any()


@given(st.lists(st.tuples(st.floats(0.0, 60.0), st.integers(1, 60), st.integers(1, 3))))
def test_nobody_is_interrupted_and_nothing_comes_too_late(told):
    track = speak_cues([cue(time_s, "x" * n, person) for time_s, n, person in told], Beeper())
    for one, other in pairwise(track.utterances):
        assert other.begin_s > one.begin_s + len(one.samples) / RATE_HZ
    begins_s = [one.begin_s for one in track.utterances]
    for begin_s in begins_s:
        assert any(0.0 <= begin_s - time_s <= TOO_LATE_S for time_s, _, _ in told)
    assert len(samples_of(track)) == pytest.approx(track.end_s * RATE_HZ, abs=2)


def test_several_people_are_told_apart():
    one = speak_cues([cue(1.0), cue(9.0)], Beeper())
    two = speak_cues([cue(1.0), cue(9.0, track_id=2)], Beeper())
    assert [said.text for said in one.utterances] == ["Go deeper.", "Go deeper."]
    assert [said.text for said in two.utterances] == ["1: Go deeper.", "2: Go deeper."]


def test_a_file_to_listen_to(tmp_path):
    path = tmp_path / "speech.wav"
    write_wav(speak_cues([cue(1.0)], Beeper()), path, 3.0)
    with wave.open(str(path)) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE_HZ, 1, 2)
        assert file.getnframes() == 3 * RATE_HZ
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("cues_s", [(), (1.0,), (0.5, 3.8)])
def test_the_video_keeps_its_pictures_and_gets_sound(tmp_path, cues_s):
    path = write_video(tmp_path / "overlay.mp4", at_rate(25, 4), options={"movflags": "faststart"})
    before = pictures_of(path)
    track = speak_cues([cue(time_s) for time_s in cues_s], Beeper())
    add_sound(path, track, 4.0)
    assert pictures_of(path) == before
    sound = sound_of(path)
    assert len(sound) == pytest.approx(max(4.0, track.end_s) * RATE_HZ, abs=2100)
    loud = np.abs(sound) > 0.1
    for time_s in cues_s:
        assert loud[round((time_s + 0.1) * RATE_HZ) : round((time_s + 0.4) * RATE_HZ)].mean() > 0.5
        if time_s > 0.5:
            assert not loud[round((time_s - 0.4) * RATE_HZ) : round((time_s - 0.1) * RATE_HZ)].any()
    assert list(tmp_path.iterdir()) == [path]


def pictures_of(path):
    with av.open(str(path)) as container:
        return [(picture.time, bytes(picture.planes[0])) for picture in container.decode(video=0)]


def sound_of(path):
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray()[0] for frame in container.decode(audio=0)]
    return np.concatenate(frames)


@pytest.fixture
def _espeak():
    pytest.importorskip("espeakng_loader", reason="needs the extra speech")


@pytest.mark.usefixtures("_espeak")
class TestEspeak:
    @pytest.mark.parametrize(
        ("name", "text"), [("en", "Keep your heels down."), ("de", "Drück die Knie nach außen.")]
    )
    def test_it_speaks(self, name, text):
        with EspeakVoice(name) as voice:
            samples = voice.say(text)
            again = voice.say(text)
            longer = voice.say(f"{text} {text}")
        assert 0.6 < len(samples) / voice.rate_hz < 4.0
        assert np.abs(samples.astype(float)).max() > 5000
        assert len(again) == pytest.approx(len(samples), rel=0.05)
        assert len(longer) > 1.5 * len(samples)

    def test_voices_differ(self):
        spoken = []
        for name in ("en", "en+f3"):
            with EspeakVoice(name) as voice:
                spoken.append(voice.say("Go a little deeper."))
        assert not np.array_equal(*(one[:8000] for one in spoken))

    def test_an_unknown_one_is_named_with_the_known(self):
        with pytest.raises(UnknownNameError, match="nobody") as caught, EspeakVoice("nobody"):
            pass
        assert {"en", "de"} <= set(caught.value.known)
        # The library can be used again.
        with EspeakVoice("en") as voice:
            assert len(voice.say("Good.")) > 0


def test_without_the_extra_it_is_said_what_to_install(monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(voices.importlib, "import_module", missing)
    with pytest.raises(VoiceUnavailableError, match=r"pose-analyzer\[speech\]"):
        EspeakVoice("en")
