"""How videos are cut and chunks are put together: nothing is lost, doubled or moved."""

import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pose_analyzer.chunk_aggregation import (
    ChunkFrame,
    ChunkPoses,
    ChunkSpan,
    DetectionSettings,
    merge_all,
    merge_chunks,
    missing_ranges,
)
from pose_analyzer.sampling import sampling_slot
from pose_analyzer.types import SourceInfo
from pose_analyzer.video_chunking import (
    RESTART_S,
    PictureTable,
    create_chunk_specs,
    n_decoded,
    plan_chunks,
)

INFO = SourceInfo("clip.mp4", 640, 360, 30.0, 900.0, 27_000)
SETTINGS = DetectionSettings("fake", 10.0, 640)


def table_of(gaps, *, first=0, time_base=Fraction(1, 90_000), fps=30.0, gop=30):
    stamps = first + np.concatenate([[0], np.cumsum(np.array(gaps, dtype=np.int64))])
    return PictureTable(stamps, stamps[::gop].copy(), time_base, fps)


def even_table(duration_s, fps=30.0, **options):
    return table_of([round(90_000 / fps)] * (round(duration_s * fps) - 1), fps=fps, **options)


def owned(chunk):
    pictures = chunk.pictures
    columns = pictures.frame_indices, pictures.times_s, pictures.stamps
    return list(zip(*(column[pictures.n_warm_up :] for column in columns), strict=True))


tables = st.builds(
    table_of,
    st.lists(st.integers(1, 60_000), min_size=1, max_size=400),
    first=st.integers(-(10**6), 10**12),
    time_base=st.sampled_from([Fraction(1, 90_000), Fraction(1, 1000), Fraction(1001, 30_000)]),
    fps=st.sampled_from([10.0, 29.97, 60.0, math.nan]),
    gop=st.integers(1, 300),
)


class TestCutting:
    @given(
        table=tables,
        chunk_s=st.floats(0.5, 40.0),
        sample_fps=st.sampled_from([None, 3.0, 10.0, 12.5]),
    )
    def test_each_sampled_picture_belongs_to_the_chunk_of_its_time(
        self, table, chunk_s, sample_fps
    ):
        (whole,) = create_chunk_specs(table, math.inf, sample_fps)
        chunks = create_chunk_specs(table, max(chunk_s, table.duration_s / 50), sample_fps)

        assert [picture for chunk in chunks for picture in owned(chunk)] == owned(whole)
        for chunk in chunks:
            assert all(chunk.start_s <= time_s < chunk.end_s for _, time_s, _ in owned(chunk))
        starts_s, ends_s = zip(*((chunk.start_s, chunk.end_s) for chunk in chunks), strict=True)
        assert starts_s == (0.0, *ends_s[:-1])
        assert ends_s[-1] == table.duration_s
        assert [chunk.index for chunk in chunks] == list(range(len(chunks)))

    @given(table=tables, chunk_s=st.floats(0.5, 40.0))
    def test_decoding_begins_at_an_entry_and_detection_where_detectors_restart(
        self, table, chunk_s
    ):
        (whole,) = create_chunk_specs(table, math.inf, 10.0)
        for chunk in create_chunk_specs(table, max(chunk_s, table.duration_s / 50), 10.0):
            pictures = chunk.pictures
            if not pictures.stamps:
                continue
            entry, *earlier = pictures.entries
            assert entry == table.entries[table.entries <= pictures.stamps[0]][-1]
            assert all(other < entry for other in earlier)
            first_s = pictures.times_s[pictures.n_warm_up]
            since_s = math.floor(first_s / RESTART_S) * RESTART_S
            expected = [t for t in whole.pictures.times_s if since_s <= t < first_s]
            assert list(pictures.times_s[: pictures.n_warm_up]) == expected

    @given(table=tables, sample_fps=st.sampled_from([3.0, 10.0, 25.0]))
    def test_times_and_sampling_are_those_of_a_reading(self, table, sample_fps):
        exact = [(int(s) - int(table.stamps[0])) * table.time_base for s in table.stamps]
        assert table.times_s.tolist() == [float(time) for time in exact]
        taken, last = [], None
        for index, time_s in enumerate(table.times_s.tolist()):
            slot = sampling_slot(time_s, sample_fps, table.fps)
            if slot != last:
                taken.append(index)
            last = slot
        assert table.sampled(sample_fps).tolist() == taken

    @pytest.mark.parametrize(
        ("duration_s", "n_chunks"), [(900.0, 30), (900.1, 30), (904.0, 31), (29.0, 1), (0.1, 1)]
    )
    def test_a_short_remainder_makes_no_chunk(self, duration_s, n_chunks):
        assert len(create_chunk_specs(even_table(duration_s), 30.0, 10.0)) == n_chunks

    def test_a_chunk_in_which_the_picture_stands_still_is_empty(self):
        chunks = create_chunk_specs(table_of([9000] * 20 + [9000 * 400] + [9000] * 20), 7.0, 10.0)
        empty = [chunk for chunk in chunks if not chunk.pictures.frame_indices]
        assert len(empty) == 5
        assert all(chunk.pictures.entries == () for chunk in empty)

    def test_a_worker_decodes_its_own_pictures_and_what_leads_to_them(self):
        table = even_table(120.0, gop=60)
        for chunk in create_chunk_specs(table, 30.0, 10.0):
            assert n_decoded(table, chunk) <= 30 * 30
        for chunk in create_chunk_specs(table, 7.0, 10.0):
            # Warming up takes 5 s, the way from the key picture 2 s.
            assert n_decoded(table, chunk) <= (7.7 + 5.0 + 2.0) * 30

    def test_a_video_with_one_key_picture_stays_in_one_piece(self):
        plan = plan_chunks(even_table(300.0, gop=10**6), 30.0, 10.0)
        assert len(plan.chunks) == 1
        assert "key pictures" in plan.in_one_piece
        assert len(owned(plan.chunks[0])) == 3000
        assert plan_chunks(even_table(300.0, gop=300), 30.0, 10.0).in_one_piece is None

    def test_wrong_arguments(self):
        table = even_table(10.0)
        with pytest.raises(ValueError, match="chunk_s"):
            create_chunk_specs(table, 0.0, 10.0)
        with pytest.raises(ValueError, match="sample_fps"):
            create_chunk_specs(table, 30.0, -1.0)
        with pytest.raises(ValueError, match="increase"):
            table_of([0, 5])
        with pytest.raises(ValueError, match="entry"):
            PictureTable(table.stamps, table.entries[1:], table.time_base, table.fps)


def chunk_poses(index, first, last, *, n_lost=0, device="cpu"):
    frames = tuple(ChunkFrame(i, i / 10, (), index) for i in range(first, last))
    span = ChunkSpan(index, first / 10, last / 10, device, n_lost)
    return ChunkPoses(INFO, SETTINGS, (span,), frames)


def summary(chunks):
    return chunks.spans, [(frame.frame_index, frame.chunk) for frame in chunks.frames]


class TestMerging:
    @given(
        cuts=st.lists(st.integers(1, 199), max_size=12, unique=True),
        overlap=st.integers(0, 5),
        data=st.data(),
    )
    def test_any_order_and_any_tree_give_the_same(self, cuts, overlap, data):
        bounds = [0, *sorted(cuts), 200]
        chunks = [
            chunk_poses(index, max(first - overlap, 0), last)
            for index, (first, last) in enumerate(pairwise(bounds))
        ]
        expected = summary(merge_all(chunks))
        waiting = data.draw(st.permutations([*chunks, *chunks[:2]]))
        while len(waiting) > 1:
            a = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
            b = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
            waiting.append(merge_chunks(a, b))

        assert summary(waiting[0]) == expected
        indices = [frame.frame_index for frame in waiting[0].frames]
        assert indices == list(range(200))
        assert missing_ranges(waiting[0], 20.0) == ()

    def test_what_is_missing(self):
        merged = merge_all([chunk_poses(3, 40, 60), chunk_poses(1, 10, 20)])
        assert missing_ranges(merged, 7.0) == ((0.0, 1.0), (2.0, 4.0), (6.0, 7.0))
        assert missing_ranges(None, 7.0) == ((0.0, 7.0),)

    def test_lost_pictures_and_devices_are_told(self):
        merged = merge_all(
            [chunk_poses(0, 0, 9, n_lost=2, device="cuda:0"), chunk_poses(1, 9, 20, n_lost=1)]
        )
        assert merged.problems == ("skipped: damaged frames (3)",)
        assert merged.devices == "cpu, cuda:0"

    def test_what_does_not_belong_together_is_refused(self):
        one = chunk_poses(0, 0, 10)
        other = ChunkPoses(INFO, DetectionSettings("other", 10.0), one.spans, one.frames)
        with pytest.raises(ValueError, match="settings"):
            merge_chunks(one, other)
        with pytest.raises(ValueError, match="two plans"):
            merge_chunks(one, chunk_poses(0, 0, 20))
        with pytest.raises(ValueError, match="no chunks"):
            merge_all([])
