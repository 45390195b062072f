"""The wheel lock pins everything, names no machine and agrees with what the packages ask for."""

import importlib.metadata
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCKS = ROOT / "config" / "locks"
WORKSPACE_IN = "-r config/locks/workspace.in"
OUR_OWN = {"pose-analyzer", "shared-utils"}


@dataclass(frozen=True)
class Pin:
    """One locked wheel, its hashes and who asked for it."""

    requirement: Requirement
    hashes: tuple[str, ...]
    wanted_by: tuple[str, ...]

    @property
    def name(self) -> str:
        return canonicalize_name(self.requirement.name)

    @property
    def version(self) -> str:
        (only,) = self.requirement.specifier
        assert only.operator == "=="
        return only.version


def read_lock(name: str) -> list[Pin]:
    text = (LOCKS / name).read_text().replace("\\\n", " ")
    entries = re.findall(r"^(\w.*)\n((?: +#.*\n)*)", text, flags=re.MULTILINE)
    pins = []
    for pin, comments in entries:
        requirement, *hashes = re.split(r"\s+--hash=", pin.strip())
        wanted_by = re.findall(r"# +(?:via )?(\S.*)", comments)
        pins.append(Pin(Requirement(requirement), tuple(hashes), tuple(wanted_by)))
    return pins


LOCKED_EXTRAS = ("yolo", "video", "quantize", "lightning", "tracking")


def declared() -> dict[str, list[Requirement]]:
    """What each input of the lock asks for, keyed by the name uv gives it in the lock."""
    lines = (LOCKS / "workspace.in").read_text().splitlines()
    asked = {WORKSPACE_IN: [Requirement(x) for x in lines if x and not x.startswith("#")]}
    for path in ROOT.glob("projects/*/pyproject.toml"):
        project = tomllib.loads(path.read_text())["project"]
        extras = project.get("optional-dependencies", {})
        wanted = sum((extras.get(name, []) for name in LOCKED_EXTRAS), project["dependencies"])
        key = f"{project['name']} ({path.relative_to(ROOT)})"
        asked[key] = [r for r in map(Requirement, wanted) if r.name not in OUR_OWN]
    return asked


def versions_on_linux(python: str) -> dict[str, str]:
    machine = {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "platform_machine": "x86_64",
        "platform_system": "Linux",
        "sys_platform": "linux",
    }
    pins = [
        pin
        for pin in read_lock("workspace.txt")
        if pin.requirement.marker is None or pin.requirement.marker.evaluate(machine)
    ]
    versions = {pin.name: pin.version for pin in pins}
    assert len(versions) == len(pins), "a package is pinned twice"
    return versions


@pytest.mark.parametrize("lock", ["workspace.txt", "mediapipe.txt", "uv.txt"])
def test_every_wheel_has_hashes_and_no_place_of_its_own(lock):
    for pin in read_lock(lock):
        assert pin.requirement.url is None
        assert pin.hashes, pin.name
        assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", h) for h in pin.hashes), pin.name
    text = (LOCKS / lock).read_text()
    options = [line for line in text.splitlines() if line.startswith("-")]
    assert options == []
    assert "://" not in text
    assert re.search(r"(^|[\s=])/\w", text) is None, "an absolute path"


@pytest.mark.parametrize("python", ["3.11", "3.12"])
def test_every_declared_dependency_is_met(python):
    versions = versions_on_linux(python)
    for source, requirements in declared().items():
        for requirement in requirements:
            version = versions[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version), (source, str(requirement), version)


def test_lock_was_made_from_the_dependencies_of_today():
    pins = read_lock("workspace.txt")
    for source, requirements in declared().items():
        asked = {canonicalize_name(requirement.name) for requirement in requirements}
        assert {pin.name for pin in pins if source in pin.wanted_by} == asked, "run `make lock`"


@pytest.mark.parametrize("python", ["3.11", "3.12"])
@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("torch", "==2.10.*"),
        ("torchvision", "==0.25.*"),
        ("mediapipe", ">=0.10.35,<0.11"),
        ("ultralytics", "==8.4.*"),
        ("transformers", ">=5.3"),
    ],
)
def test_stack_is_the_chosen_one(name, chosen, python):
    assert SpecifierSet(chosen).contains(versions_on_linux(python)[name])


def test_opencv_is_the_headless_one_and_our_own_packages_come_from_the_checkout():
    names = {pin.name for pin in read_lock("workspace.txt")}
    assert {name for name in names if name.startswith("opencv")} == {"opencv-python-headless"}
    assert not names & OUR_OWN


def test_mediapipe_alone_brings_nothing_of_ultralytics_and_the_same_versions():
    everything = {str(pin.requirement) for pin in read_lock("workspace.txt")}
    alone = read_lock("mediapipe.txt")
    assert {str(pin.requirement) for pin in alone} <= everything
    names = {pin.name for pin in alone}
    assert "mediapipe" in names
    assert not {name for name in names if name.startswith(("ultralytics", "torch"))}


def test_uv_is_locked_to_one_version():
    (bootstrap,) = read_lock("uv.txt")
    assert versions_on_linux("3.11")["uv"] == bootstrap.version


def test_tests_run_on_the_locked_wheels():
    here = [
        pin
        for pin in read_lock("workspace.txt")
        if pin.requirement.marker is None or pin.requirement.marker.evaluate()
    ]
    differing = {
        pin.name: (importlib.metadata.version(pin.name), pin.version)
        for pin in here
        if importlib.metadata.version(pin.name) != pin.version
    }
    assert not differing, "run `make install`"
