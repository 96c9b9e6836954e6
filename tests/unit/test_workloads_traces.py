"""How trace files become runs."""

import gzip
import json

import pytest

from agentserve.errors import BadInput, TooLarge
from agentserve.lab import trace_files
from agentserve.lab.plans import (
    FixedSlo,
    RunPlan,
    SoloScaleSlo,
    StepPlan,
    call_solo_s,
    cut_blocks,
    join_blocks,
    shared_prefix,
    solo_s,
)
from agentserve.lab.workloads import BUNDLED_ARRIVALS, BUNDLED_SESSIONS, WorkloadOptions, load_workload, read_arrivals
from scheduler.profiles import load_profile

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.9805900,396,109\n"
)


def written(path, text, *, zipped=False):
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if zipped else data)
    return path


def request(t, size, out, keep, new, *, stop="tool_use", it=("tool_result",), think=1.0, **more):
    return {
        "t": t, "type": "n", "in": size, "out": out, "stop": stop, "think_time": think, "it": list(it),
        "keep": keep, "new": new, **more,
    }  # fmt: skip


def session(*requests, name="t1"):
    return json.dumps({"id": name, "block_size": 64, "requests": list(requests)}) + "\n"


TURN = (
    request(0.0, 6400, 50, 0, [[1, 100]], it=("text",), think=0.0),
    request(9.0, 7680, 60, 100, [[101, 20]], think=4.0),
    request(20.0, 8000, 70, 120, [[121, 5]], think=3.0, stop="end_turn"),
)


def one_run(path):
    (plan,) = load_workload(path).plans
    return plan


def test_a_user_turn_is_a_run_with_tool_times_and_shared_blocks(tmp_path):
    plan = one_run(written(tmp_path / "t.jsonl", session(*TURN)))
    assert [(s.step_id, s.parents, s.tool_gap_s, s.prompt_tokens, s.output_tokens) for s in plan.steps] == [
        ("s0", (), 0.0, 6400, 50),
        ("s1", ("s0",), 4.0, 7680, 60),
        ("s2", ("s1",), 3.0, 8000, 70),
    ]
    assert [s.shared_prefix_tokens for s in plan.steps] == [0, 6400, 7680]
    assert plan.steps[2].blocks == ((1, 125),)


def test_the_next_user_text_begins_another_run_that_shares_its_prefix(tmp_path):
    again = request(99.0, 9600, 20, 125, [[200, 25]], it=("text",), think=79.0, stop="end_turn")
    first, second = load_workload(written(tmp_path / "t.jsonl", session(*TURN, again))).plans
    assert (first.run_id, second.run_id) == ("t1.0", "t1.1")
    assert second.steps[0].parents == ()
    assert second.steps[0].tool_gap_s == 0.0
    assert second.steps[0].shared_prefix_tokens == 8000
    assert shared_prefix(first.steps[-1].blocks, second.steps[0].blocks) == 125


def test_a_kept_prefix_may_be_shorter_than_the_prompt_before(tmp_path):
    edited = request(30.0, 6400, 20, 90, [[300, 10]], stop="end_turn")
    plan = one_run(written(tmp_path / "t.jsonl", session(*TURN[:2], edited)))
    assert plan.steps[2].blocks == ((1, 90), (300, 10))
    assert plan.steps[2].shared_prefix_tokens == 90 * 64


def subagent(end_s, duration_s, *requests):
    return {"t": end_s, "type": "subagent", "duration_ms": duration_s * 1000, "requests": list(requests)}


def test_overlapping_sub_agents_run_in_parallel_and_are_joined(tmp_path):
    inner = (request(0.0, 640, 5, 0, [[500, 10]], it=("text",)), request(5.0, 704, 6, 10, [[510, 1]], think=2.0))
    after = request(60.0, 7000, 9, 100, [[130, 9]], think=50.0, stop="end_turn")
    trace = session(TURN[0], subagent(40.0, 30.0, *inner), subagent(50.0, 38.0, inner[0]), after)
    plan = one_run(written(tmp_path / "t.jsonl", trace))
    assert [(s.node, s.parents) for s in plan.steps] == [
        ("agent", ()),
        ("subagent", ("s0",)),
        ("subagent", ("s1",)),
        ("subagent", ("s0",)),
        ("agent", ("s2", "s3")),
    ]
    assert plan.steps[2].tool_node == "subagent_tools"
    assert plan.steps[4].tool_gap_s == 10.0


def test_sub_agents_one_after_the_other_are_chained(tmp_path):
    inner = request(0.0, 640, 5, 0, [[500, 10]], it=("text",))
    after = request(60.0, 7000, 9, 100, [[130, 9]], stop="end_turn")
    trace = session(TURN[0], subagent(20.0, 10.0, inner), subagent(40.0, 15.0, inner), after)
    plan = one_run(written(tmp_path / "t.jsonl", trace))
    assert plan.steps[2].parents == ("s1",)


def test_mooncake_rows_share_blocks_across_the_trace(tmp_path):
    rows = [
        {"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]},
        {"timestamp": 1500, "input_length": 1300, "output_length": 7, "hash_ids": [0, 1, 9]},
    ]
    first, second = load_workload(written(tmp_path / "m", "\n".join(map(json.dumps, rows)))).plans
    assert (first.arrival_s, second.arrival_s) == (0.0, 1.5)
    assert second.steps[0].shared_prefix_tokens == 1024
    assert second.steps[0].blocks == ((0, 2), (9, 1))


@pytest.mark.parametrize("zipped", [False, True])
def test_azure_rows_arrive_relative_to_the_first(tmp_path, zipped):
    first, second = load_workload(written(tmp_path / "data.bin", AZURE, zipped=zipped)).plans
    assert (first.arrival_s, round(second.arrival_s, 6)) == (0.0, 4.3)
    assert (second.steps[0].prompt_tokens, second.steps[0].output_tokens) == (396, 109)


def test_recorded_texts_of_a_session_are_one_run_in_order_of_time(tmp_path):
    rows = [
        {"timestamp": 9_000_000, "input": "hello world, again and again", "output": "fine", "session_id": "a"},
        {"timestamp": 2_000_000, "input": "hello world", "output": "good morning", "session_id": "a"},
        {"timestamp": 5_000_000, "input": "bye", "output": "bye", "session_id": "b"},
    ]
    one, other = load_workload(written(tmp_path / "x", "\n".join(map(json.dumps, rows)))).plans
    assert [step.prompt_text for step in one.steps] == ["hello world", "hello world, again and again"]
    assert one.steps[1].shared_prefix_tokens == len("hello world") // 4
    assert (one.workflow, other.workflow, other.arrival_s) == ("recorded-agent", "single", 3.0)


LENGTHS = "in_p10,in_p50,in_p90,in_p99,in_mean,out_p10,out_p50,out_p90,out_p99,out_mean"
SERVEGEN = f"""client,t_s,rate_rps,iat_cv,iat_family,p1,p2,{LENGTHS}
a,0,0.5,1.2,Gamma,0.7,0.04,100,200,400,800,250,10,20,40,80,25
b,0,0.25,2.0,Weibull,0.6,0.01,,,,,,,,,,
"""


def test_servegen_windows_are_an_arrival_process_with_their_rates(tmp_path):
    path = written(tmp_path / "s.csv", SERVEGEN)
    plans = load_workload(path).plans
    assert plans == load_workload(path).plans
    by_client = {name: [p for p in plans if p.session_id == f"client{name}"] for name in "ab"}
    assert 200 <= len(by_client["a"]) <= 400
    assert 75 <= len(by_client["b"]) <= 250
    prompts = sorted(plan.steps[0].prompt_tokens for plan in by_client["a"])
    assert prompts[0] >= 100
    assert prompts[-1] <= 800
    assert [p.arrival_s for p in plans] == sorted(p.arrival_s for p in plans)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "is empty"),
        ("hello\n", "line 1: not a trace in a known format"),
        ('{"a": 1}\n', "line 1: not a trace in a known format"),
        ("{broken\n", "line 1: not JSON"),
        (AZURE + "2023-11-16 18:15:50.98,x,1\n", "line 4: ContextTokens is .*x.*expected a number"),
        (AZURE + "yesterday,1,1\n", "line 4: TIMESTAMP is 'yesterday'; expected a time"),
        (AZURE + "1,2\n", "line 4: expected TIMESTAMP"),
        (session(request(0.0, "many", 1, 0, [])), "line 1: in is 'many'; expected a number"),
        (session(request(0.0, 64, 1, -1, [])), "line 1: a request needs keep"),
        (session(request(0.0, 64, 1, 0, [[1]])), r"line 1: new holds \[1\]; expected \[first, count\]"),
        (session(request(0.0, 64, 1, 0, [[1, 1]])) + "[]\n", "line 2: expected a JSON object"),
        (
            '{"timestamp": 0, "input_length": 5, "output_length": 5, "hash_ids": "x"}\n',
            "line 1: hash_ids must be a list",
        ),
        ('{"input": 5, "output": "x"}\n', "line 1: input and output .* must be texts"),
        (SERVEGEN.splitlines()[0] + "\na,0,0,0,,0,0\n", "no window has a rate above 0"),
        (SERVEGEN.splitlines()[0] + "\na,0\n", "line 2: expected client,t_s"),
    ],
)
def test_a_bad_trace_is_refused_naming_file_line_and_what_was_expected(tmp_path, text, expected):
    path = written(tmp_path / "bad.trace", text)
    with pytest.raises(BadInput, match=expected) as caught:
        load_workload(path)
    assert "bad.trace" in str(caught.value)


def test_a_missing_file_and_a_folder_are_unreadable(tmp_path):
    for path in (tmp_path / "absent.jsonl", tmp_path):
        with pytest.raises(BadInput, match="cannot be read"):
            load_workload(path)


def test_a_truncated_gzip_is_unreadable(tmp_path):
    path = tmp_path / "cut.gz"
    path.write_bytes(gzip.compress(session(*TURN).encode() * 200)[:-40])
    with pytest.raises(BadInput, match=r"cut.gz: cannot be read"):
        load_workload(path)


def test_lines_and_files_have_limits(tmp_path, monkeypatch):
    path = written(tmp_path / "long", session(*TURN))
    monkeypatch.setattr(trace_files, "MAX_LINE_BYTES", 100)
    with pytest.raises(TooLarge, match="line 1: longer than 100 bytes"):
        load_workload(path)
    monkeypatch.setattr(trace_files, "MAX_FILE_BYTES", 10)
    with pytest.raises(TooLarge, match="the limit is 10"):
        load_workload(path)


def test_too_many_lines_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(trace_files, "MAX_LINES", 2)
    with pytest.raises(TooLarge, match="more than 2 lines"):
        load_workload(written(tmp_path / "m", AZURE))


def test_scales_multiply_tokens_and_are_said(tmp_path):
    workload = load_workload(
        written(tmp_path / "t", session(*TURN)), WorkloadOptions(prompt_scale=0.125, output_scale=2.0)
    )
    step = workload.plans[0].steps[1]
    assert (step.prompt_tokens, step.output_tokens, step.shared_prefix_tokens, step.block_tokens) == (
        960,
        120,
        800,
        8.0,
    )
    assert "prompt tokens x 0.125" in workload.notes
    assert "output tokens x 2" in workload.notes


def test_filters_leave_runs_out_and_say_how_many(tmp_path):
    trace = session(*TURN) + session(TURN[0], name="t2")
    workload = load_workload(written(tmp_path / "t", trace), WorkloadOptions(max_prompt_tokens=7000))
    assert [plan.run_id for plan in workload.plans] == ["t2.0"]
    assert "left out 1 of 2 runs: a prompt over 7000 tokens" in workload.notes
    with pytest.raises(BadInput, match="no run is left; left out 2 of 2 runs"):
        load_workload(tmp_path / "t", WorkloadOptions(max_prompt_tokens=10))


def test_long_tool_times_are_cut_and_that_is_said(tmp_path):
    workload = load_workload(written(tmp_path / "t", session(*TURN)), WorkloadOptions(max_tool_gap_s=3.5))
    assert [step.tool_gap_s for step in workload.plans[0].steps] == [0.0, 3.5, 3.0]
    assert "tool times cut to at most 3.5 s (1 calls)" in workload.notes


def test_arrivals_come_from_another_trace_and_are_stretched_to_a_rate(tmp_path):
    sessions = written(tmp_path / "t", session(*TURN) + session(TURN[0], name="t2"))
    arrivals = written(tmp_path / "a.csv", AZURE)
    workload = load_workload(sessions, WorkloadOptions(arrivals=arrivals, rate_per_s=2.0))
    assert [round(plan.arrival_s, 6) for plan in workload.plans] == [0.0, 0.5]
    assert "arrival times from a.csv" in workload.notes


def test_arrivals_that_end_early_end_the_workload(tmp_path):
    trace = "".join(session(TURN[0], name=f"t{i}") for i in range(5))
    workload = load_workload(written(tmp_path / "t", trace), WorkloadOptions(arrivals=written(tmp_path / "a", AZURE)))
    assert len(workload.plans) == 2
    assert "only 2 of 5 runs: the arrivals end there" in workload.notes


def test_sessions_hold_no_arrival_times(tmp_path):
    with pytest.raises(BadInput, match="hold no arrival times"):
        read_arrivals(written(tmp_path / "t", session(*TURN)), 5)


def test_one_seed_gives_one_workload_and_another_another():
    def ids(seed):
        options = WorkloadOptions(limit=40, seed=seed, rate_per_s=1.0)
        return [(p.run_id, p.arrival_s) for p in load_workload(BUNDLED_SESSIONS, options).plans]

    assert ids(3) == ids(3)
    assert ids(3) != ids(4)


@pytest.mark.parametrize(
    "bad", [{"prompt_scale": 0}, {"limit": -1}, {"rate_per_s": float("nan")}, {"max_tool_gap_s": -1}]
)
def test_bad_options_are_named(bad):
    with pytest.raises(BadInput, match=next(iter(bad)).replace("_", "-")):
        WorkloadOptions(**bad)


def test_the_bundled_slices_are_real_sessions_and_arrivals():
    workload = load_workload(BUNDLED_SESSIONS, WorkloadOptions(arrivals=BUNDLED_ARRIVALS, limit=100))
    assert len(workload.plans) == 100
    assert set(workload.workflows) == {"coding-agent"}
    assert BUNDLED_SESSIONS.stat().st_size + BUNDLED_ARRIVALS.stat().st_size < 300_000


def test_every_workflow_of_a_workload_covers_its_plans():
    workload = load_workload(BUNDLED_SESSIONS)
    workload.workflows["coding-agent"].validate()
    nodes = {node.name for node in workload.workflows["coding-agent"].nodes}
    edges = {(edge.source, edge.target) for edge in workload.workflows["coding-agent"].edges}
    for plan in workload.plans:
        by_id = {step.step_id: step for step in plan.steps}
        for step in plan.steps:
            assert {step.node, step.tool_node} <= nodes
            for parent in step.parents:
                first = step.tool_node if step.tool_gap_s else step.node
                assert (by_id[parent].node, first) in edges
            assert 0 <= step.shared_prefix_tokens <= step.prompt_tokens


# -- SLOs ------------------------------------------------------------------------------------------------------------


def step(step_id, prompt=1000, out=101, parents=(), gap_s=0.0, shared=0):
    return StepPlan(
        step_id=step_id, node="n", prompt_tokens=prompt, output_tokens=out, parents=parents, tool_gap_s=gap_s,
        shared_prefix_tokens=shared,
    )  # fmt: skip


def run_of(*steps):
    return RunPlan(run_id="r", workflow="w", arrival_s=0.0, session_id="s", steps=steps)


def test_a_lone_call_takes_its_prefill_and_a_decode_step_per_further_token():
    profile = load_profile("h100", "llama-3.1-8b")
    decode_s = sum(profile.decode_step_s(1, 1000 + token) for token in range(1, 101))
    assert call_solo_s(step("a"), profile) == pytest.approx(profile.prefill_s(1000) + decode_s)
    assert call_solo_s(step("a", out=1), profile) == pytest.approx(profile.prefill_s(1000))


def test_a_cached_prefix_shortens_the_solo_time():
    profile = load_profile("h100", "llama-3.1-8b")
    assert call_solo_s(step("a", shared=900), profile) < call_solo_s(step("a"), profile)
    assert call_solo_s(step("a", shared=1000), profile) > 0


def test_the_solo_time_of_a_run_is_its_longest_path():
    profile = load_profile("a100", "llama-3.1-8b")
    one = call_solo_s(step("a"), profile)
    plan = run_of(
        step("a"), step("b", parents=("a",), gap_s=5.0), step("c", parents=("a",)), step("d", parents=("b", "c"))
    )
    assert solo_s(plan, profile) == pytest.approx(3 * one + 5.0)


def test_slo_rules_scale_or_fix():
    plan = run_of(step("a"))
    rule = SoloScaleSlo(3.0).for_model("llama-3.1-8b")
    assert rule.slo_s(plan) == pytest.approx(3.0 * solo_s(plan, load_profile("h100", "llama-3.1-8b")))
    assert FixedSlo(20.0).slo_s(plan) == 20.0
    with pytest.raises(BadInput, match="known: a100"):
        SoloScaleSlo(2.0, gpu="tpu").for_model("llama-3.1-8b").slo_s(plan)


@pytest.mark.parametrize("make", [lambda: FixedSlo(0), lambda: FixedSlo(float("nan")), lambda: SoloScaleSlo(-1)])
def test_bad_slo_rules_are_refused(make):
    with pytest.raises(BadInput):
        make()


def test_block_ranges_cut_and_join():
    assert cut_blocks(((1, 10), (50, 5)), 12) == ((1, 10), (50, 2))
    assert cut_blocks(((1, 10),), 0) == ()
    assert join_blocks(((1, 10),), ((11, 5), (50, 1))) == ((1, 15), (50, 1))
