"""Athletes, their sessions, and what was seen and judged in them."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from pose_analyzer.storage.timescale import prepare_frames, release_frames

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the tables, and prepare that of frames as well as the server can."""
    _create_athletes()
    _create_pose_frames()
    _create_form_references()
    _create_sessions()
    _create_repetitions()
    _create_faults()
    prepare_frames(op.get_bind())


def downgrade() -> None:
    """Remove them and all that is in them."""
    release_frames(op.get_bind())
    op.drop_table("faults")
    op.drop_table("repetitions")
    op.drop_table("sessions")
    op.drop_table("form_references")
    op.drop_table("pose_frames")
    op.drop_table("athletes")


def _create_athletes() -> None:
    op.create_table(
        "athletes",
        sa.Column("athlete_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.PrimaryKeyConstraint("athlete_id", name=op.f("pk_athletes")),
    )


def _create_pose_frames() -> None:
    op.create_table(
        "pose_frames",
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("track_id", sa.Integer(), nullable=False),
        sa.Column("frame_index", sa.BigInteger(), nullable=False),
        sa.Column("time_s", sa.Float(precision=53), nullable=False),
        sa.Column("keypoints", postgresql.ARRAY(sa.REAL()), nullable=False),
        sa.Column("confidence", sa.REAL(), nullable=True),
        sa.Column("angles", postgresql.ARRAY(sa.REAL()), nullable=False),
        sa.Column("progress", sa.REAL(), nullable=True),
        sa.Column("n_repetitions", sa.SmallInteger(), nullable=False),
        sa.Column("score", sa.REAL(), nullable=True),
    )
    op.create_index("ix_pose_frames_session_id_time", "pose_frames", ["session_id", "time"])


def _create_form_references() -> None:
    op.create_table(
        "form_references",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("exercise", sa.Text(), nullable=False),
        sa.Column("athlete_id", sa.Uuid(), nullable=True),
        sa.Column("document", postgresql.JSONB(), nullable=False),
        sa.Column(
            "created_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.ForeignKeyConstraint(
            ["athlete_id"],
            ["athletes.athlete_id"],
            name=op.f("fk_form_references_athlete_id_athletes"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_form_references")),
    )
    op.create_index(op.f("ix_form_references_athlete_id"), "form_references", ["athlete_id"])
    op.create_index(op.f("ix_form_references_exercise"), "form_references", ["exercise"])


def _create_sessions() -> None:
    op.create_table(
        "sessions",
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("athlete_id", sa.Uuid(), nullable=True),
        sa.Column(
            "kind",
            sa.Enum(
                "live",
                "recorded",
                name="sessionkind",
                native_enum=False,
                create_constraint=True,
                length=32,
            ),
            nullable=False,
        ),
        sa.Column("stream_id", sa.Text(), nullable=True),
        sa.Column("source_name", sa.Text(), nullable=True),
        sa.Column("exercise", sa.Text(), nullable=True),
        sa.Column("detector", sa.Text(), nullable=True),
        sa.Column(
            "started_at",
            sa.DateTime(timezone=True),
            server_default=sa.text("now()"),
            nullable=False,
        ),
        sa.Column("ended_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("n_frames", sa.BigInteger(), nullable=False),
        sa.Column("n_repetitions", sa.Integer(), nullable=False),
        sa.Column("score", sa.Float(precision=53), nullable=True),
        sa.ForeignKeyConstraint(
            ["athlete_id"],
            ["athletes.athlete_id"],
            name=op.f("fk_sessions_athlete_id_athletes"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("session_id", name=op.f("pk_sessions")),
    )
    op.create_index(op.f("ix_sessions_athlete_id"), "sessions", ["athlete_id"])
    op.create_index(op.f("ix_sessions_started_at"), "sessions", ["started_at"])
    op.create_index(op.f("ix_sessions_stream_id"), "sessions", ["stream_id"])


def _create_repetitions() -> None:
    op.create_table(
        "repetitions",
        sa.Column("repetition_id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("session_id", sa.Uuid(), nullable=False),
        sa.Column("track_id", sa.Integer(), nullable=False),
        sa.Column("exercise", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("time", sa.DateTime(timezone=True), nullable=False),
        sa.Column("start_s", sa.Float(precision=53), nullable=False),
        sa.Column("turn_s", sa.Float(precision=53), nullable=False),
        sa.Column("end_s", sa.Float(precision=53), nullable=False),
        sa.Column("eccentric_s", sa.Float(precision=53), nullable=False),
        sa.Column("hold_s", sa.Float(precision=53), nullable=False),
        sa.Column("concentric_s", sa.Float(precision=53), nullable=False),
        sa.Column("depth", sa.Float(precision=53), nullable=False),
        sa.Column("ranges", postgresql.JSONB(), nullable=False),
        sa.Column("yaw_deg", sa.Float(precision=53), nullable=True),
        sa.Column("accepted", sa.Boolean(), nullable=False),
        sa.Column("reference", sa.Text(), nullable=True),
        sa.Column("reference_mode", sa.Text(), nullable=True),
        sa.Column("score", sa.Float(precision=53), nullable=True),
        sa.Column("components", postgresql.JSONB(), nullable=False),
        sa.Column("losses", postgresql.JSONB(), nullable=False),
        sa.Column("anomaly", sa.Text(), nullable=True),
        sa.Column("anomaly_score", sa.Float(precision=53), nullable=True),
        sa.Column("cue", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["session_id"],
            ["sessions.session_id"],
            name=op.f("fk_repetitions_session_id_sessions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("repetition_id", name=op.f("pk_repetitions")),
        sa.UniqueConstraint(
            "session_id",
            "track_id",
            "exercise",
            "number",
            name=op.f("uq_repetitions_session_id_track_id_exercise_number"),
        ),
    )
    op.create_index("ix_repetitions_time", "repetitions", ["time"])


def _create_faults() -> None:
    op.create_table(
        "faults",
        sa.Column("fault_id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("repetition_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("severity", sa.Float(precision=53), nullable=False),
        sa.Column("joint", sa.Text(), nullable=False),
        sa.Column("side", sa.Text(), nullable=True),
        sa.Column("phase", sa.Text(), nullable=False),
        sa.Column("amount", sa.Float(precision=53), nullable=False),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("at_s", sa.Float(precision=53), nullable=False),
        sa.ForeignKeyConstraint(
            ["repetition_id"],
            ["repetitions.repetition_id"],
            name=op.f("fk_faults_repetition_id_repetitions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("fault_id", name=op.f("pk_faults")),
    )
    op.create_index(op.f("ix_faults_name"), "faults", ["name"])
    op.create_index(op.f("ix_faults_repetition_id"), "faults", ["repetition_id"])
