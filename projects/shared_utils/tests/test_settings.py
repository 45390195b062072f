import os
from pathlib import Path

import pytest
from pydantic import Field
from pydantic_settings import SettingsConfigDict

from shared_utils.errors import InvalidSettingError
from shared_utils.settings import ProjectSettings, SearchPath, checkout_dir, read_settings


class ExampleSettings(ProjectSettings):
    model_config = SettingsConfigDict(env_prefix="EXAMPLE_")

    folders: SearchPath = ()
    count: int = 1


def test_a_search_path_is_split_the_way_a_shell_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXAMPLE_FOLDERS", os.pathsep.join(["/a", "", "/b c"]))
    assert read_settings(ExampleSettings).folders == (Path("/a"), Path("/b c"))


def test_an_empty_variable_counts_as_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXAMPLE_COUNT", "")
    assert read_settings(ExampleSettings).count == 1


def test_a_wrong_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXAMPLE_COUNT", "many")
    with pytest.raises(InvalidSettingError, match=r"^EXAMPLE_COUNT: "):
        read_settings(ExampleSettings)


class NamedSettings(ProjectSettings):
    model_config = SettingsConfigDict(env_prefix="EXAMPLE_", populate_by_name=True)

    n_shared: int = Field(1, validation_alias="SHARED_NUMBER")
    limits: tuple[int, ...] = ()


def test_a_variable_with_a_name_of_its_own_is_named_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARED_NUMBER", "many")
    monkeypatch.setenv("EXAMPLE_LIMITS", "[1, 2.5]")
    with pytest.raises(InvalidSettingError) as raised:
        read_settings(NamedSettings)
    first, second = raised.value.problems
    assert first.startswith("SHARED_NUMBER: Input should be")
    assert second.startswith("EXAMPLE_LIMITS: 1: Input should be")
    assert "many" not in str(raised.value)
    monkeypatch.setenv("SHARED_NUMBER", "3")
    monkeypatch.delenv("EXAMPLE_LIMITS")
    assert read_settings(NamedSettings).n_shared == 3


def test_settings_do_not_swallow_misspelt_arguments() -> None:
    with pytest.raises(ValueError, match="folder"):
        ExampleSettings(folder="/a")  # type: ignore[call-arg]


def test_the_checkout_is_found_from_a_file_inside_it_only(tmp_path: Path) -> None:
    module = tmp_path / "projects" / "one" / "src" / "module.py"
    assert checkout_dir(str(module)) is None
    module.parent.mkdir(parents=True)
    (tmp_path / "pixi.toml").touch()
    assert checkout_dir(str(module)) == tmp_path.resolve()
