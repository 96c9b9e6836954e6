"""Support triage: reads a ticket, takes one of four branches to the facts it needs, and drafts an answer.

classify (LLM) → look_up_order | search_help | escalate | nothing → answer (LLM)
"""

import json
import operator
import os
import re
from typing import Annotated, TypedDict

from langgraph.graph import END, START, StateGraph

from agentserve import ChatModel

model = ChatModel(model=os.environ.get("AGENTSERVE_MODEL", "llama-3.1-8b"), temperature=0.0)

EXAMPLE = {
    "ticket": "Hello, I was charged twice for order 10482 (a desk lamp). I only ordered one. Please give me my money "
    "back for the second one. Kind regards, Ines"
}

ORDERS = {
    "10482": {"item": "desk lamp", "status": "delivered", "charges_eur": [39.90, 39.90], "shipped": "2 May"},
    "10517": {"item": "office chair", "status": "in transit", "charges_eur": [189.00], "shipped": "9 May"},
    "10533": {"item": "monitor arm", "status": "cancelled", "charges_eur": [], "shipped": None},
}

HELP = {
    "Reset the router": "Hold the button on the back for ten seconds until the light blinks, then wait two minutes.",
    "Lamp does not turn on": "Check that the plug is firmly in, then press the switch for three seconds to unlock it.",
    "Change the password": "Open Account, then Security, then Change password. A link to confirm is sent by mail.",
    "Return a product": "Returns are free for 30 days. Print the label under My orders and hand the parcel in.",
}


class Ticket(TypedDict, total=False):
    """What is known about the ticket so far."""

    ticket: str
    category: str
    urgent: bool
    facts: Annotated[list[str], operator.add]
    reply: str


def classify(state: Ticket) -> Ticket:
    """Ask for a category and the urgency, as JSON; whatever cannot be read is an ordinary question."""
    answer = model.invoke(
        [
            ("system", "You sort support tickets. Think aloud in a few sentences, then give one line of JSON with the "
             'keys "category" (billing, technical, complaint or other) and "urgent" (true or false).'),
            ("user", f"Sort this ticket:\n{state['ticket']}"),
        ]
    )  # fmt: skip
    found = re.findall(r"\{[^{}]*\}", str(answer.content))
    try:
        sorted_as = json.loads(found[-1]) if found else {}
    except json.JSONDecodeError:
        sorted_as = {}
    category = str(sorted_as.get("category"))
    known = category in ("billing", "technical", "complaint")
    return {"category": category if known else "other", "urgent": sorted_as.get("urgent") is True}


def route(state: Ticket) -> str:
    """The branch that finds the facts."""
    branches = {"billing": "look_up_order", "technical": "search_help", "complaint": "escalate"}
    return "escalate" if state["urgent"] else branches.get(state["category"], "answer")


def look_up_order(state: Ticket) -> Ticket:
    """Find every order that the ticket names."""
    numbers = [number for number in re.findall(r"\b\d{5}\b", state["ticket"]) if number in ORDERS]
    if not numbers:
        return {"facts": ["The ticket names no order that exists."]}
    return {"facts": [f"Order {number}: {json.dumps(ORDERS[number])}" for number in numbers]}


def search_help(state: Ticket) -> Ticket:
    """The two help articles that share most words with the ticket."""
    words = set(re.findall(r"\w+", state["ticket"].lower()))
    ranked = sorted(
        HELP.items(), key=lambda item: (-len(words & set(re.findall(r"\w+", " ".join(item).lower()))), item)
    )
    return {"facts": [f"{title}: {text}" for title, text in ranked[:2]]}


def escalate(state: Ticket) -> Ticket:
    """Give the ticket to a person: its number is made from its text, so that a repeated ticket keeps it."""
    number = sum(map(ord, state["ticket"])) % 90_000 + 10_000
    return {"facts": [f"A colleague will call within four hours; the case number is {number}."]}


def answer(state: Ticket) -> Ticket:
    """Draft the reply from the facts."""
    facts = "\n".join(f"- {fact}" for fact in state.get("facts", [])) or "- none"
    reply = model.invoke(
        [
            ("system", "You answer customers: friendly, exact, without promising more than the facts say."),
            ("user", f"Answer this {state['category']} ticket:\n{state['ticket']}\n\nFacts:\n{facts}"),
        ]
    )
    return {"reply": str(reply.content)}


builder = StateGraph(Ticket)
builder.add_node("classify", classify)
builder.add_node("look_up_order", look_up_order, metadata={"agentserve.kind": "tool"})
builder.add_node("search_help", search_help, metadata={"agentserve.kind": "tool"})
builder.add_node("escalate", escalate, metadata={"agentserve.kind": "tool"})
builder.add_node("answer", answer)
builder.add_edge(START, "classify")
builder.add_conditional_edges("classify", route, ["look_up_order", "search_help", "escalate", "answer"])
builder.add_edge("look_up_order", "answer")
builder.add_edge("search_help", "answer")
builder.add_edge("escalate", "answer")
builder.add_edge("answer", END)
graph = builder.compile(name="support_triage")
