"""How the replay client speaks to a gateway, and what it measures."""

import json
import re

import httpx
import orjson
import pytest

from agentserve.emulator.tokens import encode
from agentserve.errors import AgentServeError, BadInput, Unavailable
from agentserve.lab.plans import FixedSlo, RunPlan, StepPlan, Workload
from agentserve.lab.prompts import prompt_of, reply_directive
from agentserve.lab.replay import ReplayProgress, replay
from agentserve.lab.results import ReplayResult
from agentserve.lab.sse import StreamMeter
from agentserve.lab.trace_sessions import WORKFLOW, coding_agent

FAST = 1e5  # tool times and arrivals shrink to nothing


def step(step_id, *, parents=(), gap_s=0.0, prompt=200, out=5, blocks=((1, 3),), node="agent"):
    return StepPlan(
        step_id=step_id, node=node, prompt_tokens=prompt, output_tokens=out, parents=parents, tool_gap_s=gap_s,
        blocks=blocks, block_tokens=50, block_space="sess",
    )  # fmt: skip


def plan(run_id, *steps, arrival_s=0.0):
    return RunPlan(run_id=run_id, workflow=WORKFLOW, arrival_s=arrival_s, session_id="sess", steps=steps)


def workload(*plans):
    return Workload(source="made up", plans=plans, workflows={WORKFLOW: coding_agent()}, notes=("a note",))


def sse(tokens, *, error=None, done=True):
    chunks = [{"choices": [{"delta": {"role": "assistant", "content": ""}}]}]
    chunks += [{"choices": [{"delta": {"content": f" t{i}"}}]} for i in range(tokens)]
    if error is not None:
        chunks.append({"error": {"message": error, "type": "server_error"}})
    else:
        usage = {"prompt_tokens": 203, "completion_tokens": tokens, "prompt_tokens_details": {"cached_tokens": 64}}
        chunks.append({"choices": [], "usage": usage})
    text = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
    return text + ("data: [DONE]\n\n" if done else "")


def streamed(text):
    async def body():
        yield text.encode()

    return httpx.Response(200, content=body())


class FakeGateway:
    """Answers as the gateway does and keeps what it was asked; `fail` maps a request id to a response."""

    def __init__(self, fail=None, events=None):
        self.requests = []
        self._fail = fail or {}
        self._events = events or []

    def client(self):
        return httpx.AsyncClient(transport=httpx.MockTransport(self._answer))

    def _answer(self, request):
        self.requests.append(request)
        path = request.url.path
        if path == "/v1/chat/completions":
            request_id = request.headers["x-agentserve-request-id"]
            tokens = int(re.search(r"tokens=(\d+)", request.content.decode())[1])
            return self._fail.get(request_id) or streamed(sse(tokens))
        if path == "/v1/cluster":
            return httpx.Response(200, json={"policy": "round_robin"})
        if path.endswith("/events"):
            run_id = path.split("/")[3]
            return httpx.Response(200, json={"data": [e for e in self._events if e["run_id"] == run_id]})
        return httpx.Response(201, json={})

    def calls(self):
        return [request for request in self.requests if request.url.path == "/v1/chat/completions"]

    def posted(self, ending):
        return [
            (request.url.path.split("/")[3], json.loads(request.content))
            for request in self.requests
            if request.method == "POST" and request.url.path.endswith(ending)
        ]


async def played(gateway, load, **options):
    options = {"speed": FAST, "slo": FixedSlo(1e7), "model": "m", "run_prefix": ""} | options
    async with gateway.client() as client:
        return await replay(load, "http://gateway", client=client, **options)


async def test_a_run_is_submitted_called_step_by_step_and_finished():
    gateway = FakeGateway()
    result = await played(gateway, workload(plan("r1", step("s0"), step("s1", parents=("s0",)))))
    paths = [(request.method, request.url.path) for request in gateway.requests]
    assert paths == [
        ("PUT", "/v1/workflows/coding-agent"),
        ("POST", "/v1/runs"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/runs/r1/steps"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/runs/r1/steps"),
        ("POST", "/v1/runs/r1/finish"),
        ("GET", "/v1/runs/r1/events"),
        ("GET", "/v1/cluster"),
    ]
    (run,) = result.runs
    assert run.succeeded
    assert run.attained
    assert result.policy == "round_robin"
    assert [(call.request_id, call.output_tokens, call.prompt_tokens, call.cached_tokens) for call in result.calls] == [
        ("r1.s0", 5, 203, 64),
        ("r1.s1", 5, 203, 64),
    ]


async def test_headers_name_run_step_node_and_parents():
    gateway = FakeGateway()
    await played(gateway, workload(plan("r1", step("s0"), step("s1", parents=("s0",)))))
    second = {k: v for k, v in gateway.calls()[1].headers.items() if k.startswith("x-agentserve")}
    assert second == {
        "x-agentserve-run-id": "r1",
        "x-agentserve-workflow": WORKFLOW,
        "x-agentserve-step-id": "s1",
        "x-agentserve-node": "agent",
        "x-agentserve-parent-steps": "s0",
        "x-agentserve-session-id": "sess",
        "x-agentserve-request-id": "r1.s1",
    }


async def test_the_true_length_stands_only_at_the_end_of_the_prompt():
    gateway = FakeGateway()
    await played(gateway, workload(plan("r1", step("s0", out=4321))))
    (call,) = gateway.calls()
    body = orjson.loads(call.content)
    assert set(body) == {"model", "messages", "stream", "stream_options"}
    assert body["messages"][-1]["content"].endswith(reply_directive(4321))
    assert not any("4321" in value for value in call.headers.values())


async def test_a_tool_time_is_reported_as_a_tool_step_between_the_calls():
    gateway = FakeGateway()
    await played(gateway, workload(plan("r1", step("s0"), step("s1", parents=("s0",), gap_s=3.0))))
    reported = [
        (one["event"], one["step_id"], one.get("kind"), one.get("parents"), one.get("status"))
        for _, body in gateway.posted("/steps")
        for one in body["steps"]
    ]
    assert reported == [
        ("finished", "s0", "llm", None, "succeeded"),
        ("started", "s1-tool", "tool", ["s0"], None),
        ("finished", "s1", "llm", None, "succeeded"),
    ]
    assert gateway.calls()[1].headers["x-agentserve-parent-steps"] == "s1-tool"


async def test_slo_and_prefix_go_into_the_run():
    gateway = FakeGateway()
    await played(gateway, workload(plan("r1", step("s0"))), speed=4.0, slo=FixedSlo(20.0), run_prefix="x-")
    (submitted,) = [json.loads(r.content) for r in gateway.requests if (r.method, r.url.path) == ("POST", "/v1/runs")]
    assert submitted == {"run_id": "x-r1", "workflow": WORKFLOW, "slo_s": 5.0}


async def test_a_failed_call_fails_its_run_and_no_other():
    refusal = httpx.Response(
        503, json={"error": {"message": "no instance serves m", "type": "x", "code": "unavailable"}}
    )
    gateway = FakeGateway(fail={"r1.s0": refusal})
    result = await played(
        gateway, workload(plan("r1", step("s0"), step("s1", parents=("s0",))), plan("r2", step("s0")))
    )
    assert {run.run_id: (run.succeeded, run.attained) for run in result.runs} == {
        "r1": (False, False),
        "r2": (True, True),
    }
    assert sorted(call.headers["x-agentserve-request-id"] for call in gateway.calls()) == ["r1.s0", "r2.s0"]
    assert result.errors == {"HTTP 503: no instance serves m": 1}
    ends = {run: body["status"] for run, body in gateway.posted("/finish")}
    assert ends == {"r1": "failed", "r2": "succeeded"}


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (sse(3, error="engine lost"), "engine lost"),
        (sse(3, done=False), "the stream broke off"),
        ("", "the stream broke off"),
    ],
)
async def test_a_stream_that_breaks_is_a_failed_call(text, error):
    result = await played(FakeGateway(fail={"r1.s0": streamed(text)}), workload(plan("r1", step("s0"))))
    assert result.errors == {error: 1}
    assert not result.calls[0].ok


async def test_children_wait_for_all_their_parents():
    gateway = FakeGateway()
    steps = (step("a"), step("b", parents=("a",)), step("c", parents=("a",)), step("d", parents=("b", "c")))
    await played(gateway, workload(plan("r1", *steps)))
    order = [call.headers["x-agentserve-step-id"] for call in gateway.calls()]
    assert order[0] == "a"
    assert order[-1] == "d"
    assert gateway.calls()[-1].headers["x-agentserve-parent-steps"] == "b,c"


async def test_splits_and_migrations_come_from_the_journal():
    def decided(at_s, **data):
        return {
            "run_id": "r1",
            "kind": "call.decided",
            "at_s": at_s,
            "step_id": "s0",
            "request_id": "r1.s0",
            "data": data,
        }

    events = [
        {"run_id": "r1", "kind": "call.arrived", "at_s": 1.0, "step_id": "s0", "request_id": "r1.s0", "data": {}},
        decided(1.1, type="dispatch", attempt=1, prefill_instance="h", decode_instance="a"),
        decided(2.0, type="migrate", attempt=2, source="a", target="h", cause="late"),
    ]
    result = await played(FakeGateway(events=events), workload(plan("r1", step("s0"))))
    assert (result.calls[0].split, result.calls[0].migrations) == (True, 1)
    assert [(p.prefill_instance, p.decode_instance, p.cause) for p in result.placements] == [
        ("h", "a", "dispatch"),
        ("h", "h", "late"),
    ]


async def test_progress_counts_runs_calls_and_tokens():
    seen = []
    await played(
        FakeGateway(),
        workload(plan("r1", step("s0")), plan("r2", step("s0"))),
        on_progress=lambda p: seen.append((p.runs_started, p.runs_done, p.calls_done, p.output_tokens)),
    )
    assert seen[-1] == (2, 2, 2, 10)
    assert ReplayProgress(3).runs_total == 3


async def test_no_gateway_is_one_clear_error():
    def refuse(request):
        raise httpx.ConnectError("refused")

    async with httpx.AsyncClient(transport=httpx.MockTransport(refuse)) as client:
        with pytest.raises(Unavailable, match="no gateway answers at http://gateway"):
            await replay(workload(plan("r1", step("s0"))), "http://gateway", model="m", client=client)


async def test_a_refused_workflow_is_the_gateways_own_message():
    def refuse(request):
        return httpx.Response(400, json={"error": {"message": "a loop without exit"}})

    async with httpx.AsyncClient(transport=httpx.MockTransport(refuse)) as client:
        with pytest.raises(AgentServeError, match="a loop without exit"):
            await replay(workload(plan("r1", step("s0"))), "http://gateway", model="m", client=client)


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan")])
async def test_a_speed_that_is_not_positive_is_refused(speed):
    with pytest.raises(BadInput, match="speed"):
        await replay(workload(), "http://gateway", model="m", speed=speed)


async def test_results_read_back_from_json():
    result = await played(FakeGateway(), workload(plan("r1", step("s0"))))
    assert ReplayResult.from_plain(orjson.loads(orjson.dumps(result.to_plain()))) == result
    with pytest.raises(BadInput, match="not a replay result"):
        ReplayResult.from_plain({"policy": "x"})


# -- prompts ---------------------------------------------------------------------------------------------------------


def tokens_of(one, seed=0):
    return encode(prompt_of(plan("r1", one), one, seed))


@pytest.mark.parametrize("prompt", [40, 150, 200, 5000])
def test_a_prompt_has_its_planned_tokens_in_the_emulator(prompt):
    assert abs(len(tokens_of(step("s0", prompt=prompt, out=217))) - prompt) <= 4


def test_prompts_with_equal_leading_blocks_share_that_prefix_and_no_more():
    first = tokens_of(step("s0", prompt=160, blocks=((1, 3),)))
    second = tokens_of(step("s1", prompt=260, blocks=((1, 2), (9, 3))))
    same = next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    assert 100 <= same <= 103


def test_scaled_blocks_keep_their_shared_prefix():
    def scaled(count):
        return StepPlan(
            step_id="s", node="n", prompt_tokens=2000, output_tokens=5, blocks=((1, count),), block_tokens=6.4,
            block_space="x",
        )  # fmt: skip

    short, long = tokens_of(scaled(100)), tokens_of(scaled(200))
    assert short[:640] == long[:640]
    assert short[640:700] != long[640:700]


def test_other_sessions_seeds_and_runs_have_other_texts():
    one = step("s0")
    assert tokens_of(one, seed=0) != tokens_of(one, seed=1)
    own = step("s0", blocks=())
    assert prompt_of(plan("r1", own), own) != prompt_of(plan("r2", own), own)


def test_a_recorded_prompt_is_sent_as_it_is():
    one = StepPlan(step_id="s", node="n", prompt_tokens=9, output_tokens=7, prompt_text="Fix the bug.")
    assert prompt_of(plan("r", one), one) == "Fix the bug.\n [[reply tokens=7]]"


# -- streams ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 64, 10_000])
def test_the_first_token_is_the_first_that_shows_however_bytes_are_cut(size):
    data = sse(20).encode()
    first = data.index(b" t0")
    meter = StreamMeter()
    for at in range(0, len(data), size):
        meter.feed(data[at : at + size], float(at + size))
    meter.finish()
    assert meter.first_token_s is not None
    assert first < meter.first_token_s <= max(first + size + 10, size)
    assert (meter.output_tokens, meter.prompt_tokens, meter.error) == (20, 203, None)


def test_without_usage_chunks_are_counted():
    meter = StreamMeter()
    meter.feed(b'data: {"choices":[{"text":"a"}]}\n\ndata: {"choices":[{"text":"b"}]}\n\ndata: [DONE]\n\n', 1.0)
    meter.finish()
    assert (meter.output_tokens, meter.error) == (2, None)


def test_comments_and_broken_lines_are_passed_over():
    meter = StreamMeter()
    meter.feed(b': ping\n\ndata: {broken\n\ndata: {"choices":[{"delta":{"content":"x"}}]}\n\ndata: [DONE]\n\n', 2.0)
    meter.finish()
    assert (meter.first_token_s, meter.error) == (2.0, None)
