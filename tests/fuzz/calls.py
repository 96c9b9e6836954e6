"""Targets: bodies and headers of calls, and what continues a broken stream, as the gateway checks them."""

from typing import Any

import orjson

from agentserve.errors import AgentServeError
from agentserve.gateway.bodies import check_call, with_single_prompt
from agentserve.gateway.identity import read_identity
from agentserve.gateway.rest import _transition
from agentserve.orchestrator.prompts import PromptSizer
from agentserve.orchestrator.request import CHAT, COMPLETIONS, CallRequest, migration_refusal
from agentserve.orchestrator.stream import JoinedStream
from tests.fuzz.mutations import case
from tests.fuzz.target import Target
from workflows.errors import WorkflowError
from workflows.graph import Workflow

RESUME = {"resume": {"prompt_token_ids": [1, 2, 3], "token_ids": [4, 5]}}
BODIES: list[dict[str, Any]] = [
    {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True, "max_tokens": 5},
    {
        "model": "m",
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "be brief"}]},
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f"}}]},
            {"role": "tool", "content": "x", "tool_call_id": "1"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
        "n": 2,
        "stop": ["a", "b"],
        "response_format": {"type": "json_object"},
        "stream_options": {"include_usage": True},
        "logprobs": True,
        "seed": 1,
    },
    {"model": "m", "prompt": "hi", "max_tokens": 5, "min_tokens": 1, "stop": "x", "best_of": 1, "echo": False},
    {
        "model": "m",
        "prompt": [[1, 2, 3]],
        "stream": False,
        "return_token_ids": True,
        "include_stop_str_in_output": True,
    },
    {"model": "m", "prompt": ["a", "b"], "presence_penalty": 0.5, "prompt_logprobs": 1},
    {"model": "m", "prompt": [1, 2, 3], "stream": True, "agentserve": RESUME},
    {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True, "agentserve": RESUME},
]
HEADERS: list[dict[str, Any]] = [
    {
        "x-agentserve-run-id": "trip-42",
        "x-agentserve-step-id": "plan.1",
        "x-agentserve-node": "pl%C3%A4n",
        "x-agentserve-workflow": "w",
        "x-agentserve-parent-steps": "a.1, b.2",
        "x-agentserve-slo-s": "20",
        "x-agentserve-request-id": "call-1",
        "x-agentserve-session-id": "s",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    },
    {"x-agentserve-deadline": "1000060.5", "x-session-id": "s", "x-agentserve-node": "n"},
]
STEPS: list[dict[str, Any]] = [
    {"event": "started", "step_id": "plan.1", "node": "plan", "kind": "llm", "parents": ["a"], "at_s": 1_000_000.0},
    {"event": "finished", "step_id": "plan.1", "at_s": 1_000_001, "status": "failed", "error": "ValueError"},
]
WORKFLOWS: list[dict[str, Any]] = [
    {
        "name": "w",
        "nodes": [{"name": "plan", "kind": "llm"}, {"name": "act", "kind": "tool"}],
        "edges": [
            {"source": "__start__", "target": "plan"},
            {"source": "plan", "target": "act", "label": "go"},
            {"source": "plan", "target": "__end__"},
            {"source": "act", "target": "plan", "fan_out": True},
        ],
    }
]
NOW_S = 1_000_000.0
_prompts = PromptSizer()


def _parsed(given: bytes) -> Any:
    """As the gateway reads a body: what is no JSON object is refused there."""
    try:
        value = orjson.loads(given)
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _body(given: bytes) -> None:
    body = _parsed(given)
    if body is None:
        return
    for path in (CHAT, COMPLETIONS):
        one = with_single_prompt(body)
        try:
            resume = check_call(path, one, 10_000)
        except AgentServeError:
            continue
        request = CallRequest(
            request_id="r",
            path=path,
            body=one,
            model=one["model"],
            run_id="run",
            step_id="s",
            workflow="w",
            node="n",
            resume=resume,
        )
        stream = JoinedStream(request, migration_refusal(path, one))
        assert stream.max_tokens_left is None or isinstance(stream.max_tokens_left, int)
        _prompts.estimate(request.model, one)


def _headers(given: bytes) -> None:
    value = _parsed(given)
    if value is not None:
        read_identity({str(name): str(text) for name, text in value.items() if text is not None}, 86_400.0, NOW_S)


TARGETS = (
    Target("call-body", lambda draw: case(BODIES, draw), _body),
    Target("call-headers", lambda draw: case(HEADERS, draw), _headers, (AgentServeError,)),
    Target(
        "step-report",
        lambda draw: case(STEPS, draw),
        lambda given: None if (one := _parsed(given)) is None else _transition("steps[0]", one, NOW_S),
        (AgentServeError,),
    ),
    Target(
        "workflow",
        lambda draw: case(WORKFLOWS, draw),
        lambda given: None if (one := _parsed(given)) is None else Workflow.from_dict(one).validate(),
        (WorkflowError,),
    ),
)
