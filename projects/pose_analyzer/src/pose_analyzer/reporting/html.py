"""`report.html`: one self-contained page for the person who trains."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from pose_analyzer.form_references import FormReference
from pose_analyzer.form_types import FormUpdate
from pose_analyzer.reporting.atomic import open_atomically
from pose_analyzer.reporting.form import (
    PICTURE_SIZE,
    FormSection,
    form_section,
    loss_sentence,
)
from pose_analyzer.reporting.plots import PHASES, plot_data
from pose_analyzer.reporting.summary import (
    VIEW_CAVEATS,
    RepetitionTable,
    Tempo,
    readable,
    repetition_table,
    tempo,
    unmeasured_angles,
    unreliable_angles,
)
from pose_analyzer.types import PersonAnalysis, VideoAnalysis

MAX_PLOTTED_PEOPLE: Final = 6
_NO_REFERENCES: Final[Mapping[str, FormReference]] = MappingProxyType({})


@dataclass(frozen=True, slots=True, eq=False)
class _PersonSection:
    person: PersonAnalysis
    tempo: Tempo | None
    table: RepetitionTable
    view_caveat: str
    unreliable: tuple[str, ...]
    unmeasured: tuple[str, ...]
    detected_ratio: float
    plot: dict[str, Any]
    form: FormSection | None


def write_report_html(
    analysis: VideoAnalysis,
    path: Path,
    overlay_name: str | None = None,
    forms: Sequence[FormUpdate] = (),
    references: Mapping[str, FormReference] = _NO_REFERENCES,
) -> None:
    """Write a page with everything a coach needs; it opens without a network.

    Parameters
    ----------
    analysis
        What to report; the first people are plotted, the others listed.
    path
        File to write.
    overlay_name
        Name of the overlay video beside `path`, None if there is none.
    forms
        What was said of the repetitions, in order.
    references
        By name: what they may have been compared with.
    """
    plotted, listed = (
        analysis.people[:MAX_PLOTTED_PEOPLE],
        analysis.people[MAX_PLOTTED_PEOPLE:],
    )
    stream = (
        _environment()
        .get_template("report.html")
        .stream(
            analysis=analysis,
            sections=[_section(person, forms, references) for person in plotted],
            picture_size=PICTURE_SIZE,
            listed=listed,
            phases=[phase.value for phase in PHASES],
            overlay_url=None if overlay_name is None else quote(overlay_name),
            frames_per_s=analysis.n_frames / analysis.elapsed_s if analysis.elapsed_s > 0 else None,
            plotly_js=get_plotlyjs(),
        )
    )
    with open_atomically(path) as file:
        file.writelines(stream)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("pose_analyzer.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["readable"] = readable
    environment.filters["sentence"] = loss_sentence
    return environment


def _section(
    person: PersonAnalysis, forms: Sequence[FormUpdate], references: Mapping[str, FormReference]
) -> _PersonSection:
    n_frames = len(person.detected)
    return _PersonSection(
        person=person,
        tempo=tempo(person.repetitions),
        table=repetition_table(person.repetitions),
        view_caveat=VIEW_CAVEATS[person.view],
        unreliable=unreliable_angles(person),
        unmeasured=unmeasured_angles(person),
        detected_ratio=float(person.detected.mean()) if n_frames else 0.0,
        plot=plot_data(person),
        form=form_section(person, forms, references),
    )
