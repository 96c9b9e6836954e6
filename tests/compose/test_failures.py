"""What breaks how? A killed worker takes no run with it, a killed broker stops nothing, and a stop is a clean one."""

from collections.abc import Iterator

import pytest

from tests.compose.cluster import Cluster, get, results, run_agent, until


@pytest.fixture(autouse=True)
def whole(cluster: Cluster) -> Iterator[None]:
    """Each test begins with, and leaves, a whole cluster."""
    until(cluster.all_online, "all four online")
    yield
    cluster.compose("start")
    until(cluster.all_online, "all four online again")


def test_runs_end_although_a_worker_is_killed_under_them(cluster: Cluster) -> None:
    runs = [run_agent(cluster, agent) for agent in ("researcher", "debate", "researcher", "debate")]
    busy = until(lambda: busiest(cluster), "a call that decodes")
    service = {"a100-80g-1": "a100-1", "a100-80g-2": "a100-2"}.get(busy, busy)
    cluster.compose("kill", f"engine-{service}", f"worker-{service}")
    until(lambda: cluster.instances().get(busy) != "online", f"{busy} lost")
    ended = results(runs)
    print(f"\nkilled {busy}; " + ", ".join(f"{run['run_id']}: {run['e2e_s']:.2f} s" for run in ended))
    for run in ended:
        told = get(f"{cluster.gateway}/v1/runs/{run['run_id']}")
        assert told["status"] == "succeeded"
    lost = f'agentserve_instance_up{{worker="{busy}"}} == 0'
    until(lambda: cluster.query(lost), "the loss in Prometheus")


def busiest(cluster: Cluster) -> str | None:
    """The instance with most calls in decode; None while there is none."""
    told = get(f"{cluster.gateway}/v1/cluster")["scheduler"]["instances"]
    most = max(told, key=lambda instance: int(instance["running"]))
    return str(most["instance_id"]) if most["running"] else None


def test_serving_goes_on_without_the_broker_and_it_is_found_again(cluster: Cluster) -> None:
    cluster.compose("kill", "mosquitto")
    connected = "agentserve_broker_connected"
    until(lambda: cluster.query(connected) and cluster.value(connected) == 0, "the broker seen as gone", within_s=60)
    (result,) = results([run_agent(cluster, "support_triage")])
    assert get(f"{cluster.gateway}/v1/runs/{result['run_id']}")["status"] == "succeeded"
    assert cluster.all_online()  # nobody is lost for it
    cluster.compose("start", "mosquitto")
    until(lambda: cluster.value(connected) == 1, "the broker found again", within_s=60)
    until(cluster.all_online, "all four online")
    (result,) = results([run_agent(cluster, "support_triage")])
    assert result["output"]


def test_what_is_stopped_ends_by_itself_in_time(cluster: Cluster) -> None:
    stopped = ("worker-a100-1", "engine-a100-1", "gateway", "redis")
    cluster.compose("stop", *stopped)
    codes = {name: cluster.service(name)["State"]["ExitCode"] for name in stopped}
    assert codes == dict.fromkeys(stopped, 0)


def test_runs_survive_a_restart_of_gateway_and_redis(cluster: Cluster) -> None:
    (result,) = results([run_agent(cluster, "support_triage")])
    cluster.compose("restart", "redis", "gateway")
    until(lambda: get(f"{cluster.gateway}/v1/runs/{result['run_id']}")["status"] == "succeeded", "the run still known")
