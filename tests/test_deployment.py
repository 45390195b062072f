"""What config/deploy says fits the code: commands, variables, and the query that scales workers."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
import yaml

from pose_analyzer.settings import Settings
from pose_analyzer.storage_settings import StorageSettings

DEPLOY = Path(__file__).resolve().parents[1] / "config" / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())
KUBERNETES = list(yaml.safe_load_all((DEPLOY / "kubernetes/chunk-worker.yaml").read_text()))
TASK = json.loads((DEPLOY / "ecs/chunk-worker-task.json").read_text())
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()


def variables() -> set[str]:
    """Everything a setting is read from."""
    names = {f"POSE_{name.upper()}" for name in Settings.model_fields}
    for name, field in StorageSettings.model_fields.items():
        alias = field.validation_alias
        names.add(alias if isinstance(alias, str) else f"POSE_{name.upper()}")
    return names


def commands() -> list[list[str]]:
    containers = [
        *TASK["containerDefinitions"],
        KUBERNETES[0]["spec"]["template"]["spec"]["containers"][0],
    ]
    services = [one for one in COMPOSE["services"].values() if "command" in one]
    in_image = json.loads(re.search(r"^CMD (.*)$", DOCKERFILE, re.MULTILINE)[1])
    return [*(one["command"] for one in [*containers, *services]), in_image]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_commands_are_modules_that_exist(command):
    assert command[:2] == ["python", "-m"]
    assert importlib.util.find_spec(command[2]) is not None


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_options_of_commands_exist(command):
    source = Path(importlib.util.find_spec(command[2]).origin).read_text()
    shell = importlib.util.find_spec("pose_analyzer.video_jobs.shell").origin
    known = source + Path(shell).read_text()
    for option in [word for word in command[3:] if word.startswith("--")]:
        name = option.removeprefix("--").replace("-", "_")
        assert option in known or re.search(rf"^    {name}:", known, re.MULTILINE), option


def test_variables_are_settings():
    asked = {one["name"] for one in TASK["containerDefinitions"][0]["environment"]}
    asked |= {one["name"] for one in TASK["containerDefinitions"][0]["secrets"]}
    container = KUBERNETES[0]["spec"]["template"]["spec"]["containers"][0]
    asked |= {one["name"] for one in container["env"]}
    for service in COMPOSE["services"].values():
        if "build" in service:
            asked |= set(service.get("environment", {}))
    assert asked <= variables()


def test_workers_have_time_to_give_back_what_they_do():
    grace_s = 20
    assert TASK["containerDefinitions"][0]["stopTimeout"] > grace_s
    assert KUBERNETES[0]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > grace_s
    assert COMPOSE["services"]["chunk-worker"]["stop_grace_period"] == "40s"


def test_scaling_follows_the_plan():
    policy = json.loads((DEPLOY / "ecs/scaling-policy.json").read_text())
    told = policy["TargetTrackingScalingPolicyConfiguration"]
    assert policy["ScalableTarget"] == {"MinCapacity": 0, "MaxCapacity": 10}
    assert (told["TargetValue"], told["ScaleOutCooldown"], told["ScaleInCooldown"]) == (5, 60, 300)
    scaled = KUBERNETES[2]["spec"]
    assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (0, 10)
    assert scaled["triggers"][0]["metadata"]["targetQueryValue"] == "5"
