"""What `analysis.json` says about form."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from pose_analyzer.form_types import FormUpdate, PointLoss
from pose_analyzer.types import Phase

_DECIMALS = 4

Number = float | None


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="null")


class LossDocument(_Model):
    """Why some points are missing; docs/FORM.md tells the keys and units."""

    component: str
    points: float
    phase: Phase
    joint: str
    amount: Annotated[
        Number, Field(description="In `unit`: what the repetition has more than the reference.")
    ]
    unit: str
    at_s: float
    from_s: float
    to_s: float
    text_key: str


class FaultDocument(_Model):
    """A named mistake; see config/faults."""

    name: str
    severity: Annotated[float, Field(description="0 just noticeable, 1 clear.")]
    joint: str
    side: str | None
    phase: Phase
    amount: Number
    unit: str
    at_s: float


class CueDocument(_Model):
    """What the coach said."""

    key: str
    text: str
    kind: str
    fault: str | None
    time_s: float


class FormDocument(_Model):
    """How one repetition was done."""

    repetition: Annotated[int, Field(ge=1)]
    score: Annotated[Number, Field(description="0..100; null if there is nothing to compare with.")]
    components: dict[str, Number]
    reference: str | None
    mode: Annotated[str | None, Field(description="personal or general.")]
    losses: list[LossDocument]
    faults: list[FaultDocument]
    cannot_judge: Annotated[
        dict[str, str], Field(description="What is not to be seen from here, with the reason.")
    ]
    anomaly: Annotated[str | None, Field(description="normal, anomalous or unsure.")]
    cue: CueDocument | None

    @classmethod
    def of(cls, form: FormUpdate) -> "FormDocument":
        """Put what was judged into the document."""
        score = form.score
        used = None if score is None else score.reference
        unseen = (*(() if score is None else score.cannot_judge), *form.cannot_judge)
        return cls(
            repetition=form.repetition,
            score=None if score is None else _rounded(score.total),
            components={}
            if score is None
            else {c.value: _rounded(points) for c, points in score.components.items()},
            reference=None if used is None else used.name,
            mode=None if used is None else used.mode,
            losses=[_loss(loss) for loss in (() if score is None else score.losses)],
            faults=[
                FaultDocument(
                    name=fault.name,
                    severity=round(fault.severity, _DECIMALS),
                    joint=fault.joint,
                    side=fault.side,
                    phase=fault.phase,
                    amount=_rounded(fault.amount),
                    unit=fault.unit,
                    at_s=round(fault.at_s, _DECIMALS),
                )
                for fault in form.faults
            ],
            cannot_judge={item.what: item.reason.value for item in unseen},
            anomaly=None if form.anomaly is None else form.anomaly.verdict.value,
            cue=None
            if form.cue is None
            else CueDocument(
                key=form.cue.key,
                text=form.cue.text,
                kind=form.cue.kind,
                fault=form.cue.fault,
                time_s=round(form.cue.time_s, _DECIMALS),
            ),
        )


def _loss(loss: PointLoss) -> LossDocument:
    return LossDocument(
        component=loss.component.value,
        points=round(float(loss.points), _DECIMALS),
        phase=loss.phase,
        joint=loss.joint,
        amount=_rounded(loss.amount),
        unit=loss.unit,
        at_s=round(float(loss.at_s), _DECIMALS),
        from_s=round(float(loss.from_s), _DECIMALS),
        to_s=round(float(loss.to_s), _DECIMALS),
        text_key=loss.text_key,
    )


def _rounded(value: float | None) -> Number:
    return None if value is None else round(float(value), _DECIMALS)
