"""The compose file: its commands are ones that agentserve takes, and no service is open, unbounded or privileged."""

import re
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from agentserve.cli import app
from agentserve.telemetry.messages import Channel, topic
from scheduler.profiles import load_profile

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docker-compose.yml").read_text()
COMPOSE = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service and "entrypoint" not in service}
EMULATED = {name: service for name, service in OURS.items() if "profiles" not in service}
ONE_SHOT = {"logins"}
"""Ends when its work is done, before everything else."""


def unfolded(text: str) -> str:
    """`${NAME:-default}` as it stands when NAME is not set."""
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)


def parsed(arguments: list[str]) -> dict[str, Any]:
    group: Any = typer.main.get_command(app)
    context = group.make_context("agentserve", [unfolded(argument) for argument in arguments])
    name, command, rest = group.resolve_command(context, [unfolded(argument) for argument in arguments])
    return dict(command.make_context(name, rest).params)


@pytest.mark.parametrize("name", OURS)
def test_every_command_is_one_that_agentserve_takes(name: str) -> None:
    assert parsed(OURS[name]["command"]) is not None


def test_the_load_s_command_is_one_that_the_catalog_takes() -> None:
    from workflows.catalog import load

    service = SERVICES["agents"]
    assert service["entrypoint"] == ["python", "-m", load.__name__]
    assert load.parsed([unfolded(argument) for argument in service["command"]])[0].rate_per_s > 0


def test_every_worker_stands_beside_an_engine_of_its_gpu_and_model() -> None:
    workers = {name: parsed(service["command"]) for name, service in EMULATED.items() if name.startswith("worker-")}
    assert sorted(worker["gpu"] for worker in workers.values()) == ["a100-80g", "a100-80g", "h100", "h200"]
    for worker in workers.values():
        engine = parsed(OURS[worker["engine"].removeprefix("http://").removesuffix(":8000")]["command"])
        assert (worker["gpu"], worker["model"]) == (engine["gpu"], engine["model"])
        assert load_profile(worker["gpu"], worker["model"]).kv_capacity_tokens > 0


def test_each_worker_has_the_login_of_its_id_and_no_other() -> None:
    accounts = re.search(r'^accounts="(.*)"$', (ROOT / "deploy/mosquitto/logins.sh").read_text(), re.MULTILINE)
    assert accounts is not None
    seen = set()
    for name, service in OURS.items():
        if name.startswith("worker-"):
            worker_id = parsed(service["command"])["id"]
            assert service["volumes"] == [f"login-{worker_id}:/run/secrets:ro"]
            seen.add(worker_id)
    assert {"gateway", *seen} == set(accounts[1].split())


def test_emulated_engines_can_be_left_out_and_real_ones_come_by_profile() -> None:
    real = {name for name, service in SERVICES.items() if service.get("profiles") == ["vllm"]}
    assert real == {"vllm-0", "vllm-1", "worker-vllm-0", "worker-vllm-1"}
    engines = [name for name in EMULATED if name.startswith(("engine-", "worker-"))]
    assert len(engines) == 8
    assert {SERVICES[name]["deploy"]["replicas"] for name in engines} == {"${EMULATED:-1}"}
    for name in ("vllm-0", "vllm-1"):
        devices = SERVICES[name]["deploy"]["resources"]["reservations"]["devices"]
        assert devices[0]["capabilities"] == ["gpu"]


def test_only_loopback_ports_are_published() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", ())]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_every_image_is_pinned_to_one_release() -> None:
    for name, service in SERVICES.items():
        tag = unfolded(service["image"]).rpartition(":")[2]
        assert re.fullmatch(r"v?\d+\.\d+\.\d+(-\w+)?", tag), f"{name}: {service['image']}"
    images = re.findall(r"^ARG \w+=(python:\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert images
    assert all(re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", image) for image in images)


@pytest.mark.parametrize("name", SERVICES.keys() - ONE_SHOT - {"agents"})
def test_every_service_tells_whether_it_is_healthy(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] == "CMD"
    assert {"interval", "timeout", "retries"} <= check.keys()


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_waits_until_what_it_needs_is_there(name: str) -> None:
    for needed, how in SERVICES[name].get("depends_on", {}).items():
        expected = "service_completed_successfully" if needed in ONE_SHOT else "service_healthy"
        assert how == {"condition": expected}


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_limits(name: str) -> None:
    limits = SERVICES[name]["deploy"]["resources"]["limits"]
    assert {"memory", "pids"} <= limits.keys()
    assert "cpus" in limits or name.startswith("vllm-")  # how many cores a GPU machine has we do not know
    if "cpus" in limits:
        assert float(limits["cpus"]) <= 1.0  # Docker refuses more than the machine has


@pytest.mark.parametrize("name", SERVICES)
def test_no_service_has_rights_that_it_does_not_need(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is not name.startswith("vllm-")  # vLLM compiles kernels where it is installed
    assert not service.get("privileged")
    assert "/var/run/docker.sock" not in str(service.get("volumes"))
    is_root = service["user"].startswith("0")
    assert is_root is (name in ONE_SHOT)
    if is_root:
        assert service["network_mode"] == "none"
        assert service["cap_add"] == ["CHOWN", "DAC_OVERRIDE"]
    else:
        assert "cap_add" not in service


@pytest.mark.parametrize("name", SERVICES.keys() - ONE_SHOT)
def test_every_service_has_time_to_stop(name: str) -> None:
    assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) >= 15


def test_redis_and_broker_are_on_networks_of_their_own_without_a_way_out() -> None:
    def members(network: str) -> set[str]:
        return {name for name, service in SERVICES.items() if network in service.get("networks", ())}

    assert COMPOSE["networks"]["state"] == COMPOSE["networks"]["bus"] == {"internal": True}
    assert members("state") == {"redis", "gateway"}
    assert members("bus") == {"mosquitto", "gateway", *(name for name in OURS if name.startswith("worker-"))}


def test_volumes_are_named_and_what_is_mounted_from_here_is_read_only() -> None:
    for name, service in SERVICES.items():
        for volume in service.get("volumes", ()):
            source, _, rest = volume.partition(":")
            if source.startswith("."):
                assert rest.endswith(":ro"), f"{name}: {volume}"
                assert (ROOT / source).exists(), f"{name}: {volume}"
            else:
                assert source in COMPOSE["volumes"], f"{name}: {volume}"


def test_no_secret_stands_in_the_files() -> None:
    """Passwords come from the environment, without a default, or from a volume."""
    for name, service in SERVICES.items():
        for key, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD|TOKEN|KEY|SECRET", key) and not key.endswith(("_FILE", "_DIR")):
                assert re.fullmatch(r"\$\{\w+:-\}", value), f"{name}: {key}"
    for path in [ROOT / "docker-compose.yml", ROOT / "Dockerfile", *(ROOT / "deploy").rglob("*")]:
        if path.is_file() and path.name != "logins.sh":
            assert not re.search(r"://[^/\s:{}]+:[^@\s{}]+@", path.read_text()), path
    assert ".env" in (ROOT / ".gitignore").read_text().split()


def test_the_broker_lets_nobody_in_without_a_login() -> None:
    lines = (ROOT / "deploy/mosquitto/mosquitto.conf").read_text().splitlines()
    assert "allow_anonymous false" in lines
    assert "acl_file /mosquitto/config/acl" in lines
    assert "password_file /run/secrets/passwords" in lines


def test_the_broker_s_rules_are_about_the_topics_that_workers_use() -> None:
    rules = (ROOT / "deploy/mosquitto/acl").read_text().splitlines()
    for channel in (Channel.ANNOUNCE, Channel.STATUS, Channel.REPORT):
        assert f"pattern write {topic('default', '%u', channel)}" in rules
        assert f"topic read {topic('default', '+', channel)}" in rules
    assert f"pattern read {topic('default', '%u', Channel.CONTROL)}" in rules
    assert f"topic write {topic('default', '+', Channel.CONTROL)}" in rules
    assert not [rule for rule in rules if "#" in rule[1:]]  # nobody may all


def test_the_image_is_made_of_pinned_packages_and_runs_as_nobody() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text()
    last = dockerfile[dockerfile.rindex("\nFROM ") :]
    assert "FROM scratch" in last
    assert "USER 10001:10001" in last
    assert "--require-hashes -r requirements/image.txt" in dockerfile
    run = set(re.findall(r"^(\S+==\S+)", (ROOT / "requirements/run.txt").read_text(), re.MULTILINE))
    image = set(re.findall(r"^(\S+==\S+)", (ROOT / "requirements/image.txt").read_text(), re.MULTILINE))
    assert image
    assert image <= run
