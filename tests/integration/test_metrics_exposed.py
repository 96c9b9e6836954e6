"""Dashboard, alerts and docs name only metrics and labels that a gateway exposes after real runs."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from agentserve.emulator.config import EmulatorConfig
from agentserve.emulator.inprocess import running
from agentserve.gateway.serve import running_app
from agentserve.local.process import free_port
from agentserve.local.redis import RedisServer
from agentserve.orchestrator import Orchestrator
from agentserve.settings import Settings
from agentserve.workers.config import EngineConfig
from tests.integration.gateway_parts import MODEL, serving, until
from tests.integration.promql import Series, labels_of

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboards/agentserve.json").read_text())
RULES = yaml.safe_load((ROOT / "deploy/prometheus/rules/agentserve.yml").read_text())
OPERATE = (ROOT / "docs/operate.md").read_text()
PROMETHEUS_S_OWN: Series = {"up": frozenset()}
_ENGINE = EmulatorConfig(gpu="h100", speed=0.1, kv_capacity_tokens=4096)
"""So slow that a call would stay longer than a draining instance tolerates, and too small for a long prompt."""
_VARIABLES = {"$__rate_interval": "1m", "$__range": "1h"}

PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS = [
    pytest.param(target, id=f"{panel['title']}-{target['refId']}") for panel in PANELS for target in panel["targets"]
]
ALERTS = [pytest.param(rule, id=rule["alert"]) for group in RULES["groups"] for rule in group["rules"]]


@pytest.fixture(scope="module")
def page() -> str:
    return asyncio.run(_page_after_real_runs())


@pytest.fixture(scope="module")
def series(page: str) -> Series:
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return {name: frozenset(labels) for name, labels in found.items()} | PROMETHEUS_S_OWN


@asynccontextmanager
async def _two_engines() -> AsyncIterator[tuple[httpx.AsyncClient, Orchestrator]]:
    """A gateway as it runs as a process, in front of two emulated engines."""
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(RedisServer())
        engines = [await stack.enter_async_context(running(_ENGINE)) for _ in range(2)]
        settings = Settings(redis_url=redis.url, mqtt_url=f"mqtt://127.0.0.1:{free_port()}", max_body_bytes=2**18)
        static = [
            EngineConfig(engine_url=url, gpu="h100", speed=_ENGINE.speed, kv_capacity_tokens=_ENGINE.kv_capacity_tokens)
            for url in engines
        ]
        app = await stack.enter_async_context(running_app(settings, static))
        url = await stack.enter_async_context(serving(app))
        client = await stack.enter_async_context(httpx.AsyncClient(base_url=url, timeout=30, trust_env=False))
        await until(lambda: len(app.state.orchestrator.instances) == 2)
        yield client, app.state.orchestrator


async def _page_after_real_runs() -> str:
    """Two runs, of which one misses its SLO, two refused calls and a move; the page after it."""
    async with _two_engines() as (client, orchestrator):
        await _move(client, orchestrator)
        for name, slo_s in (("good", "60"), ("late", "0.001")):
            await _run(client, name, slo_s)
        assert (await client.post("/v1/chat/completions", json=_chat(1, "word " * 20_000))).status_code == 400
        assert (await client.post("/v1/chat/completions", json=_chat(1, "word " * 60_000))).status_code == 413
        return (await client.get("/metrics")).text


async def _run(client: httpx.AsyncClient, run_id: str, slo_s: str) -> None:
    headers = {"x-agentserve-run-id": run_id, "x-agentserve-node": "plan", "x-agentserve-slo-s": slo_s}
    (await client.post("/v1/chat/completions", json=_chat(5), headers=headers)).raise_for_status()
    (await client.post(f"/v1/runs/{run_id}/finish", json={})).raise_for_status()


async def _move(client: httpx.AsyncClient, orchestrator: Orchestrator) -> None:
    """Drain the instance that a long call runs on."""
    call = asyncio.create_task(client.post("/v1/chat/completions", json=_chat(3000)))
    await until(lambda: [one for one in orchestrator.calls.values() if one.first_token_s is not None])
    (live,) = orchestrator.calls.values()
    orchestrator.draining(live.runs_on[0])
    await until(lambda: live.migrations == 1)
    orchestrator.cancel(live.request_id)
    await call


def _chat(tokens: int, text: str = "Go on.") -> Mapping[str, Any]:
    return {
        "model": MODEL,
        "messages": [{"role": "user", "content": text}],
        "min_tokens": tokens,
        "max_tokens": tokens,
    }


async def test_an_instance_that_broke_is_down_and_one_that_was_drained_is_gone() -> None:
    async with _two_engines() as (client, orchestrator):
        drained, broken = sorted(orchestrator.instances)
        orchestrator.draining(drained)
        for name in (drained, broken):
            orchestrator.lost(name, "the test took it")
        page = (await client.get("/metrics")).text
    up = re.findall(r'^agentserve_instance_up{.*worker="(.*)"} (.*)$', page, re.MULTILINE)
    assert up == [(broken, "0.0")]


def test_a_run_without_a_chance_is_counted_as_such(page: str) -> None:
    missed = re.findall(r'^agentserve_missed_runs_total{blame="(\w+)",workflow="unnamed"} (.*)$', page, re.MULTILINE)
    assert {blame for blame, count in missed if float(count)} == {"infeasible"}


@pytest.mark.parametrize("target", TARGETS)
def test_a_panel_asks_only_for_what_is_exposed(target: Mapping[str, Any], series: Series) -> None:
    text = target["expr"]
    for variable, value in _VARIABLES.items():
        text = text.replace(variable, value)
    labels = labels_of(text, series)
    named = set(re.findall(r"{{\s*(\w+)\s*}}", target["legendFormat"]))
    assert named <= labels, f"{target['legendFormat']!r} names labels that the result has not: it has {sorted(labels)}"


def test_the_dashboard_s_variables_are_exposed(series: Series) -> None:
    for variable in DASHBOARD["templating"]["list"]:
        metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", variable["definition"]).groups()  # type: ignore[union-attr]
        assert label in series[metric]
        assert variable["query"]["query"] == variable["definition"]


def test_the_dashboard_has_sound_panels() -> None:
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    places = set()
    for panel in DASHBOARD["panels"]:
        grid = panel["gridPos"]
        cells = {(grid["x"] + x, grid["y"] + y) for x in range(grid["w"]) for y in range(grid["h"])}
        assert not cells & places, f"{panel['title']} lies over another panel"
        assert max(x for x, _ in cells) < 24
        places |= cells
    assert all(panel["description"] for panel in PANELS)


def test_the_dashboard_uses_the_provisioned_source() -> None:
    source = yaml.safe_load((ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml").read_text())
    uid = source["datasources"][0]["uid"]
    used = {target["datasource"]["uid"] for panel in PANELS for target in (panel, *panel["targets"])}
    assert used == {uid}
    provider = yaml.safe_load((ROOT / "deploy/grafana/provisioning/dashboards/agentserve.yml").read_text())
    assert provider["providers"][0]["options"]["path"] == "/var/lib/grafana/dashboards"


@pytest.mark.parametrize("rule", ALERTS)
def test_an_alert_asks_only_for_what_is_exposed(rule: Mapping[str, Any], series: Series) -> None:
    labels = labels_of(rule["expr"], series)
    for text in rule["annotations"].values():
        named = set(re.findall(r"\$labels\.(\w+)", text))
        assert named <= labels, f"{text!r} names labels that the result has not: it has {sorted(labels)}"


@pytest.mark.parametrize("rule", ALERTS)
def test_an_alert_has_what_prometheus_and_people_need(rule: Mapping[str, Any]) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", rule["alert"])
    assert "for" not in rule or re.fullmatch(r"\d+[smh]", rule["for"])
    assert rule["labels"].keys() == {"severity"}
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert rule["annotations"].keys() == {"summary", "description"}


def test_rule_groups_have_names_of_their_own() -> None:
    assert RULES.keys() == {"groups"}
    assert all(group.keys() == {"name", "rules"} and group["rules"] for group in RULES["groups"])
    names = [group["name"] for group in RULES["groups"]]
    alerts = [rule["alert"] for group in RULES["groups"] for rule in group["rules"]]
    assert len(set(names)) == len(names)
    assert len(set(alerts)) == len(alerts)


def test_prometheus_scrapes_the_gateway_and_reads_the_rules() -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    assert (job["job_name"], job["metrics_path"]) == ("agentserve", "/metrics")
    found = [path for pattern in config["rule_files"] for path in (ROOT / "deploy/prometheus").glob(pattern)]
    assert found == [ROOT / "deploy/prometheus/rules/agentserve.yml"]
    used = re.findall(r'job="(\w+)"', json.dumps([rule.values[0] for rule in ALERTS]).replace('\\"', '"'))
    assert set(used) == {"agentserve"}


def test_the_table_of_metrics_is_what_is_exposed(series: Series) -> None:
    rows = re.findall(r"^\| `(agentserve_\w+)` \| (\w+) \|([^|]*)\|", OPERATE, re.MULTILINE)
    told = {name: frozenset(re.findall(r"`(\w+)`", labels)) for name, _, labels in rows}
    exposed = {
        re.sub(r"_(bucket|count|sum)$", "", name): labels - {"le"}
        for name, labels in series.items()
        if name.startswith("agentserve_")
    }
    assert told == exposed


def test_the_kinds_in_the_table_are_those_of_the_page(page: str) -> None:
    rows = re.findall(r"^\| `(agentserve_\w+)` \| (\w+) \|", OPERATE, re.MULTILINE)
    kinds = dict(re.findall(r"^# TYPE (agentserve_\w+) (counter|gauge|histogram)$", page, re.MULTILINE))
    assert dict(rows) == kinds


def test_every_alert_is_explained() -> None:
    rows = re.findall(r"^\| `(Agentserve\w+)` \| (\w+) \|", OPERATE, re.MULTILINE)
    assert dict(rows) == {rule.values[0]["alert"]: rule.values[0]["labels"]["severity"] for rule in ALERTS}


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("agentserve_nothing_total", "is not exposed"),
        ("agentserve_run_e2e_seconds", "is not exposed"),
        ('agentserve_calls_total{colour="red"}', "has no label colour"),
        ("sum by (colour) (agentserve_calls_total)", "no label"),
        ("histogram_quantile(0.5, sum(agentserve_run_e2e_seconds_bucket))", "no label le"),
        ("agentserve_calls_total / agentserve_runs_total", "never match"),
        ("agentserve_instance_up / on (colour) agentserve_instance_up", "not on both sides"),
    ],
)
def test_an_expression_that_would_give_nothing_is_found(expression: str, complaint: str, series: Series) -> None:
    with pytest.raises(AssertionError, match=complaint):
        labels_of(expression, series)
