"""Which runs would the catalog's agents make? Their graphs walked at random, with branches, loops, fans and joins.

Each agent of workflows/catalog has a walk here that follows its real graph; the forecast is given the same graph and
learns the rest from what runs do. Prompts are made as the agents make them: a system prompt that all runs of a node
share, and the run's own text, which grows only where the agent really sends its earlier messages again.

Lengths are log-normal. Medians and spreads are of recorded agents and answers (tokens as characters / 4): in LMCache's
multi-agent sessions the tool user's system prompt has 502 tokens, outputs 377 at the median and 556 at p90, prompts
1,190; in its coding sessions the shared start has 1,340 to 2,400 tokens and outputs 98 (sigma 0.43), with 1.1 s at the
median between calls; Arena-Hard has questions of 34 tokens (sigma 1.09) and answers of 372 (sigma 0.69). How often
branches and loops are taken, and tool times, are our guesses; they are named below.
"""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from agentserve.errors import BadInput
from agentserve.lab.plans import RunPlan, StepPlan, cut_blocks
from agentserve.lab.workloads import Runs
from workflows.graph import END, START, Workflow, declare

BLOCK_TOKENS: Final = 64
BLOCK_SPACE: Final = "catalog"
MAX_LENGTH_TOKENS: Final = 8192


@dataclass(frozen=True, slots=True)
class Size:
    """A log-normal quantity: tokens or seconds."""

    median: float
    sigma: float


@dataclass(frozen=True, slots=True)
class Node:
    """How a node's calls look: the system prompt that they share, and the answer's length."""

    system_tokens: int
    output: Size


QUESTION: Final = Size(34, 1.09)
ANSWER: Final = Size(372, 0.69)
NOTES: Final = Size(377, 0.5)
TOOL_CALL: Final = Size(98, 0.43)
PASSAGES: Final = Size(1190, 0.6)
TASK: Final = Size(600, 0.6)
"""A task with its tests: guessed, between a question and the recorded coding tasks."""
TOOL_OUTPUT: Final = Size(250, 0.8)
QUERY_S: Final = Size(0.05, 1.0)
LOOK_UP_S: Final = Size(0.3, 0.8)
WEB_S: Final = Size(0.8, 0.8)
TESTS_S: Final = Size(2.0, 0.8)
SUPERSTEP_S: Final = 0.002
"""What LangGraph needs for a node that only keeps count."""

GRAPHS: Final[Mapping[str, Workflow]] = {
    "researcher": declare(
        "researcher", [(START, "plan"), ("search", "write"), ("write", END)], fan_out={"plan": "search"}
    ),
    "debate": declare(
        "debate",
        [(START, "open_round"), ("open_round", ["advocate_for", "advocate_against"]), ("advocate_for", "close_round"),
         ("advocate_against", "close_round"), ("judge", END)],
        choices={"close_round": ["open_round", "judge"]},
        tools=["open_round", "close_round"],
    ),
    "support_triage": declare(
        "support_triage",
        [(START, "classify"), ("look_up_order", "answer"), ("search_help", "answer"), ("escalate", "answer"),
         ("answer", END)],
        choices={"classify": ["look_up_order", "search_help", "escalate", "answer"]},
        tools=["look_up_order", "search_help", "escalate"],
    ),
    "text_to_sql": declare(
        "text_to_sql",
        [(START, "generate"), ("generate", "check"), ("repair", "check"), ("explain", END)],
        choices={"check": ["repair", "explain"]},
        tools=["check"],
    ),
    "coder": declare(
        "coder", [(START, "edit"), ("edit", "run_tests")], choices={"run_tests": ["edit", END]}, tools=["run_tests"]
    ),
    "trip_desk": declare(
        "trip_desk", [(START, "desk"), ("tools", "desk")], choices={"desk": ["tools", END]}, tools=["tools"]
    ),
}  # fmt: skip
"""The graphs of workflows/catalog, as serving them would register them."""

NODES: Final[Mapping[tuple[str, str], Node]] = {
    ("researcher", "plan"): Node(512, NOTES),
    ("researcher", "search"): Node(512, NOTES),
    ("researcher", "write"): Node(512, ANSWER),
    ("debate", "advocate_for"): Node(192, ANSWER),
    ("debate", "advocate_against"): Node(192, ANSWER),
    ("debate", "judge"): Node(512, NOTES),
    ("support_triage", "classify"): Node(512, TOOL_CALL),
    ("support_triage", "answer"): Node(512, ANSWER),
    ("text_to_sql", "generate"): Node(1408, TOOL_CALL),
    ("text_to_sql", "repair"): Node(1408, TOOL_CALL),
    ("text_to_sql", "explain"): Node(192, TOOL_CALL),
    ("coder", "edit"): Node(1408, ANSWER),
    ("trip_desk", "desk"): Node(1408, TOOL_CALL),
}
"""In the catalog itself system prompts are short; here they are as long as those of recorded agents."""
_SHARED_BEFORE: Final = {("text_to_sql", "repair"): ("text_to_sql", "generate")}
"""Nodes that send another node's system prompt."""

BRANCHES: Final = {"look_up_order": 0.35, "search_help": 0.35, "escalate": 0.15, "": 0.15}
FAN_WIDTHS: Final = {1: 0.05, 2: 0.15, 3: 0.4, 4: 0.2, 5: 0.2}
ROUNDS: Final = {1: 0.2, 2: 0.45, 3: 0.2, 4: 0.1, 5: 0.05}
QUERY_FAILS: Final = 0.3
TESTS_FAIL: Final = 0.5
ASKS_TOOLS: Final = 0.65
MAX_QUERIES: Final = 3
MAX_EDITS: Final = 4
MAX_TOOL_ROUNDS: Final = 8


def generated_runs(agents: Mapping[str, float], count: int, seed: int, first: int = 0) -> Runs:
    """`count` runs of the catalog's agents, drawn by weight, numbered from `first` on.

    A run's content depends on the seed and its number only, so that other numbers are other runs.
    Raises BadInput for an unknown agent or weights of which none is above 0.
    """
    for name, weight in agents.items():
        if name not in WALKS:
            raise BadInput(f"unknown agent {name!r}; known are {', '.join(WALKS)}")
        if not 0 <= weight < 1e9:
            raise BadInput(f"the weight of {name} is {weight}; expected 0 or more")
    if not sum(agents.values()) > 0:
        raise BadInput("the agents' weights are all 0; at least one must be above")
    plans = []
    for number in range(first, first + count):
        draw = random.Random(f"generated/{seed}/{number}")  # noqa: S311 - seeded, no secret
        name = draw.choices(list(agents), list(agents.values()))[0]
        run = _Run(name, number, draw)
        WALKS[name](run)
        plans.append(run.plan())
    shares = ", ".join(f"{name} {weight / sum(agents.values()):.0%}" for name, weight in agents.items() if weight)
    used = {plan.workflow for plan in plans}
    graphs = {name: graph for name, graph in GRAPHS.items() if name in used}
    return Runs(plans, False, graphs, [f"generated runs of catalog agents: {shares}"])


@dataclass(slots=True)
class _Run:
    """One run as it is walked: the calls so far."""

    agent: str
    number: int
    draw: random.Random
    steps: list[StepPlan] = field(default_factory=list)
    threads: dict[str, int] = field(default_factory=dict)
    """Which conversation each call belongs to."""

    def size(self, size: Size) -> int:
        """Tokens of a piece of text."""
        return min(MAX_LENGTH_TOKENS, max(1, round(self.draw.lognormvariate(0.0, size.sigma) * size.median)))

    def seconds(self, size: Size) -> float:
        """Seconds of a tool."""
        return self.draw.lognormvariate(0.0, size.sigma) * size.median

    def call(
        self,
        node: str,
        own_tokens: int,
        parents: tuple[str, ...] = (),
        *,
        tool: str = "",
        gap_s: float = 0.0,
        after: StepPlan | None = None,
    ) -> StepPlan:
        """One call of `own_tokens` beyond the system prompt; `after`: the prompt begins with that call's."""
        shape = NODES[self.agent, node]
        system = _system_blocks(self.agent, node)
        prompt_tokens = shape.system_tokens + own_tokens
        own_count = max(0, prompt_tokens // BLOCK_TOKENS - system[1])
        step_id = f"s{len(self.steps)}"
        thread = len(self.steps) if after is None else self.threads[after.step_id]
        self.threads[step_id] = thread
        first = (self.number + 1) * _RUN_BLOCKS + thread * _THREAD_BLOCKS
        blocks = (system, (first, own_count)) if own_count else (system,)
        shared = after.prompt_tokens // BLOCK_TOKENS * BLOCK_TOKENS if after is not None else system[1] * BLOCK_TOKENS
        step = StepPlan(
            step_id=step_id,
            node=node,
            prompt_tokens=prompt_tokens,
            output_tokens=self.size(shape.output),
            parents=parents,
            tool_gap_s=gap_s,
            tool_node=tool or "tools",
            shared_prefix_tokens=min(shared, prompt_tokens),
            blocks=cut_blocks(blocks, prompt_tokens // BLOCK_TOKENS),
            block_tokens=BLOCK_TOKENS,
            block_space=BLOCK_SPACE,
        )
        self.steps.append(step)
        return step

    def plan(self) -> RunPlan:
        """The run; its arrival is for others to give."""
        run_id = f"{self.agent}-{self.number}"
        return RunPlan(run_id=run_id, workflow=self.agent, arrival_s=0.0, session_id=run_id, steps=tuple(self.steps))


_SYSTEM_BLOCKS: Final = 1_000
_THREAD_BLOCKS: Final = 10_000
_RUN_THREADS: Final = 100
_RUN_BLOCKS: Final = _THREAD_BLOCKS * _RUN_THREADS
"""Block numbers: system prompts below the first run's, then each run and each of its conversations apart."""


def _system_blocks(agent: str, node: str) -> tuple[int, int]:
    key = _SHARED_BEFORE.get((agent, node), (agent, node))
    return list(NODES).index(key) * _SYSTEM_BLOCKS, NODES[key].system_tokens // BLOCK_TOKENS


def _researcher(run: _Run) -> None:
    question = run.size(QUESTION)
    plan = run.call("plan", question)
    width = run.draw.choices(list(FAN_WIDTHS), list(FAN_WIDTHS.values()))[0]
    notes = [run.call("search", run.size(PASSAGES) + question, (plan.step_id,)) for _ in range(width)]
    run.call("write", question + sum(note.output_tokens for note in notes), tuple(note.step_id for note in notes))


def _debate(run: _Run) -> None:
    motion = run.size(QUESTION)
    rounds = run.draw.choices(list(ROUNDS), list(ROUNDS.values()))[0]
    said, heard = 0, (0, 0)
    parents: tuple[str, ...] = ()
    for number in range(rounds):
        tool = "close_round" if number else "open_round"
        speeches = [
            run.call(node, motion + heard[1 - side], parents, tool=tool, gap_s=SUPERSTEP_S)
            for side, node in enumerate(("advocate_for", "advocate_against"))
        ]
        heard = (speeches[0].output_tokens, speeches[1].output_tokens)
        parents = tuple(speech.step_id for speech in speeches)
        said += sum(heard)
    run.call("judge", motion + said, parents, tool="close_round", gap_s=SUPERSTEP_S)


def _support_triage(run: _Run) -> None:
    ticket = run.size(Size(3 * QUESTION.median, QUESTION.sigma))
    sorted_as = run.call("classify", ticket)
    branch = run.draw.choices(list(BRANCHES), list(BRANCHES.values()))[0]
    facts = run.size(TOOL_OUTPUT) if branch else 0
    gap_s = run.seconds(LOOK_UP_S) if branch else 0.0
    run.call("answer", ticket + facts, (sorted_as.step_id,), tool=branch, gap_s=gap_s)


def _text_to_sql(run: _Run) -> None:
    question = run.size(QUESTION)
    query = run.call("generate", question)
    for _ in range(MAX_QUERIES - 1):
        if run.draw.random() >= QUERY_FAILS:
            break
        told = question + query.output_tokens + run.size(QUESTION)
        query = run.call("repair", told, (query.step_id,), tool="check", gap_s=run.seconds(QUERY_S))
    told = question + query.output_tokens + run.size(TOOL_OUTPUT)
    run.call("explain", told, (query.step_id,), tool="check", gap_s=run.seconds(QUERY_S))


def _coder(run: _Run) -> None:
    task = run.size(TASK)
    edit = run.call("edit", task)
    for _ in range(MAX_EDITS - 1):
        if run.draw.random() >= TESTS_FAIL:
            break
        told = task + edit.output_tokens + min(500, run.size(TOOL_OUTPUT))
        edit = run.call("edit", told, (edit.step_id,), tool="run_tests", gap_s=run.seconds(TESTS_S))


def _trip_desk(run: _Run) -> None:
    said = run.size(QUESTION)
    desk = run.call("desk", said)
    for _ in range(MAX_TOOL_ROUNDS):
        if run.draw.random() >= ASKS_TOOLS:
            break
        said += desk.output_tokens + run.size(TOOL_OUTPUT)
        desk = run.call("desk", said, (desk.step_id,), tool="tools", gap_s=run.seconds(WEB_S), after=desk)


WALKS: Final[Mapping[str, Callable[[_Run], None]]] = {
    "researcher": _researcher,
    "debate": _debate,
    "support_triage": _support_triage,
    "text_to_sql": _text_to_sql,
    "coder": _coder,
    "trip_desk": _trip_desk,
}
AGENTS: Final = tuple(WALKS)
