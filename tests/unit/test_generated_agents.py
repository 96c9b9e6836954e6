"""Generated runs of the catalog's agents follow the agents' own graphs."""

from collections import Counter
from importlib import import_module

import pytest

from agentserve.errors import BadInput
from agentserve.lab.generated import AGENTS, GRAPHS, MAX_EDITS, MAX_QUERIES, MAX_TOOL_ROUNDS, NODES, generated_runs
from agentserve.lab.plans import shared_prefix
from workflows.graph import END, START
from workflows.langgraph import workflow_from_graph


def runs_of(agent, count=200, seed=1):
    return generated_runs({agent: 1.0}, count, seed).plans


@pytest.mark.parametrize("agent", AGENTS)
def test_the_graph_is_the_one_that_serving_the_catalog_agent_registers(agent):
    real = workflow_from_graph(import_module(f"workflows.catalog.{agent}").graph, name=agent)
    assert GRAPHS[agent].fingerprint == real.fingerprint


@pytest.mark.parametrize("agent", AGENTS)
def test_every_call_follows_its_parents_along_edges(agent):
    graph = GRAPHS[agent]
    tools = {node.name for node in graph.nodes if node.kind == "tool"}
    follows = {source: {edge.target for edge in edges} for source, edges in graph.edges_from.items()}

    def within(source, target):
        seen, left = set(), [source]
        while left:
            for following in follows.get(left.pop(), ()):
                if following == target:
                    return True
                if following in tools and following not in seen:
                    seen.add(following)
                    left.append(following)
        return False

    for plan in runs_of(agent):
        by_id = {step.step_id: step for step in plan.steps}
        for step in plan.steps:
            befores = [by_id[parent].node for parent in step.parents] or [START]
            for before in befores:
                if step.tool_gap_s:
                    assert within(before, step.tool_node)
                    assert within(step.tool_node, step.node)
                else:
                    assert step.node in follows[before]
        last = plan.steps[-1].node
        assert within(last, END)


def test_branches_loops_and_fans_are_all_taken():
    widths = Counter(sum(step.node == "search" for step in plan.steps) for plan in runs_of("researcher"))
    assert set(widths) == {1, 2, 3, 4, 5}
    tools = Counter(plan.steps[1].tool_node if plan.steps[1].tool_gap_s else "" for plan in runs_of("support_triage"))
    assert set(tools) == {"look_up_order", "search_help", "escalate", ""}
    edits = Counter(len(plan.steps) for plan in runs_of("coder"))
    assert set(edits) == set(range(1, MAX_EDITS + 1))
    assert edits[1] > edits[2] > edits[4]
    queries = Counter(len(plan.steps) - 1 for plan in runs_of("text_to_sql"))
    assert set(queries) == set(range(1, MAX_QUERIES + 1))
    assert max(len(plan.steps) for plan in runs_of("trip_desk", 2000)) == MAX_TOOL_ROUNDS + 1


def test_a_join_waits_for_all_branches_and_is_as_long_as_what_they_said():
    for plan in runs_of("researcher", 50):
        *_, write = plan.steps
        notes = [step for step in plan.steps if step.node == "search"]
        assert write.parents == tuple(step.step_id for step in notes)
        assert write.prompt_tokens > NODES["researcher", "write"].system_tokens + sum(n.output_tokens for n in notes)


def test_runs_of_a_node_share_its_system_prompt_and_nothing_else():
    one, other = (plan.steps[0] for plan in runs_of("coder", 2))
    assert one.block_space == other.block_space
    assert shared_prefix(one.blocks, other.blocks) * 64 == NODES["coder", "edit"].system_tokens
    assert one.shared_prefix_tokens == NODES["coder", "edit"].system_tokens


def test_a_conversation_grows_from_its_own_prompt():
    plan = max(runs_of("trip_desk"), key=lambda plan: len(plan.steps))
    for before, step in zip(plan.steps, plan.steps[1:], strict=False):
        assert shared_prefix(before.blocks, step.blocks) == before.prompt_tokens // 64
        assert step.prompt_tokens > before.prompt_tokens + before.output_tokens
        assert step.shared_prefix_tokens == before.prompt_tokens // 64 * 64


def test_blocks_fit_their_prompts():
    for plan in generated_runs(dict.fromkeys(AGENTS, 1.0), 500, 3).plans:
        for step in plan.steps:
            assert 0 <= step.prompt_tokens - sum(count for _, count in step.blocks) * step.block_tokens < 64
            assert 0 <= step.shared_prefix_tokens <= step.prompt_tokens


def test_one_seed_gives_the_same_runs_whatever_their_number_and_another_gives_others():
    agents = {"coder": 2.0, "debate": 1.0}
    assert generated_runs(agents, 50, 7).plans[:20] == generated_runs(agents, 20, 7).plans
    assert generated_runs(agents, 20, 8).plans != generated_runs(agents, 20, 7).plans


@pytest.mark.parametrize(
    ("agents", "said"),
    [({"poet": 1.0}, "unknown agent 'poet'; known are researcher"), ({"coder": -1.0}, "weight of coder"),
     ({"coder": 0.0}, "weights are all 0")],
)  # fmt: skip
def test_bad_mixes_are_named(agents, said):
    with pytest.raises(BadInput, match=said):
        generated_runs(agents, 5, 0)
