"""The compose file: its commands are ones the command line takes, and only loopback ports are published."""

from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from agentserve.cli import app
from scheduler.profiles import load_profile

COMPOSE = yaml.safe_load((Path(__file__).parents[2] / "docker-compose.yml").read_text())
OURS = {name: service for name, service in COMPOSE["services"].items() if "build" in service}


def parsed(arguments: list[str]) -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    context = group.make_context("agentserve", list(arguments))
    name, command, rest = group.resolve_command(context, list(arguments))
    return dict(command.make_context(name, rest).params)


@pytest.mark.parametrize("name", OURS)
def test_every_command_is_one_that_agentserve_takes(name: str) -> None:
    assert parsed(OURS[name]["command"]) is not None


def test_every_worker_stands_beside_an_engine_of_its_gpu_and_model() -> None:
    workers = {name: parsed(service["command"]) for name, service in OURS.items() if name.startswith("worker-")}
    assert len(workers) == 4
    for worker in workers.values():
        engine = parsed(OURS[worker["engine"].removeprefix("http://").removesuffix(":8000")]["command"])
        assert (worker["gpu"], worker["model"]) == (engine["gpu"], engine["model"])
        assert load_profile(worker["gpu"], worker["model"]).kv_capacity_tokens > 0


def test_only_loopback_ports_are_published() -> None:
    published = [port for service in COMPOSE["services"].values() for port in service.get("ports", ())]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)
