"""`report.html`: one self-contained page for the person who trains."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from pose_analyzer.form_types import FormUpdate
from pose_analyzer.reporting.atomic import open_atomically
from pose_analyzer.reporting.form import FormSection, form_section
from pose_analyzer.reporting.moments import PICTURE_SIZE, Moment, loss_sentence
from pose_analyzer.reporting.pictures import StillAt, cut_picture, data_url
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
MAX_PICTURES: Final = 12
"""Photographs in one report, of `pictures.MAX_BYTES` each."""


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
    pictures: tuple[str, ...]
    """Of each of the form's moments, as addresses that hold them; empty where there is none."""


def write_report_html(
    analysis: VideoAnalysis,
    path: Path,
    overlay_name: str | None = None,
    forms: Sequence[FormUpdate] = (),
    still_at: StillAt | None = None,
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
    still_at
        Finds frames of the video for pictures of the worst moments; None: they are drawn only.
    """
    camera = _Camera(still_at)
    plotted, listed = (
        analysis.people[:MAX_PLOTTED_PEOPLE],
        analysis.people[MAX_PLOTTED_PEOPLE:],
    )
    stream = (
        _environment()
        .get_template("report.html")
        .stream(
            analysis=analysis,
            sections=[_section(person, forms, camera) for person in plotted],
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


class _Camera:
    """Takes the pictures of one report, as many as it may have."""

    def __init__(self, still_at: StillAt | None) -> None:
        self._still_at = still_at
        self._n_left = MAX_PICTURES

    def take(self, moment: Moment) -> str:
        """Empty if there is no picture of it."""
        if self._still_at is None or not self._n_left:
            return ""
        image_bgr = self._still_at(moment.time_s)
        if image_bgr is None:
            return ""
        self._n_left -= 1
        return data_url(cut_picture(image_bgr, moment.square))


def _section(
    person: PersonAnalysis, forms: Sequence[FormUpdate], camera: _Camera
) -> _PersonSection:
    n_frames = len(person.detected)
    form = form_section(person, forms)
    return _PersonSection(
        person=person,
        tempo=tempo(person.repetitions),
        table=repetition_table(person.repetitions),
        view_caveat=VIEW_CAVEATS[person.view],
        unreliable=unreliable_angles(person),
        unmeasured=unmeasured_angles(person),
        detected_ratio=float(person.detected.mean()) if n_frames else 0.0,
        plot=plot_data(person),
        form=form,
        pictures=() if form is None else tuple(camera.take(one) for one in form.moments),
    )
