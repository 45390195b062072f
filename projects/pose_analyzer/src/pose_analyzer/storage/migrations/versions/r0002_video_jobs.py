"""Uploaded videos and their analysis in chunks."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the tables."""
    _create_videos()
    _create_video_analysis_jobs()
    _create_video_analysis_chunks()


def downgrade() -> None:
    """Remove them; the sessions of analysed videos stay."""
    op.drop_table("video_analysis_chunks")
    op.drop_table("video_analysis_jobs")
    op.drop_table("videos")


def _create_videos() -> None:
    op.create_table(
        "videos",
        sa.Column("video_id", sa.Uuid(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("artifact_key", sa.Text(), nullable=False),
        sa.Column(
            "state",
            sa.Enum(
                "uploading",
                "stored",
                "refused",
                name="videostate",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.Text(), nullable=True),
        sa.Column("part_bytes", sa.BigInteger(), nullable=False),
        sa.Column("upload", postgresql.JSONB(), nullable=False),
        sa.Column("duration_s", sa.Float(precision=53), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.CheckConstraint("size_bytes > 0", name=op.f("ck_videos_size_bytes_positive")),
        sa.ForeignKeyConstraint(
            ["session_id"],
            ["sessions.session_id"],
            name=op.f("fk_videos_session_id_sessions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("video_id", name=op.f("pk_videos")),
    )
    op.create_index(op.f("ix_videos_session_id"), "videos", ["session_id"])


def _create_video_analysis_jobs() -> None:
    op.create_table(
        "video_analysis_jobs",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("video_id", sa.Uuid(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column(
            "deep_mode",
            sa.Enum(
                "gpu",
                "cpu",
                "auto",
                name="deepmode",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column(
            "status",
            sa.Enum(
                "queued",
                "processing",
                "deep_running",
                "done",
                "failed",
                "cancelled",
                name="videoanalysisjobstatus",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("options", postgresql.JSONB(), nullable=False),
        sa.Column("total_chunks", sa.Integer(), nullable=False),
        sa.Column("completed_chunks", sa.Integer(), nullable=False),
        sa.Column("video_duration_seconds", sa.Float(precision=53), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("n_lost", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.Uuid(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "completed_chunks BETWEEN 0 AND total_chunks",
            name=op.f("ck_video_analysis_jobs_completed_chunks_within_total"),
        ),
        sa.ForeignKeyConstraint(
            ["session_id"],
            ["sessions.session_id"],
            name=op.f("fk_video_analysis_jobs_session_id_sessions"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["video_id"],
            ["videos.video_id"],
            name=op.f("fk_video_analysis_jobs_video_id_videos"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("job_id", name=op.f("pk_video_analysis_jobs")),
    )
    op.create_index(
        op.f("ix_video_analysis_jobs_session_id"), "video_analysis_jobs", ["session_id"]
    )
    op.create_index(op.f("ix_video_analysis_jobs_status"), "video_analysis_jobs", ["status"])
    op.create_index(op.f("ix_video_analysis_jobs_video_id"), "video_analysis_jobs", ["video_id"])


def _create_video_analysis_chunks() -> None:
    op.create_table(
        "video_analysis_chunks",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("chunk_index", sa.Integer(), nullable=False),
        sa.Column("start_s", sa.Float(precision=53), nullable=False),
        sa.Column("end_s", sa.Float(precision=53), nullable=False),
        sa.Column(
            "status",
            sa.Enum(
                "queued",
                "processing",
                "completed",
                "failed",
                name="videoanalysischunkstatus",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("n_lost", sa.Integer(), nullable=False),
        sa.Column("lease_owner", sa.Uuid(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("not_before", sa.DateTime(timezone=True), nullable=True),
        sa.Column("artifact_key", sa.Text(), nullable=True),
        sa.Column("runtime_ms", sa.Integer(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["job_id"],
            ["video_analysis_jobs.job_id"],
            name=op.f("fk_video_analysis_chunks_job_id_video_analysis_jobs"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("job_id", "chunk_index", name=op.f("pk_video_analysis_chunks")),
    )
    op.create_index(
        "ix_video_analysis_chunks_status_not_before",
        "video_analysis_chunks",
        ["status", "not_before"],
    )
