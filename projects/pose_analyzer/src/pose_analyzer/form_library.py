"""Everything form is judged by, read from files: references, faults, texts, models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from pose_analyzer.errors import UnknownNameError
from pose_analyzer.exercises import Exercise
from pose_analyzer.fault_files import (
    FaultSpec,
    load_coaching,
    load_faults,
    rules_for,
    select_language,
)
from pose_analyzer.form_coach import CoachTexts
from pose_analyzer.form_judge import ExerciseForm, JudgeConfig
from pose_analyzer.form_model_file import SHIPPED, FormModels, load_models
from pose_analyzer.form_references import FormReference, signals_for
from pose_analyzer.form_types import FormChoice
from pose_analyzer.reference_files import load_references, parse_reference, select_reference
from pose_analyzer.settings import Settings
from pose_analyzer.types import View


@dataclass(frozen=True, slots=True)
class FormFolders:
    """Where the files are."""

    references: Path
    taught_references: Path
    faults: Path
    coaching: Path
    models: Path | None = SHIPPED
    """None: nothing is called unusual."""

    def as_texts(self) -> dict[str, str | None]:
        """Put it into a message."""
        return {
            "references": str(self.references),
            "taught_references": str(self.taught_references),
            "faults": str(self.faults),
            "coaching": str(self.coaching),
            "models": None if self.models is None else str(self.models),
        }

    @classmethod
    def of_texts(cls, texts: Mapping[str, str | None]) -> "FormFolders":
        """Read what `as_texts` wrote."""
        paths = {name: Path(text) for name, text in texts.items() if text is not None}
        return cls(
            paths["references"],
            paths["taught_references"],
            paths["faults"],
            paths["coaching"],
            paths.get("models"),
        )


@dataclass(slots=True, eq=False)
class FormLibrary:
    """What was in the files, but for references: those may be taught and deleted at any time."""

    folders: FormFolders
    faults: dict[str, FaultSpec]
    texts: dict[str, CoachTexts]
    models: FormModels | None
    _references: dict[str, FormReference] = field(default_factory=dict)
    _read: tuple[tuple[str, int, int], ...] | None = None
    """Path, time of change and size of each file that was read."""

    def references(self) -> dict[str, FormReference]:
        """All there are now, by name; read again only if a file has changed.

        Raises
        ------
        InvalidReferenceError
            If a file is invalid.
        """
        folders = self.folders.references, self.folders.taught_references
        paths = [path for folder in folders for path in sorted(folder.glob("*.json"))]
        files = tuple(
            (str(path), s.st_mtime_ns, s.st_size) for path in paths for s in [path.stat()]
        )
        if files != self._read:
            self._references, self._read = load_references(*folders), files
        return self._references

    def judge_config(self, exercises: Sequence[Exercise], choice: FormChoice) -> JudgeConfig:
        """What these exercises are judged by.

        Raises
        ------
        UnknownNameError
            If there is no such reference of any of the exercises, or no such language.
        InvalidReferenceError
            If a file is invalid.
        """
        stored = _parsed(choice.documents)
        references = {**self.references(), **{one.name: one for one in stored}}
        own = {one.exercise: one for one in _parsed(choice.own)}
        chosen = _chosen_exercise(references, exercises, choice.reference)
        return JudgeConfig(
            exercises={
                exercise.name: replace(
                    self._form_of(
                        exercise, references, choice.reference if exercise.name == chosen else None
                    ),
                    own=own.get(exercise.name),
                )
                for exercise in exercises
            },
            texts=select_language(self.texts, choice.language),
        )

    def _form_of(
        self, exercise: Exercise, references: dict[str, FormReference], name: str | None
    ) -> ExerciseForm:
        return ExerciseForm(
            signals=signals_for(exercise.main_angles),
            rules=rules_for(self.faults, exercise.name),
            reference=select_reference(references, exercise.name, name),
            keep_reference=name is not None,
            models={}
            if self.models is None
            else {view.value: self.models.select(exercise.name, view.value) for view in View},
        )


def folders_of(settings: Settings) -> FormFolders:
    """Where the settings say the files are."""
    return FormFolders(
        settings.references_dir,
        settings.taught_references_dir,
        settings.faults_dir,
        settings.coaching_dir,
    )


def load_form_library(folders: FormFolders) -> FormLibrary:
    """Read the files.

    Raises
    ------
    InvalidFormFileError, InvalidFormModelError, InvalidReferenceError
        If one is invalid.
    """
    library = FormLibrary(
        folders,
        load_faults(folders.faults),
        load_coaching(folders.coaching),
        None if folders.models is None else load_models(folders.models),
    )
    library.references()
    return library


def _parsed(documents: Sequence[str]) -> list[FormReference]:
    return [parse_reference(document, "a stored reference") for document in documents]


def _chosen_exercise(
    references: dict[str, FormReference], exercises: Sequence[Exercise], name: str | None
) -> str | None:
    """Which exercise the chosen reference is of; complains if it is of none of them."""
    if name is None:
        return None
    asked = {exercise.name for exercise in exercises}
    if name in references and references[name].exercise in asked:
        return references[name].exercise
    known = tuple(r.name for r in references.values() if r.exercise in asked)
    raise UnknownNameError("reference", name, known)
