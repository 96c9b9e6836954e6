"""Which runs are in recorded coding-agent sessions? A user turn is a run, its model calls are steps.

The format is kv-cache-tester's: per session the requests with `in`, `out`, `keep` (leading blocks shared with the
agent's previous request), `new` (further block ids), `stop`, `it` (kinds of input) and `think_time` (seconds since the
last answer). A sub-agent's entry nests its requests and gives its end (`t`) and duration; sub-agents whose times
overlap run in parallel, and the next request waits for all of them.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from agentserve.errors import BadInput
from agentserve.lab.plans import RunPlan, StepPlan, cut_blocks, join_blocks
from agentserve.lab.trace_files import Line, number, parse_object, tokens
from workflows.graph import END, START, Workflow, declare

WORKFLOW: Final = "coding-agent"
AGENT: Final = "agent"
SUBAGENT: Final = "subagent"
TOOL_OF: Final = {AGENT: "tools", SUBAGENT: "subagent_tools"}
_DAY_S: Final = 86_400.0


def coding_agent() -> Workflow:
    """The graph of such a run: an agent that loops over its tools and may start sub-agents that do so too."""
    return declare(
        WORKFLOW,
        [(START, AGENT), ("tools", AGENT), ("subagent_tools", SUBAGENT)],
        choices={AGENT: ["tools", AGENT, END], SUBAGENT: ["subagent_tools", SUBAGENT, AGENT, "tools", END]},
        fan_out={AGENT: SUBAGENT},
        tools=["tools", "subagent_tools"],
    )


def read_sessions(path: Path, lines: Iterable[Line]) -> Iterator[list[RunPlan]]:
    """Per session its user turns in order, with arrivals relative to the session's start."""
    for line in lines:
        row = parse_object(path, line)
        session = _Session(path, line[0], str(row.get("id") or f"line{line[0]}"))
        session.block_tokens = tokens(path, line[0], "block_size", row.get("block_size"), 1)
        for entry in _requests(session, row):
            session.take(entry)
        yield session.runs()


@dataclass(slots=True)
class _Agent:
    """One agent's prompt as it was last, which the next request keeps a part of."""

    name: str
    blocks: tuple[tuple[int, int], ...] = ()
    last_step: str | None = None


@dataclass(slots=True)
class _Session:
    path: Path
    line_no: int
    session_id: str
    block_tokens: int = 64
    agent: _Agent = field(default_factory=lambda: _Agent(AGENT))
    turns: list[tuple[float, list[StepPlan]]] = field(default_factory=list)
    ended: bool = True
    """The last turn has had its end_turn."""
    children: list[tuple[float, float, str]] = field(default_factory=list)
    """(start, end, last step) of the sub-agents since the agent's last request."""

    def take(self, entry: Mapping[str, Any]) -> None:
        """One entry of the session: a request, or a sub-agent with requests of its own."""
        if entry.get("type") == "subagent":
            self._take_subagent(entry)
            return
        kinds = entry.get("it") or ()
        at_s = self._number(entry, "t", 0.0)
        if self.ended or not self.turns or ("text" in kinds and "tool_result" not in kinds):
            self.turns.append((at_s, []))
            self.agent.last_step, self.children = None, []
        parents = self._parents()
        gap_s = self._number(entry, "think_time", 0.0) if parents else 0.0
        if self.children:
            gap_s = max(0.0, at_s - max(end_s for _, end_s, _ in self.children))
        self.children = []
        self._add(self.agent, entry, parents, gap_s)
        self.ended = entry.get("stop") == "end_turn"

    def _take_subagent(self, entry: Mapping[str, Any]) -> None:
        if not self.turns or self.ended:
            return  # began in a turn that was not recorded
        duration_s = self._number(entry, "duration_ms", 0.0, 1000 * _DAY_S) / 1000
        end_s = self._number(entry, "t", 0.0)
        before = [step for _, ended_s, step in self.children if ended_s <= end_s - duration_s]
        parents = tuple(before) or tuple(filter(None, [self.agent.last_step]))
        agent = _Agent(SUBAGENT)
        for request in _requests(self, entry):
            gap_s = self._number(request, "think_time", 0.0) if agent.last_step else 0.0
            self._add(agent, request, parents, gap_s)
            parents = tuple(filter(None, [agent.last_step]))
        if agent.last_step is not None:
            self.children.append((end_s - duration_s, end_s, agent.last_step))

    def _parents(self) -> tuple[str, ...]:
        if self.children:
            return tuple(step for _, _, step in self.children)
        return tuple(filter(None, [self.agent.last_step]))

    def _add(self, agent: _Agent, entry: Mapping[str, Any], parents: tuple[str, ...], gap_s: float) -> None:
        steps = self.turns[-1][1]
        keep, new = self._blocks(entry)
        kept = cut_blocks(agent.blocks, keep)
        agent.blocks = join_blocks(kept, new)
        step = StepPlan(
            step_id=f"s{len(steps)}",
            node=agent.name,
            prompt_tokens=tokens(self.path, self.line_no, "in", entry.get("in"), 1),
            output_tokens=max(1, tokens(self.path, self.line_no, "out", entry.get("out"))),
            parents=parents,
            tool_gap_s=gap_s,
            tool_node=TOOL_OF[agent.name],
            shared_prefix_tokens=sum(count for _, count in kept) * self.block_tokens,
            blocks=agent.blocks,
            block_tokens=self.block_tokens,
            block_space=self.session_id,
        )
        agent.last_step = step.step_id
        steps.append(step)

    def _blocks(self, entry: Mapping[str, Any]) -> tuple[int, list[tuple[int, int]]]:
        keep, new = entry.get("keep"), entry.get("new")
        if not isinstance(keep, int) or keep < 0 or not isinstance(new, list):
            raise BadInput(
                f"{self.path}: line {self.line_no}: a request needs keep (blocks) and new ([[first, count], …])"
            )
        ranges = []
        for pair in new:
            if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(n, int) and n >= 0 for n in pair)):
                raise BadInput(f"{self.path}: line {self.line_no}: new holds {str(pair)[:40]}; expected [first, count]")
            ranges.append((pair[0], pair[1]))
        return keep, ranges

    def _number(self, entry: Mapping[str, Any], name: str, default: float, high: float = 366 * _DAY_S) -> float:
        value = entry.get(name)
        return default if value is None else number(self.path, self.line_no, name, value, 0.0, high)

    def runs(self) -> list[RunPlan]:
        """The turns as runs."""
        return [
            RunPlan(
                run_id=f"{self.session_id}.{turn}",
                workflow=WORKFLOW,
                arrival_s=at_s,
                session_id=self.session_id,
                steps=tuple(steps),
            )
            for turn, (at_s, steps) in enumerate(self.turns)
            if steps
        ]


def _requests(session: _Session, row: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    requests = row.get("requests")
    if not isinstance(requests, list):
        raise BadInput(f"{session.path}: line {session.line_no}: requests must be a list")
    for entry in requests:
        if not isinstance(entry, dict):
            raise BadInput(f"{session.path}: line {session.line_no}: a request must be an object")
        yield entry
