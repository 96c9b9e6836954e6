"""Debate: two advocates argue side by side for some rounds, each hearing the other's last speech; a judge decides.

open_round → advocate_for (LLM) and advocate_against (LLM) at the same time → close_round → again, or judge (LLM)
"""

import operator
import os
import re
from typing import Annotated, TypedDict

from langgraph.graph import END, START, StateGraph

from agentserve import ChatModel

model = ChatModel(model=os.environ.get("AGENTSERVE_MODEL", "llama-3.1-8b"), temperature=0.0)

EXAMPLE = {"motion": "A small team should write its own scheduler instead of using an existing one.", "rounds": 2}

MAX_ROUNDS = 5


class Debate(TypedDict, total=False):
    """What was said so far: round, side and text of each speech."""

    motion: str
    rounds: int
    round: int
    speeches: Annotated[list[tuple[int, str, str]], operator.add]
    verdict: str
    winner: str


def open_round(state: Debate) -> Debate:
    """Count the rounds."""
    return {"round": state.get("round", 0) + 1}


def advocate_for(state: Debate) -> Debate:
    """Speak for the motion."""
    return speak(state, "for")


def advocate_against(state: Debate) -> Debate:
    """Speak against the motion."""
    return speak(state, "against")


def speak(state: Debate, side: str) -> Debate:
    """One speech: an opening, or an answer to what the other side said last."""
    heard = [text for _, speaker, text in state.get("speeches", []) if speaker != side]
    request = f"Speak {side} the motion: {state['motion']}\nRound {state['round']}."
    if heard:
        request += f"\nThe other side said:\n{heard[-1]}\nAnswer its strongest point first."
    answer = model.invoke([("system", f"You are an advocate {side} the motion. One paragraph."), ("user", request)])
    return {"speeches": [(state["round"], side, str(answer.content))]}


def close_round(state: Debate) -> Debate:
    """Bring the sides together: nobody hears a speech of the same round."""
    return {"round": state["round"]}


def another_round(state: Debate) -> str:
    """As many rounds as asked for, within MAX_ROUNDS."""
    return "open_round" if state["round"] < min(state.get("rounds", 2), MAX_ROUNDS) else "judge"


def judge(state: Debate) -> Debate:
    """Weigh all speeches; the verdict names the winner in its last line."""
    record = "\n\n".join(f"Round {number}, {side}: {text}" for number, side, text in state["speeches"])
    answer = model.invoke(
        [
            (
                "system",
                "You judge debates by their arguments alone. End with one line: Winner: for, or Winner: against.",
            ),
            ("user", f"Judge the debate on: {state['motion']}\n\n{record}"),
        ]
    )
    verdict = str(answer.content)
    named = re.findall(r"Winner:\s*(for|against)", verdict)
    return {"verdict": verdict, "winner": named[-1] if named else "undecided"}


builder = StateGraph(Debate)
builder.add_node("open_round", open_round, metadata={"agentserve.kind": "tool"})
builder.add_node("advocate_for", advocate_for)
builder.add_node("advocate_against", advocate_against)
builder.add_node("close_round", close_round, metadata={"agentserve.kind": "tool"})
builder.add_node("judge", judge)
builder.add_edge(START, "open_round")
builder.add_edge("open_round", "advocate_for")
builder.add_edge("open_round", "advocate_against")
builder.add_edge(["advocate_for", "advocate_against"], "close_round")
builder.add_conditional_edges("close_round", another_round, ["open_round", "judge"])
builder.add_edge("judge", END)
graph = builder.compile(name="debate")
