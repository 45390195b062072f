"""What the service takes and answers. Sizes are bytes."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PositiveInt, field_validator

from gpu_optimizer.budgets import InvalidBudgetError, parse_budget
from gpu_optimizer.jobs.store import Job, JobState
from gpu_optimizer.models.workloads import DTYPES, OPTIMIZERS
from gpu_optimizer.plans import STEP_TYPES, Budgeted, Exactness
from gpu_optimizer.types import Mode
from shared_utils.gpu import GpuActivity, GpuSnapshot

Dtype = Literal["fp32", "bf16", "fp16"]
Optimizer = Literal["sgd", "sgd-momentum", "adam", "adamw"]
Technique = Literal[
    "checkpoint",
    "offload",
    "precision",
    "accumulation",
    "chunked_loss",
    "quantization",
    "optimizer_state",
    "allocator",
]
_SOME_CARD_BYTES = 1 << 40
"""A part of a card is checked without knowing the card."""


class Answer(BaseModel):
    """Base of all answers."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RunRequest(BaseModel):
    """Body of ``POST /predict`` and ``POST /profile``: a model and how it is run."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    model: str | dict[str, Any] | None = None
    """A registered name (``GET /models``) or the content of a Hugging Face config.json; left out
    where a file is uploaded."""
    mode: Mode = Mode.TRAIN
    batch_size: PositiveInt = Field(1, le=1 << 20)
    n_tokens: PositiveInt | None = Field(None, le=1 << 22)
    """Sequence length; by default the model's usual one."""
    image_size_px: PositiveInt | None = Field(None, le=1 << 14)
    dtype: Dtype | None = None
    """Of the parameters; by default as the weights are published."""
    autocast: Dtype | None = None
    optimizer: Optimizer = "adamw"
    foreach: bool = False
    checkpointing: bool = False
    n_new_tokens: int = Field(0, ge=0, le=1 << 20)
    """To generate after the prompt, with a key-value cache."""
    gpu: str = Field("H200", max_length=100)
    """Name of the GPU it is to run on, such as ``RTX 4070 Ti``."""
    expandable_segments: bool = False
    """Whether PyTorch's allocator is told to use expandable segments."""


class Constraints(BaseModel):
    """What a plan is to keep to beside its budget."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_slowdown_ratio: NonNegativeFloat | None = None
    """0.2: a step may take 20% longer; null: as long as it must."""
    exactness: Exactness = Exactness.NUMERIC
    """How far results may move, at most."""
    techniques: list[Technique] | None = Field(None, max_length=len(STEP_TYPES))
    """What may be used; null: everything."""


class OptimizeRequest(RunRequest):
    """Body of ``POST /optimize``: a training run and the memory it may take."""

    budget: PositiveInt | str = Field("90%", max_length=40)
    """Bytes, or a text such as ``7.2GiB``, ``8GB`` or ``90%`` of the card."""
    budget_of: Budgeted = Budgeted.TOTAL
    """The peak that the budget limits."""
    constraints: Constraints = Constraints()
    verify: bool = False
    """Measure the plan on the server's GPU, if that is the card in `gpu`."""
    frontier: bool = False
    """Also list what memory can be had for how much time; takes a minute."""

    @field_validator("budget")
    @classmethod
    def _is_budget(cls, budget: int | str) -> int | str:
        try:
            parse_budget(budget, _SOME_CARD_BYTES)
        except InvalidBudgetError as error:
            raise ValueError(str(error)) from error
        return budget


class GpuAnswer(Answer):
    """One GPU; null is what its driver does not tell."""

    index: int
    name: str | None
    total_bytes: int | None
    used_bytes: int | None
    """By all processes."""
    driver_version: str | None

    @classmethod
    def of(cls, gpu: GpuSnapshot) -> "GpuAnswer":
        """Copy what clients are told."""
        return cls.model_validate(gpu, from_attributes=True)


class ProcessAnswer(Answer):
    """A program that uses a GPU."""

    pid: int
    used_bytes: int | None


class ActivityAnswer(Answer):
    """What one GPU is doing; one element of a telemetry message."""

    gpu: GpuAnswer
    utilisation_ratio: float | None
    memory_utilisation_ratio: float | None
    temperature_c: float | None
    power_w: float | None
    processes: list[ProcessAnswer]

    @classmethod
    def of(cls, activity: GpuActivity) -> "ActivityAnswer":
        """Copy what clients are told."""
        return cls(
            gpu=GpuAnswer.of(activity.gpu),
            utilisation_ratio=activity.utilisation_ratio,
            memory_utilisation_ratio=activity.memory_utilisation_ratio,
            temperature_c=activity.temperature_c,
            power_w=activity.power_w,
            processes=[
                ProcessAnswer(pid=one.pid, used_bytes=one.used_bytes) for one in activity.processes
            ],
        )


class Telemetry(Answer):
    """Message of ``WS /telemetry``, once a second."""

    time_s: float
    """Unix time."""
    gpus: list[ActivityAnswer]
    """Empty on a machine without one, which is a normal machine."""


class Health(Answer):
    """Answer of ``GET /health``."""

    status: str
    versions: dict[str, str | None]
    device: str
    """``cuda`` when a GPU driver is present, else ``cpu``."""
    gpus: list[GpuAnswer]
    n_unfinished_jobs: int


class Gpus(Answer):
    """Answer of ``GET /gpus``."""

    gpus: list[ActivityAnswer]


class Models(Answer):
    """Answer of ``GET /models``."""

    models: list[str]
    dtypes: Sequence[str] = DTYPES
    optimizers: Sequence[str] = OPTIMIZERS
    gpus: list[str]
    """Names that `gpu` understands, beside those of ``config/machines.yml``."""


class JobAnswer(Answer):
    """A job as it is now; answer of everything that may take long."""

    job_id: str
    kind: str
    state: JobState
    events: list[dict[str, Any]]
    """The latest ones, oldest first."""
    result: dict[str, Any] | None
    failure_reason: str | None
    """``out_of_memory``, ``timeout``, ``crashed``, ``invalid`` or ``cancelled``."""
    failure: str | None
    wall_s: float | None
    peak_memory_bytes: int | None
    """Of the process that did it, not of the model."""

    @classmethod
    def of(cls, job: Job) -> "JobAnswer":
        """Describe a job."""
        result = job.result
        failure = None if result is None else result.failure
        value = None if result is None else result.value
        return cls(
            job_id=job.job_id,
            kind=job.kind,
            state=job.state,
            events=[dict(event) for event in job.events],
            result=None if value is None else dict(value),
            failure_reason=None if failure is None else failure.reason.value,
            failure=None if failure is None else failure.message,
            wall_s=None if result is None else result.wall_s,
            peak_memory_bytes=None if result is None else result.peak_memory_bytes,
        )
