"""Pure parts: waiting times, clocks, sampling, addresses, images."""

import io
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from pose_analyzer_client import InvalidAddressError, ReconnectPolicy, UnreadableImageError, images
from pose_analyzer_client.addresses import ServiceAddress
from pose_analyzer_client.capture_clock import CaptureClock
from pose_analyzer_client.frame_sources import Sampler
from pose_analyzer_client.images import encode_image


@given(
    first=st.floats(0.01, 10.0),
    factor=st.floats(1.0, 100.0),
    n=st.integers(0, 40),
    drawn=st.floats(0.0, 1.0),
)
def test_waits_are_drawn_below_a_bound_that_doubles_up_to_its_limit(first, factor, n, drawn):
    policy = ReconnectPolicy(first, first * factor, max_attempts=n, random=lambda: drawn)
    delays_s = list(policy.delays_s())
    bounds_s = [min(first * 2**k, first * factor) for k in range(n)]
    assert delays_s == pytest.approx([drawn * bound_s for bound_s in bounds_s])


def test_waits_of_many_clients_spread_evenly():
    delays_s = [next(ReconnectPolicy(1.0, 1.0).delays_s()) for _ in range(2_000)]
    assert np.histogram(delays_s, bins=4, range=(0.0, 1.0))[0].min() > 350


@pytest.mark.parametrize(
    "wrong", [{"first_delay_s": 0.0}, {"first_delay_s": 9.0}, {"max_attempts": -1}]
)
def test_impossible_policies_are_refused(wrong):
    with pytest.raises(ValueError, match="must"):
        ReconnectPolicy(**wrong)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.lists(st.floats(0.0, 1.0), min_size=1))
def test_told_times_always_increase(captured_s, waits_s):
    clock, now_s, told_s = CaptureClock(), 0.0, []
    for n, time_s in enumerate(captured_s):
        now_s += waits_s[n % len(waits_s)]
        told_s.append(clock.stamp(time_s, now_s))
    kept_s = [time_s for time_s in told_s if time_s is not None]
    assert all(late > early for early, late in itertools.pairwise(kept_s))
    assert kept_s[0] == captured_s[0]


def test_the_first_clock_is_told_as_it_is_and_the_next_is_joined_to_it():
    clock = CaptureClock()
    assert [clock.stamp(n / 30, 100.0) for n in range(90)] == [n / 30 for n in range(90)]
    assert clock.stamp(89 / 30, 100.0) is None
    joined_s = [clock.stamp(n / 30, 104.0) for n in range(3)]
    assert joined_s == pytest.approx([89 / 30 + 4.0 + n / 30 for n in range(3)])


@given(every=st.integers(1, 6), shifts=st.lists(st.floats(-0.12, 0.12), min_size=12, max_size=24))
def test_sampling_takes_every_so_many_frames_whatever_the_jitter(every, shifts):
    sampler, whole = Sampler(30.0 / every, 30.0), Sampler(None, 30.0)
    times_s = [(n + shift) / 30 for n, shift in enumerate(shifts)]
    assert [sampler.takes(time_s) for time_s in times_s] == [
        n % every == 0 for n in range(len(times_s))
    ]
    assert all(whole.takes(time_s) for time_s in times_s)


def test_sampling_at_the_sources_rate_loses_no_jittering_frame():
    sampler = Sampler(30.0, 30.0)
    times_s = np.round(np.arange(300) / 30, 3)
    assert all(sampler.takes(float(time_s)) for time_s in times_s)


@pytest.mark.parametrize(
    ("given_address", "http", "ws"),
    [
        ("ws://localhost:8001", "http://localhost:8001", "ws://localhost:8001"),
        ("http://localhost:8001/", "http://localhost:8001", "ws://localhost:8001"),
        ("wss://pose.example/v1/", "https://pose.example/v1", "wss://pose.example/v1"),
        ("https://[::1]:9", "https://[::1]:9", "wss://[::1]:9"),
    ],
)
def test_all_schemes_name_the_same_service(given_address, http, ws):
    address = ServiceAddress.parse(given_address)
    assert (address.http, address.ws) == (http, ws)


@pytest.mark.parametrize(
    "wrong", ["localhost:8001", "ftp://host", "ws://", "ws://host:port", "ws://host?x=1", ""]
)
def test_other_addresses_are_refused(wrong):
    with pytest.raises(InvalidAddressError, match="ws://localhost:8001"):
        ServiceAddress.parse(wrong)


def test_streams_are_found_where_the_service_says():
    plain, secure = (ServiceAddress.parse(text) for text in ("ws://a:1", "https://a:1/pose"))
    assert plain.websocket("ws://b:2/stream/x") == "ws://b:2/stream/x"
    assert plain.websocket("/stream/x") == "ws://a:1/stream/x"
    assert secure.websocket("stream/x") == "wss://a:1/pose/stream/x"
    assert secure.websocket("ws://a:1/pose/stream/x") == "wss://a:1/pose/stream/x"


def decode_rgb(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("opencv", [True, False])
def test_colours_arrive_as_they_are_whatever_encodes_them(monkeypatch, opencv):
    if not opencv:
        monkeypatch.setattr(images, "_cv2", None)
    red = np.zeros((32, 48, 3), np.uint8)
    red[..., 0] = 255
    grey = np.full((32, 48), 90, np.uint8)
    sent = {
        "rgb": encode_image(red, "rgb", 95),
        "bgr": encode_image(red[..., ::-1], "bgr", 95),
        "pil": encode_image(Image.fromarray(red), "bgr", 95),
        "turned": encode_image(np.rot90(red), "rgb", 95),
    }
    for data in sent.values():
        assert decode_rgb(data).mean((0, 1)) == pytest.approx([254, 0, 0], abs=3)
    assert decode_rgb(sent["turned"]).shape == (48, 32, 3)
    assert decode_rgb(encode_image(grey, "bgr", 95)).mean() == pytest.approx(90, abs=2)


def test_pictures_become_upright_and_keep_no_other_metadata():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "a camera"
    buffer = io.BytesIO()
    Image.new("RGBA", (48, 32)).convert("RGB").save(buffer, "JPEG", exif=exif)
    sent = Image.open(io.BytesIO(encode_image(Image.open(buffer), "bgr", 85)))
    assert sent.size == (32, 48)
    assert not sent.getexif()
    transparent = encode_image(Image.new("RGBA", (8, 8)), "bgr", 85)
    assert Image.open(io.BytesIO(transparent)).format == "JPEG"


@pytest.mark.parametrize(
    "wrong",
    [
        b"",
        "squat.jpg",
        None,
        3,
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 3)),
        np.zeros(4, np.uint8),
        np.zeros((70_000, 1), np.uint8),
    ],
)
def test_what_is_no_image_is_refused_with_the_reason(wrong):
    with pytest.raises(UnreadableImageError, match="Not an image"):
        encode_image(wrong, "bgr", 85)


@given(st.binary(min_size=1))
def test_encoded_pictures_pass_unchanged(data):
    assert encode_image(memoryview(data), "bgr", 85) == data
