"""Does `docker compose up` bring what it says: every part healthy, shut in, and no larger than it need be?"""

import pytest

from tests.compose.cluster import WORKERS, Cluster, docker, get, service_of, until

OURS = ("gateway", "worker-", "engine-")


def health(container: dict) -> str:
    return str(container["State"].get("Health", {}).get("Status", container["State"]["Status"]))


def test_every_service_is_healthy(cluster: Cluster) -> None:
    def states() -> dict[str, str]:
        return {service_of(one): health(one) for one in cluster.containers()}

    until(lambda: set((now := states()).values()) == {"healthy", "exited"} and now, "all healthy")
    now = states()
    assert len(now) == 15
    assert [name for name, state in now.items() if state == "exited"] == ["logins"]
    assert cluster.service("logins")["State"]["ExitCode"] == 0


def test_all_four_workers_take_calls(cluster: Cluster) -> None:
    until(cluster.all_online, "all four online")
    assert tuple(sorted(cluster.instances())) == WORKERS


def test_ports_are_published_on_loopback_only(cluster: Cluster) -> None:
    published = [
        binding["HostIp"]
        for container in cluster.containers()
        for bindings in container["HostConfig"]["PortBindings"].values()
        for binding in bindings
    ]
    assert len(published) == 4
    assert set(published) == {"127.0.0.1"}


def test_containers_are_shut_in(cluster: Cluster) -> None:
    for container in cluster.containers():
        name, settings = service_of(container), container["HostConfig"]
        assert settings["ReadonlyRootfs"], name
        assert settings["CapDrop"] == ["ALL"], name
        assert "no-new-privileges:true" in settings["SecurityOpt"], name
        assert settings["Memory"] > 0, name
        assert settings["NanoCpus"] > 0, name
        assert settings["PidsLimit"] > 0, name
        assert container["Config"]["User"].startswith("0") is (name == "logins"), name


@pytest.mark.parametrize("service", ["gateway", "worker-h100-1", "redis", "mosquitto", "prometheus"])
def test_the_processes_run_as_nobody_special(cluster: Cluster, service: str) -> None:
    container = cluster.service(service)["Id"]
    told = docker("top", container, "-o", "pid,uid").stdout.splitlines()[1:]
    assert told
    assert "0" not in {line.split()[-1] for line in told}


def test_the_image_is_small_and_has_no_build_tools(cluster: Cluster) -> None:
    found = cluster.compose(
        "exec", "-T", "gateway", "sh", "-c", "command -v gcc cc make pip pip3 apt-get dpkg perl git; true"
    )
    assert found.strip() == ""
    size = int(docker("image", "inspect", cluster.service("gateway")["Image"], "--format", "{{.Size}}").stdout)
    print(f"\nimage: {size / 1e6:.0f} MB")
    assert size < 250e6


def test_no_password_is_in_the_environment_or_the_log(cluster: Cluster) -> None:
    url = cluster.compose("exec", "-T", "gateway", "cat", "/run/secrets/agentserve_mqtt_url").strip()
    password = url.partition("@")[0].rpartition(":")[2]
    assert len(password) >= 16
    everything = docker("inspect", *(one["Id"] for one in cluster.containers())).stdout
    assert password not in everything
    assert password not in cluster.compose("logs", "--no-color")


def test_grafana_has_our_dashboard(cluster: Cluster) -> None:
    assert get(f"{cluster.grafana}/api/health")["database"] == "ok"
    titles = [
        found["title"] for found in until(lambda: get(f"{cluster.grafana}/api/search?type=dash-db"), "dashboards")
    ]
    assert any("agentserve" in title.lower() for title in titles), titles
