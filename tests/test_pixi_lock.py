"""pixi.lock is what `pixi install --locked` would accept, as far as that shows without pixi.

Not shown here: that every address still serves its file (see docs/SETUP.md).
"""

import re
import tomllib
from pathlib import Path

import pytest
from rattler import LockFile, MatchSpec, RepoDataRecord, Version, VersionSpec

ROOT = Path(__file__).resolve().parents[1]
CHANNEL = "https://conda.anaconda.org/conda-forge/"
MANIFEST = tomllib.loads((ROOT / "pixi.toml").read_text())
ENVIRONMENTS = sorted(MANIFEST["environments"])
# What a Linux without further words offers, from Pixi's reference of system requirements.
LINUX = {"__unix": "0", "__linux": "4.18", "__glibc": "2.28", "__archspec": "0"}


@pytest.fixture(scope="module")
def lock() -> LockFile:
    return LockFile.from_path(ROOT / "pixi.lock")


def features(environment: str) -> list[dict]:
    return [MANIFEST["feature"][name] for name in MANIFEST["environments"][environment]["features"]]


def wanted(environment: str) -> list[str]:
    tables = [MANIFEST, *features(environment)]
    return [
        f"{name} {spec}" for table in tables for name, spec in table.get("dependencies", {}).items()
    ]


def offered(environment: str) -> dict[str, str]:
    """Virtual packages of the environment's platform, by the manifest."""
    (platform,) = [name for feature in features(environment) for name in feature["platforms"]]
    (row,) = [
        row
        for row in MANIFEST["workspace"]["platforms"]
        if platform == (row if isinstance(row, str) else row["name"])
    ]
    return LINUX | ({} if isinstance(row, str) else {"__cuda": row["cuda"]})


def records(lock: LockFile, environment: str) -> dict[str, RepoDataRecord]:
    locked = lock.environment(environment)
    (platform,) = locked.platforms()
    found = locked.conda_repodata_records_for_platform(platform)
    by_name = {record.name.normalized: record for record in found}
    assert len(by_name) == len(found), "a package is locked twice"
    return by_name


def test_file_is_canonical(lock, tmp_path):
    lock.to_path(tmp_path / "pixi.lock")
    assert (tmp_path / "pixi.lock").read_text() == (ROOT / "pixi.lock").read_text()


def test_environments_are_those_of_the_manifest(lock):
    assert sorted(name for name, _ in lock.environments()) == ENVIRONMENTS


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_platform_offers_what_the_manifest_says(lock, environment):
    (platform,) = lock.environment(environment).platforms()
    assert str(platform.subdir) == "linux-64"
    offers = dict(text.split("=")[:2] for text in platform.virtual_packages)
    assert offers == offered(environment)


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_every_package_comes_from_conda_forge_with_a_checksum(lock, environment):
    for record in records(lock, environment).values():
        assert str(record.url).startswith(CHANNEL)
        assert len(record.sha256) == 32, record.file_name


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_dependencies_are_closed_and_nothing_is_left_over(lock, environment):
    locked = records(lock, environment)
    offers = offered(environment)
    reached = set()
    open_ends = wanted(environment)
    while open_ends:
        text = open_ends.pop()
        spec = MatchSpec(text)
        name = spec.name.normalized
        if name.startswith("__"):
            assert VersionSpec(str(spec.version or "*")).matches(Version(offers[name])), text
            continue
        assert name in locked, text
        assert spec.matches(locked[name]), text
        if name not in reached:
            reached.add(name)
            open_ends += locked[name].depends
    assert set(locked) == reached


def test_only_the_channel_is_named():
    addresses = re.findall(r"https?://[^\s\"']+", (ROOT / "pixi.lock").read_text())
    assert addresses
    assert all(address.startswith(CHANNEL) for address in addresses)
