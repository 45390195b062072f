"""Workers claim, work, report and give back, whatever happens meanwhile."""

import threading
import time

import pytest

from pose_analyzer.errors import DatabaseUnavailableError
from pose_analyzer.video_jobs.heartbeat import Heartbeat
from pose_analyzer.video_jobs.work_loop import WorkLoop, reported

AWAY = DatabaseUnavailableError("here", "for a moment")
SOON_S = 10.0


class Nap:
    def wait(self, timeout_s):
        time.sleep(min(timeout_s, 0.01))


class ScriptedDuty:
    """Claims what stands in a list, errors among it, and remembers what became of it."""

    lease_s = 0.06

    def __init__(self, claims, perform=lambda claimed, check: None, renewals=True):
        self.claims = list(claims)
        self.done, self.released = [], []
        self._perform = perform
        self.renewals = renewals

    def claim(self):
        claimed = self.claims.pop(0) if self.claims else None
        if isinstance(claimed, Exception):
            raise claimed
        return claimed

    def renew(self, claimed):
        return self.renewals

    def perform(self, claimed, check):
        self._perform(claimed, check)
        self.done.append(claimed)

    def release(self, claimed):
        self.released.append(claimed)


def run(duty, **options):
    return WorkLoop(duty, Nap(), idle_s=0.02, poll_s=0.01, **options).run()


def wait_for_the_end(claimed, check):
    give_up_s = time.monotonic() + SOON_S
    while time.monotonic() < give_up_s:
        check()
        time.sleep(0.005)


def test_all_there_is_gets_done():
    duty = ScriptedDuty(["a", "b", None, "c"])
    assert run(duty) == 3
    assert duty.done == ["a", "b", "c"]


def test_a_database_that_is_away_is_asked_again():
    duty = ScriptedDuty([AWAY, "a"])
    assert run(duty) == 1


def test_who_cannot_report_goes_on_with_the_next():
    def perform(claimed, check):
        if claimed == "a":
            raise AWAY

    duty = ScriptedDuty(["a", "b"], perform)
    run(duty)
    assert (duty.done, duty.released) == (["b"], [])


def test_lost_work_is_abandoned_and_not_given_back():
    duty = ScriptedDuty(["a"], wait_for_the_end, renewals=False)
    run(duty)
    assert (duty.done, duty.released) == ([], [])


def test_a_worker_that_is_stopped_gives_back_what_it_cannot_finish():
    duty = ScriptedDuty(["a", "b"], wait_for_the_end)
    loop = WorkLoop(duty, Nap(), grace_s=0.05)
    threading.Timer(0.05, loop.stop).start()
    loop.run()
    assert (duty.done, duty.released, duty.claims) == ([], ["a"], ["b"])


def test_a_worker_that_is_stopped_finishes_what_it_can():
    duty = ScriptedDuty(["a"], lambda claimed, check: loop.stop())
    loop = WorkLoop(duty, Nap(), grace_s=SOON_S)
    loop.run()
    assert duty.done == ["a"]


def test_a_defect_is_not_hidden():
    def perform(claimed, check):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(ScriptedDuty(["a"], perform))


def test_a_lease_outlives_a_database_that_is_away_for_a_moment():
    answers = iter([AWAY, True])
    renewed = threading.Event()

    def renew():
        answer = next(answers, True)
        if isinstance(answer, Exception):
            raise answer
        renewed.set()
        return answer

    with Heartbeat(renew, lease_s=5.0 * 0.06) as heartbeat:
        assert renewed.wait(SOON_S)
        assert not heartbeat.lost


def test_a_lease_is_lost_when_the_database_stays_away():
    def renew():
        raise AWAY

    with Heartbeat(renew, lease_s=0.03) as heartbeat:
        give_up_s = time.monotonic() + SOON_S
        while not heartbeat.lost:
            assert time.monotonic() < give_up_s
            time.sleep(0.005)


def test_reports_are_tried_again_within_limits():
    answers = iter([AWAY, True])

    def report():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert reported(report, patience_s=SOON_S)

    def away():
        raise AWAY

    with pytest.raises(DatabaseUnavailableError):
        reported(away, patience_s=0.0)
