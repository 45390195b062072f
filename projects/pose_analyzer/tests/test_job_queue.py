"""The queue in PostgreSQL: each chunk is counted once, whoever dies and whenever."""

import uuid
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select, update

from pose_analyzer.storage.chunk_claims import (
    claim_chunk,
    complete_chunk,
    fail_chunk,
    release_chunk,
    renew_chunk,
)
from pose_analyzer.storage.job_claims import (
    claim_job,
    fail_job,
    finish_job,
    owned_job,
    release_job,
    renew_job,
)
from pose_analyzer.storage.jobs import add_job, cancel_job, chunks_of, queue_depth
from pose_analyzer.storage.leases import RetryPolicy
from pose_analyzer.storage.models import (
    DeepMode,
    ExerciseSession,
    SessionKind,
    Video,
    VideoAnalysisChunk,
    VideoAnalysisChunkStatus,
    VideoAnalysisJob,
    VideoAnalysisJobStatus,
    VideoState,
)

POLICY = RetryPolicy(backoff_s=0.0)
ANY = tuple(DeepMode)
CPU = (DeepMode.CPU, DeepMode.AUTO)


def new_job(database, n_chunks=3, mode=DeepMode.AUTO):
    with database.session() as session:
        owner = ExerciseSession(session_id=uuid.uuid4(), kind=SessionKind.RECORDED)
        session.add(owner)
        session.flush()
        video = Video(
            video_id=uuid.uuid4(),
            session_id=owner.session_id,
            filename="squats.mp4",
            artifact_key="key",
            state=VideoState.STORED,
            size_bytes=1,
            part_bytes=1,
            upload={},
            duration_s=30.0 * n_chunks,
        )
        session.add(video)
        session.flush()
        bounds_s = [(30.0 * n, 30.0 * n + 30.0) for n in range(n_chunks)]
        return add_job(session, video, mode, {"exercise": "squat"}, bounds_s).job_id


def claim(database, modes=ANY, policy=POLICY):
    with database.session() as session:
        return claim_chunk(session, uuid.uuid4(), modes, policy)


def report(database, function, *args, **options):
    with database.session() as session:
        return function(session, *args, **options)


def complete(database, claimed):
    return report(database, complete_chunk, claimed, f"chunk_{claimed.chunk_index}", 5)


def let_leases_run_out(database, model=VideoAnalysisChunk):
    with database.session() as session:
        session.execute(
            update(model)
            .where(model.lease_until.is_not(None))
            .values(lease_until=func.now() - timedelta(seconds=1))
        )


def job_of(database, job_id):
    with database.session() as session:
        job = session.get_one(VideoAnalysisJob, job_id)
        session.expunge(job)
        return job


def test_chunks_are_claimed_in_order_each_by_one(database):
    job_id = new_job(database)
    assert job_of(database, job_id).status is VideoAnalysisJobStatus.QUEUED
    claims = [claim(database) for _ in range(3)]
    assert [one.chunk_index for one in claims] == [0, 1, 2]
    assert (claims[1].start_s, claims[1].end_s, claims[1].attempt) == (30.0, 60.0, 1)
    assert claim(database) is None
    job = job_of(database, job_id)
    assert job.status is VideoAnalysisJobStatus.PROCESSING
    assert job.started_at is not None


def test_workers_that_claim_at_once_do_not_wait_for_each_other(database):
    new_job(database)
    with database.session() as first, database.session() as second:
        one = claim_chunk(first, uuid.uuid4(), ANY, POLICY)
        two = claim_chunk(second, uuid.uuid4(), ANY, POLICY)
        assert (one.chunk_index, two.chunk_index) == (0, 1)


def test_the_last_chunk_sends_the_job_on(database):
    job_id = new_job(database, n_chunks=2)
    claims = [claim(database), claim(database)]
    assert complete(database, claims[1])
    assert report(database, claim_job, uuid.uuid4(), POLICY) is None
    assert complete(database, claims[0])
    assert job_of(database, job_id).status is VideoAnalysisJobStatus.DEEP_RUNNING
    claimed = report(database, claim_job, uuid.uuid4(), POLICY)
    assert claimed.chunk_keys == ("chunk_0", "chunk_1")
    assert report(database, claim_job, uuid.uuid4(), POLICY) is None
    with database.session() as session:
        finish_job(session, owned_job(session, claimed))
    job = job_of(database, job_id)
    assert job.status is VideoAnalysisJobStatus.DONE
    assert job.finished_at >= job.started_at


def test_who_was_taken_for_dead_changes_nothing(database):
    job_id = new_job(database, n_chunks=1)
    slow = claim(database)
    let_leases_run_out(database)
    quick = claim(database)
    assert quick.attempt == 2
    assert not report(database, renew_chunk, slow, POLICY)
    assert not complete(database, slow)
    assert not report(database, fail_chunk, slow, "late", POLICY)
    assert not report(database, release_chunk, slow)
    assert report(database, renew_chunk, quick, POLICY)
    assert complete(database, quick)
    assert not complete(database, quick)
    assert job_of(database, job_id).completed_chunks == 1


def test_a_late_report_counts_while_nobody_else_has_taken_over(database):
    new_job(database, n_chunks=1)
    slow = claim(database)
    let_leases_run_out(database)
    assert complete(database, slow)


def test_an_error_is_tried_again_and_then_fails_the_job(database):
    job_id = new_job(database, n_chunks=2)
    for attempt in range(1, POLICY.max_errors + 1):
        claimed = claim(database)
        assert (claimed.chunk_index, claimed.attempt) == (0, attempt)
        assert report(database, fail_chunk, claimed, "the detector broke", POLICY)
    job = job_of(database, job_id)
    assert job.status is VideoAnalysisJobStatus.FAILED
    assert job.error == "chunk 0 (0.0 to 30.0 s): the detector broke"
    assert claim(database) is None


def test_what_would_fail_again_is_not_tried_again(database):
    job_id = new_job(database)
    assert report(database, fail_chunk, claim(database), "not a video", POLICY, final=True)
    assert job_of(database, job_id).status is VideoAnalysisJobStatus.FAILED


def test_an_error_waits_before_it_is_tried_again(database):
    new_job(database, n_chunks=1)
    report(database, fail_chunk, claim(database), "busy", RetryPolicy(backoff_s=60.0))
    assert claim(database) is None


def test_killed_workers_are_not_the_chunks_fault_up_to_a_point(database):
    job_id = new_job(database, n_chunks=1)
    for _ in range(POLICY.max_lost):
        assert claim(database) is not None
        let_leases_run_out(database)
    assert claim(database) is None
    job = job_of(database, job_id)
    assert job.status is VideoAnalysisJobStatus.FAILED
    assert "10 workers ended" in job.error


def test_a_chunk_given_back_costs_no_attempt(database):
    new_job(database, n_chunks=1)
    assert report(database, release_chunk, claim(database))
    assert claim(database).attempt == 1


def test_workers_take_what_their_machine_may(database):
    new_job(database, n_chunks=1, mode=DeepMode.GPU)
    assert claim(database, modes=CPU) is None
    assert claim(database, modes=(DeepMode.GPU, DeepMode.AUTO)) is not None


def test_a_cancelled_job_is_left_alone(database):
    job_id = new_job(database)
    claimed = claim(database)
    report(database, cancel_job, job_id)
    assert not report(database, renew_chunk, claimed, POLICY)
    assert claim(database) is None
    assert complete(database, claimed)
    assert job_of(database, job_id).status is VideoAnalysisJobStatus.CANCELLED
    report(database, cancel_job, job_id)
    assert report(database, cancel_job, uuid.uuid4()) is None


def test_aggregation_is_leased_and_tried_again_too(database):
    job_id = new_job(database, n_chunks=1)
    complete(database, claim(database))
    dead = report(database, claim_job, uuid.uuid4(), POLICY)
    assert report(database, renew_job, dead, POLICY)
    let_leases_run_out(database, VideoAnalysisJob)
    claimed = report(database, claim_job, uuid.uuid4(), POLICY)
    assert not report(database, renew_job, dead, POLICY)
    assert report(database, owned_job, dead) is None
    assert report(database, release_job, claimed)
    for _ in range(POLICY.max_errors):
        claimed = report(database, claim_job, uuid.uuid4(), POLICY)
        assert report(database, fail_job, claimed, "no room", POLICY)
    job = job_of(database, job_id)
    assert (job.status, job.error) == (VideoAnalysisJobStatus.FAILED, "no room")


def test_an_aggregation_that_kills_its_workers_ends(database):
    job_id = new_job(database, n_chunks=1)
    complete(database, claim(database))
    while report(database, claim_job, uuid.uuid4(), POLICY) is not None:
        let_leases_run_out(database, VideoAnalysisJob)
    assert job_of(database, job_id).status is VideoAnalysisJobStatus.FAILED


def test_depth_of_the_queue(database):
    new_job(database, n_chunks=3)
    claim(database)
    depth = report(database, queue_depth)
    assert (depth.queued_chunks, depth.processing_chunks, depth.failed_chunks) == (2, 1, 0)
    assert depth.oldest_queued_s >= 0.0


STEPS = st.lists(
    st.sampled_from(["claim", "complete", "fail", "die", "release", "late", "cut"]), max_size=40
)


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(STEPS, st.integers(1, 4))
def test_whatever_happens_each_chunk_is_counted_once(database, steps, n_chunks):
    job_id = new_job(database, n_chunks)
    held, dead = [], []
    for step in steps:
        if step == "claim":
            claimed = claim(database)
            held += [claimed] if claimed is not None and claimed.job_id == job_id else []
        elif step == "cut":
            let_leases_run_out(database)
        elif step == "late" and dead:
            complete(database, dead.pop())
        elif step == "die" and held:
            dead.append(held.pop(0))
        elif step == "complete" and held:
            complete(database, held.pop(0))
        elif step == "fail" and held:
            report(database, fail_chunk, held.pop(0), "error", POLICY)
        elif step == "release" and held:
            report(database, release_chunk, held.pop(0))
        check(database, job_id)
    report(database, cancel_job, job_id)


def check(database, job_id):
    with database.session() as session:
        job = session.get_one(VideoAnalysisJob, job_id)
        chunks = chunks_of(session, job_id)
        done = [one for one in chunks if one.status is VideoAnalysisChunkStatus.COMPLETED]
        assert job.completed_chunks == len(done)
        assert all(one.artifact_key is not None for one in done)
        failed = any(one.status is VideoAnalysisChunkStatus.FAILED for one in chunks)
        assert failed == (job.status is VideoAnalysisJobStatus.FAILED)
        aggregating = job.status is VideoAnalysisJobStatus.DEEP_RUNNING
        assert aggregating == (len(done) == job.total_chunks)
        n_leased = session.scalar(
            select(func.count())
            .select_from(VideoAnalysisChunk)
            .where(
                VideoAnalysisChunk.job_id == job_id,
                (VideoAnalysisChunk.lease_owner.is_not(None))
                != (VideoAnalysisChunk.status == VideoAnalysisChunkStatus.PROCESSING),
            )
        )
        assert n_leased == 0


@pytest.mark.parametrize("bounds_s", [[], [(0.0, 1.0)]])
def test_a_job_needs_chunks_and_a_duration(database, bounds_s):
    with database.session() as session, pytest.raises(ValueError, match="needs chunks"):
        add_job(session, Video(duration_s=None), DeepMode.AUTO, {}, bounds_s)
