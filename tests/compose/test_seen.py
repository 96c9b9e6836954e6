"""Can a run be seen afterwards? Its span tree in Jaeger, its figures in Prometheus, and doctor finds all well."""

import json
from collections import defaultdict
from typing import Any
from urllib.parse import quote

import pytest

from tests.compose.cluster import WORKERS, Cluster, get, results, run_agent, until


@pytest.fixture(scope="module")
def run(cluster: Cluster) -> dict[str, Any]:
    """One run of a catalog agent with parallel steps, from outside of the containers."""
    until(cluster.all_online, "all four online")
    (result,) = results([run_agent(cluster, "researcher")])
    print(f"\nrun {result['run_id']}: {result['e2e_s']:.2f} s of {result['slo_s']:g} s")
    return result


def attributes(span: dict[str, Any]) -> dict[str, Any]:
    return {tag["key"]: tag["value"] for tag in span["tags"]}


def parent(span: dict[str, Any]) -> str | None:
    return next((one["spanID"] for one in span["references"] if one["refType"] == "CHILD_OF"), None)


def whole_trace(cluster: Cluster, run_id: str) -> list[dict[str, Any]] | None:
    """The run's spans in Jaeger, once the span of the run itself is there."""
    tags = quote(json.dumps({"agentserve.run.id": run_id}))
    found = get(f"{cluster.jaeger}/api/traces?service=agentserve&tags={tags}")["data"]
    spans = found[0]["spans"] if found else []
    return spans if any(parent(span) is None for span in spans) else None


def drawn(spans: list[dict[str, Any]]) -> list[str]:
    """The tree, one line per span: name, when it began, how long it took."""
    children = defaultdict(list)
    for span in sorted(spans, key=lambda span: (span["startTime"], -span["duration"])):
        children[parent(span)].append(span)
    began = children[None][0]["startTime"]
    lines: list[str] = []

    def below(span_id: str | None, depth: int) -> None:
        for span in children[span_id]:
            name = "   " * depth + span["operationName"]
            at_s, took_s = (span["startTime"] - began) / 1e6, span["duration"] / 1e6
            where = attributes(span).get("agentserve.instance", "")
            lines.append(f"{name:<44} {at_s:8.3f} s  + {took_s:7.3f} s  {where}".rstrip())
            below(span["spanID"], depth + 1)

    below(None, 0)
    return lines


def test_the_run_came_to_its_end_with_an_answer(run: dict[str, Any]) -> None:
    assert run["output"]["report"]
    assert run["attained"] is True


def test_jaeger_has_the_whole_tree_of_the_run(cluster: Cluster, run: dict[str, Any]) -> None:
    spans = until(lambda: whole_trace(cluster, run["run_id"]), "the run's span in Jaeger", within_s=60)
    tree = drawn(spans)
    print("\n" + "\n".join(tree))
    assert len(tree) == len(spans)  # no span without its parent
    by_id = {span["spanID"]: span for span in spans}
    (root,) = (span for span in spans if parent(span) is None)
    assert root["operationName"] == "invoke_workflow researcher"
    assert attributes(root)["agentserve.attained"] is True or attributes(root)["agentserve.attained"] == "true"
    names = defaultdict(list)
    for span in spans:
        names[span["operationName"]].append(span)
    assert {"invoke_agent plan", "invoke_agent search", "invoke_agent write", "chat llama-3.1-8b"} <= names.keys()
    assert len(names["invoke_agent search"]) > 1
    for chat in names["chat llama-3.1-8b"]:
        assert by_id[str(parent(chat))]["operationName"].startswith("invoke_agent ")
        events = [field["value"] for log in chat["logs"] for field in log["fields"] if field["key"] == "event"]
        assert "agentserve.decision" in events
    for phase in ("prefill", "decode"):
        assert len(names[phase]) >= len(names["chat llama-3.1-8b"])
        assert {attributes(span)["agentserve.instance"] for span in names[phase]} <= set(WORKERS)


def test_parallel_steps_lie_side_by_side(cluster: Cluster, run: dict[str, Any]) -> None:
    spans = until(lambda: whole_trace(cluster, run["run_id"]), "the run's span in Jaeger", within_s=60)
    searches = [span for span in spans if span["operationName"] == "invoke_agent search"]
    first_end = min(span["startTime"] + span["duration"] for span in searches)
    assert all(span["startTime"] < first_end for span in searches)


def test_prometheus_scrapes_the_gateway_through_the_compose_network(cluster: Cluster, run: dict[str, Any]) -> None:
    runs = 'agentserve_runs_total{workflow="researcher",status="succeeded"}'
    until(lambda: cluster.value(runs) >= 1, "the run in Prometheus", within_s=60)
    (target,) = get(f"{cluster.prometheus}/api/v1/targets")["data"]["activeTargets"]
    assert (target["scrapeUrl"], target["health"]) == ("http://gateway:8080/metrics", "up")
    asked = {
        "runs": runs,
        "calls": "agentserve_calls_total",
        "output tokens": 'agentserve_tokens_total{kind="output"}',
        "dispatches": "agentserve_dispatches_total",
        "instances online": 'agentserve_instances{state="online"}',
        "broker": "agentserve_broker_connected",
        "mean TTFT, s": "agentserve_time_to_first_token_seconds_sum / agentserve_time_to_first_token_seconds_count",
    }
    values = {name: cluster.value(promql) for name, promql in asked.items()}
    print("\n" + "\n".join(f"{name:<20} {values[name]:10.3f}   {asked[name]}" for name in asked))
    assert values["instances online"] == 4
    assert values["broker"] == 1
    assert values["calls"] >= 3
    up = {result["metric"]["worker"] for result in cluster.query("agentserve_instance_up == 1")}
    assert up == set(WORKERS)


def test_prometheus_has_our_alerts(cluster: Cluster) -> None:
    groups = get(f"{cluster.prometheus}/api/v1/rules")["data"]["groups"]
    rules = {rule["name"]: rule for group in groups for rule in group["rules"]}
    assert {"AgentserveWorkerLost", "AgentserveAttainmentLow", "AgentserveLengthsMispredicted"} <= rules.keys()
    assert {rule["health"] for rule in rules.values()} <= {"ok", "unknown"}


def test_doctor_in_the_network_finds_no_problem(cluster: Cluster) -> None:
    print("\n" + cluster.compose("exec", "-T", "-e", "COLUMNS=180", "gateway", "agentserve", "doctor"))
    told = json.loads(cluster.compose("exec", "-T", "gateway", "agentserve", "doctor", "--json"))
    parts = {finding["part"] for finding in told["findings"]}
    assert {"gateway", "redis", "broker", "traces"} <= parts
    assert {f"worker {name}" for name in WORKERS} | {f"engine {name}" for name in WORKERS} <= parts
    assert [finding for finding in told["findings"] if finding["verdict"] == "problem"] == []


def test_the_load_of_the_profile_agents_runs_the_catalog(cluster: Cluster) -> None:
    cluster.compose("up", "--detach", "--no-build", "--no-deps", "agents", profile="agents")
    try:
        until(lambda: "inside its SLO" in cluster.compose("logs", "--no-color", "agents", profile="agents"), "a run")
        print("\n" + cluster.compose("logs", "--no-color", "agents", profile="agents"))
    finally:
        cluster.compose("rm", "--stop", "--force", "agents", profile="agents")
