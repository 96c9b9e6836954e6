"""Does a real gateway keep its word on bad requests? Schemathesis makes them from its OpenAPI description."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from schemathesis import GenerationMode

MAX_READ_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Answered:
    """How often each status came from one operation, and what was not as described."""

    operation: str
    statuses: dict[int, int]
    problems: list[str]


def attack_http(
    url: str, cases: int, number: int, tell: Callable[[int], None] = lambda done: None
) -> Iterator[Answered]:
    """About so many requests, good and bad, to every operation of the gateway at `url`; its undescribed answers."""
    with requests.Session() as session:
        known = _prepared(session, url)
        schema = schemathesis.openapi.from_dict(_narrowed(session.get(f"{url}/openapi.json", timeout=30).json(), known))
        operations = [result.ok() for result in schema.get_all_operations()]
        for operation in operations:
            yield _attack(operation, url, session, max(1, cases // len(operations)), number)
            tell(max(1, cases // len(operations)))


def _prepared(session: requests.Session, url: str) -> dict[str, list[Any]]:
    """Make a workflow and runs, and say what exists, so that good requests get past the first check."""
    nodes = [{"name": "plan", "kind": "llm"}]
    edges = [{"source": "__start__", "target": "plan"}, {"source": "plan", "target": "__end__"}]
    graph = {"name": "w", "nodes": nodes, "edges": edges}
    session.put(f"{url}/v1/workflows/w", json=graph, timeout=30).raise_for_status()
    runs = [f"fuzz-{number}" for number in range(4)]
    for run_id in runs:
        session.post(f"{url}/v1/runs", json={"run_id": run_id, "workflow": "w"}, timeout=30).raise_for_status()
    models = [model["id"] for model in session.get(f"{url}/v1/models", timeout=30).json()["data"]]
    times: dict[str, list[Any]] = {"x-agentserve-deadline": [time.time() + 3600], "x-agentserve-slo-s": [5, 60.5]}
    return times | {"run_id": runs, "x-agentserve-run-id": runs, "workflow": ["w"], "model": models, "run": runs}


def _narrowed(value: Any, known: dict[str, list[Any]]) -> Any:
    """The description with names that exist, and answers short enough for thousands of calls."""
    if isinstance(value, list):
        return [_narrowed(item, known) for item in value]
    if not isinstance(value, dict):
        return value
    made = {name: _narrowed(item, known) for name, item in value.items()}
    if value.get("in") in ("path", "header", "query") and value["name"] in known:
        made["schema"] = {"enum": known[value["name"]]}
    if isinstance(properties := made.get("properties"), dict):
        properties |= {name: {"enum": known[name]} for name in ("model", "workflow") if name in properties}
        for name in ("max_tokens", "max_completion_tokens", "min_tokens", "n", "best_of"):
            if name in properties:
                properties[name] = {**properties[name], "maximum": 16 if "tokens" in name else 2}
    return made


def _attack(operation: Any, url: str, session: requests.Session, cases: int, number: int) -> Answered:
    described = {int(status) for status in operation.definition.raw["responses"]} | {404, 405, 400, 415}
    found = Answered(f"{operation.method.upper()} {operation.path}", {}, [])
    for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
        try:
            strategy = operation.as_strategy(generation_mode=mode)
            _draw(strategy, url, session, max(1, cases // 2), number, found, described)
        except Exception as error:  # noqa: BLE001  # some operations have nothing to make wrong
            if "negat" not in str(error).lower() and type(error).__name__ != "Unsatisfiable":
                found.problems.append(f"{type(error).__name__}: {str(error)[:300]}")
    return found


def _draw(
    strategy: Any, url: str, session: requests.Session, cases: int, number: int, found: Answered, described: set[int]
) -> None:
    @seed(number)
    @settings(
        max_examples=cases,
        database=None,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(case=strategy)
    def one(case: Any) -> None:
        sent = case.as_transport_kwargs(base_url=url)
        try:
            with session.request(**sent, stream=True, timeout=30, allow_redirects=False) as answer:
                status, head = answer.status_code, next(answer.iter_content(MAX_READ_BYTES), b"")
        except (requests.exceptions.InvalidHeader, UnicodeError, requests.exceptions.InvalidURL):
            return  # nothing was sent: no HTTP client would
        found.statuses[status] = found.statuses.get(status, 0) + 1
        if status not in described and status != 307:
            found.problems.append(f"{status} is not described: {sent['method']} {sent['url'][:200]}: {head[:200]!r}")

    one()
