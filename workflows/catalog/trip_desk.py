"""Trip desk: a model that calls tools as often as it needs (train times, prices, currency) and then answers.

desk (LLM with tools) → tools (LangGraph's ToolNode) → desk … → end
"""

import os
from typing import Annotated, TypedDict

from langchain_core.messages import AnyMessage, SystemMessage
from langchain_core.tools import tool
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import ToolNode

from agentserve import ChatModel

model = ChatModel(model=os.environ.get("AGENTSERVE_MODEL", "llama-3.1-8b"), temperature=0.0)

EXAMPLE = {
    "messages": [
        ("user", "I want to go from Lisbon to Porto after 14:00. Which train is it, and what is that in dollars?")
    ]
}

TRAINS = {
    ("lisbon", "porto"): [("AP 131", "13:39", "16:31", 34.30), ("IC 525", "14:30", "17:44", 25.40),
                          ("AP 133", "15:39", "18:31", 34.30)],
    ("porto", "braga"): [("AP 131", "16:40", "17:21", 15.80)],
}  # fmt: skip
RATES_PER_EUR = {"USD": 1.10, "GBP": 0.86, "NOK": 11.60}
MAX_CALLS = 8


class Trip(TypedDict):
    """The conversation."""

    messages: Annotated[list[AnyMessage], add_messages]


@tool
def find_trains(origin: str, destination: str, after: str = "00:00") -> str:
    """Trains between two cities that leave at or after a time (HH:MM), with prices in euros."""
    trains = TRAINS.get((origin.lower(), destination.lower()), [])
    found = [train for train in trains if train[1] >= after]
    lines = [f"{name}: leaves {leaves}, arrives {arrives}, {price:.2f} EUR" for name, leaves, arrives, price in found]
    return "\n".join(lines) or f"no trains from {origin} to {destination} after {after}"


@tool
def convert(amount_eur: float, currency: str) -> str:
    """An amount in euros in another currency (three letters)."""
    rate = RATES_PER_EUR.get(currency.upper())
    if rate is None:
        return f"no rate for {currency}; known: {', '.join(sorted(RATES_PER_EUR))}"
    return f"{amount_eur:.2f} EUR are {amount_eur * rate:.2f} {currency.upper()}"


TOOLS = [find_trains, convert]


def desk(state: Trip) -> Trip:
    """Let the model answer or ask for tools."""
    rules = SystemMessage("You work at a trip desk. Look trains and rates up with your tools; never guess them.")
    return {"messages": [model.bind_tools(TOOLS).invoke([rules, *state["messages"]])]}


def next_step(state: Trip) -> str:
    """To the tools that the model asked for, but not for ever."""
    wanted = getattr(state["messages"][-1], "tool_calls", [])
    asked = sum(bool(getattr(message, "tool_calls", [])) for message in state["messages"])
    return "tools" if wanted and asked <= MAX_CALLS else END


builder = StateGraph(Trip)
builder.add_node("desk", desk)
builder.add_node("tools", ToolNode(TOOLS))
builder.add_edge(START, "desk")
builder.add_conditional_edges("desk", next_step, ["tools", END])
builder.add_edge("tools", "desk")
graph = builder.compile(name="trip_desk")
