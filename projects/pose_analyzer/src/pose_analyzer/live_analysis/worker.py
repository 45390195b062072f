"""One analysis process: ``python -m pose_analyzer.live_analysis.worker``, its socket as stdin.

It ends when the other end of the socket is closed, which happens however its parent ends.
"""

import socket
import sys
import time
from typing import Final

from pose_analyzer.errors import BackendFailedError, InvalidReferenceError, UnknownNameError
from pose_analyzer.exercises import Exercise, select_exercises
from pose_analyzer.form_library import FormFolders, FormLibrary, load_form_library
from pose_analyzer.form_types import FormChoice
from pose_analyzer.live_analysis.messages import (
    Analyse,
    Analysed,
    Change,
    Configure,
    End,
    Ended,
    Open,
    Reader,
    Ready,
    Rehearse,
    Reply,
    Request,
    poses_of,
    write,
)
from pose_analyzer.live_analysis.session import LiveSession

_READ_BYTES: Final = 1 << 18
# Each write wakes a thread of the parent, which has thousands of answers a second to pass on:
# answers to questions that came together wait this long for each other.
_COLLECT_S: Final = 1e-3


class Sessions:
    """The sessions of this process, driven by messages."""

    def __init__(self) -> None:
        self._exercises: dict[str, Exercise] = {}
        self._sessions: dict[str, LiveSession] = {}
        self._library: FormLibrary | None = None

    def handle(self, message: Request) -> Reply | None:
        """Do what is asked."""
        match message:
            case Analyse():
                return self._analyse(message)
            case Rehearse(stream_id):
                self._sessions[stream_id].rehearse()
            case Open():
                self._sessions[message.stream_id] = self._begin(message)
            case Change(stream_id, exercise):
                self._sessions[stream_id].change_exercises(
                    select_exercises(self._exercises, exercise)
                )
            case End(stream_id):
                return self._end(stream_id)
            case Configure(exercises, folders):
                loaded = [Exercise.model_validate(fields) for fields in exercises]
                self._exercises = {exercise.name: exercise for exercise in loaded}
                if folders is not None:
                    self._library = load_form_library(FormFolders.of_texts(folders))
                return Ready()
        return None

    def _begin(self, message: Open) -> LiveSession:
        selected = select_exercises(self._exercises, message.exercise)
        form, with_rows = message.form, message.with_rows
        try:
            return LiveSession(selected, self._library, form, with_rows=with_rows)
        except UnknownNameError:
            # The service has checked it, but the reference has been deleted since.
            form = FormChoice(language=form.language)
            return LiveSession(selected, self._library, form, with_rows=with_rows)
        except InvalidReferenceError:
            # Spoiled since. Counting goes on.
            return LiveSession(selected, with_rows=with_rows)

    def _end(self, stream_id: str) -> Ended | None:
        session = self._sessions.pop(stream_id)
        return Ended(session.finish()) if session.with_rows else None

    def _analyse(self, message: Analyse) -> Analysed:
        session = self._sessions[message.stream_id]
        try:
            done = session.analyse(
                message.frame_index, message.time_s, poses_of(message), message.encoding
            )
        except BackendFailedError as error:
            return Analysed(error=error.reason)
        return Analysed(
            people=done.people,
            n_people=done.n_people,
            n_new_repetitions=done.n_new_repetitions,
            analyse_s=done.analyse_s,
            rows=done.rows,
            repetitions=done.repetitions,
        )


def serve(connection: socket.socket) -> None:
    """Answer until the other end is closed."""
    sessions, reader = Sessions(), Reader()
    while data := connection.recv(_READ_BYTES):
        replies, sent_s = b"", time.perf_counter()
        for message in reader.requests(data):
            reply = sessions.handle(message)
            if reply is not None:
                replies += write(reply)
            if time.perf_counter() - sent_s > _COLLECT_S:
                connection.sendall(replies)
                replies, sent_s = b"", time.perf_counter()
        connection.sendall(replies)


if __name__ == "__main__":
    with socket.socket(fileno=sys.stdin.fileno()) as parent:
        try:
            serve(parent)
        except (BrokenPipeError, ConnectionResetError):
            sys.exit(1)
