"""A camera on this machine for tests: RTSP over TCP (RFC 2326), H.264 over RTP (RFC 6184)."""

import base64
import contextlib
import itertools
import re
import socket
import struct
import threading
import time
from fractions import Fraction

import av
import numpy as np

FPS = 50
WIDTH, HEIGHT = 160, 120
_MAX_PAYLOAD_BYTES = 1400
_SPS, _PPS, _IDR = 7, 8, 5
_FIRST_STAMP = 1_000_000


def encoded_pictures(n_pictures=50):
    """Pictures as lists of NAL units, a key picture every ten; noise, so that they get large."""
    context = av.CodecContext.create("libx264", "w")
    context.width, context.height, context.pix_fmt = WIDTH, HEIGHT, "yuv420p"
    context.framerate, context.time_base = FPS, Fraction(1, FPS)
    context.options = {"tune": "zerolatency", "g": "10", "crf": "20", "threads": "1"}
    noise = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    packets = []
    for index in range(n_pictures):
        frame = av.VideoFrame.from_ndarray(np.roll(noise, index, axis=1), format="bgr24")
        frame.pts = index
        packets += context.encode(frame)
    packets += context.encode(None)
    return [re.split(rb"\x00\x00\x00?\x01", bytes(packet))[1:] for packet in packets]


def rtp_payloads(nal):
    """One NAL unit as it is, or cut into FU-A fragments."""
    if len(nal) <= _MAX_PAYLOAD_BYTES:
        return [nal]
    indicator, kind = (nal[0] & 0xE0) | 28, nal[0] & 0x1F
    parts = [
        nal[start : start + _MAX_PAYLOAD_BYTES] for start in range(1, len(nal), _MAX_PAYLOAD_BYTES)
    ]
    last = len(parts) - 1
    return [
        bytes([indicator, kind | (0x80 if i == 0 else 0) | (0x40 if i == last else 0)]) + part
        for i, part in enumerate(parts)
    ]


class RtspCamera:
    """Plays its pictures to everyone who asks, over and over, at their rate.

    Parameters
    ----------
    pictures
        From `encoded_pictures`.
    port
        0 takes a free one.
    status
        Answer to DESCRIBE; None: it takes connections and never answers.
    """

    def __init__(self, pictures, port=0, status="200 OK"):
        self._pictures = pictures
        self._status = status
        self._stopped = threading.Event()
        self._frozen = False
        self._connections = []
        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = self._listener.getsockname()[1]
        self.requests = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stopped.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        for thread in self._threads:
            thread.join()

    def freeze(self):
        """Send no more pictures, but keep the connections."""
        self._frozen = True

    def _accept(self):
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _ = self._listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._connections.append(connection)
                thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection):
        with contextlib.suppress(OSError), connection.makefile("rb") as requests:
            while self._status is not None:
                lines = list(iter(lambda: requests.readline().strip().decode(), ""))
                if not lines:
                    return
                self.requests.append(lines[0])
                method = lines[0].split()[0]
                headers = dict(line.split(": ", 1) for line in lines[1:])
                connection.sendall(self._answer(method, headers["CSeq"]))
                if method == "PLAY":
                    self._play(connection)
                    return
            self._stopped.wait()

    def _answer(self, method, sequence):
        status, extra, body = "200 OK", "", ""
        if method == "DESCRIBE":
            status, body = self._status, self._description()
            extra = f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
        if method == "SETUP":
            extra = "Session: 1\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n"
        if method == "PLAY":
            extra = "Session: 1\r\n"
        return f"RTSP/1.0 {status}\r\nCSeq: {sequence}\r\n{extra}\r\n{body}".encode()

    def _description(self):
        sets = [nal for nal in self._pictures[0] if nal[0] & 0x1F in {_SPS, _PPS}]
        sprop = ",".join(base64.b64encode(nal).decode() for nal in sets)
        return (
            "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=camera\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n"
            "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:track1\r\n"
            f"a=fmtp:96 packetization-mode=1;sprop-parameter-sets={sprop}\r\n"
        )

    def _play(self, connection):
        began_s, number = time.monotonic(), 0
        for index, nals in enumerate(itertools.cycle(self._pictures)):
            if self._stopped.wait(max(0.0, began_s + index / FPS - time.monotonic())):
                return
            if self._frozen:
                continue
            # The parameter sets are in the description alone.
            slices = [nal for nal in nals if nal[0] & 0x1F <= _IDR]
            payloads = [part for nal in slices for part in rtp_payloads(nal)]
            for place, payload in enumerate(payloads, start=1):
                marker = 0x80 if place == len(payloads) else 0
                stamp = _FIRST_STAMP + index * 90_000 // FPS
                header = struct.pack(">BBHII", 0x80, 96 | marker, number & 0xFFFF, stamp, 7)
                frame = struct.pack(">cBH", b"$", 0, len(header) + len(payload))
                connection.sendall(frame + header + payload)
                number += 1
