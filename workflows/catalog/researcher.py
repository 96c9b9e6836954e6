"""Researcher: plans searches for a question, runs them side by side, and writes a report from what they found.

plan (LLM) → search (BM25 over a small library, then LLM notes), once per query at the same time → write (LLM)
"""

import json
import math
import operator
import os
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Annotated, TypedDict

from langgraph.graph import END, START, StateGraph
from langgraph.types import Send

from agentserve import ChatModel

model = ChatModel(model=os.environ.get("AGENTSERVE_MODEL", "llama-3.1-8b"), temperature=0.0)

EXAMPLE = {"question": "How do language model servers batch requests, and what does batching cost the single user?"}

LIBRARY = Path(__file__).with_name("library.jsonl")
MAX_SEARCHES = 5


class Research(TypedDict, total=False):
    """The question and what was found; notes of parallel searches add up."""

    question: str
    queries: list[str]
    notes: Annotated[list[str], operator.add]
    report: str


class Search(TypedDict):
    """What one search is given."""

    question: str
    query: str


def plan(state: Research) -> Research:
    """Ask for search queries, one JSON object per line; without any the question itself is the query."""
    answer = model.invoke(
        [
            ("system", "You plan research. Write what you need to find out, then up to five searches, each as one line "
             'of JSON: {"query": "…", "why": "…"}.'),
            ("user", f"Plan the searches for this question: {state['question']}"),
        ]
    )  # fmt: skip
    queries = []
    for line in str(answer.content).splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and entry.get("query"):
            queries.append(str(entry["query"]))
    return {"queries": list(dict.fromkeys(queries))[:MAX_SEARCHES] or [state["question"]]}


def spread(state: Research) -> list[Send]:
    """One search for each query."""
    return [Send("search", {"question": state["question"], "query": query}) for query in state["queries"]]


def search(state: Search) -> Research:
    """Rank the library for one query and take notes from the best three passages."""
    passages = "\n".join(f"[{title}] {text}" for title, text in rank(state["query"])[:3])
    answer = model.invoke(
        [
            ("system", "You take notes for a report: only what the passages say, with their titles in brackets."),
            ("user", f"Take notes on: {state['query']}\n\nPassages:\n{passages}\n\nQuestion: {state['question']}"),
        ]
    )
    return {"notes": [str(answer.content)]}


def write(state: Research) -> Research:
    """Join all notes into one report."""
    notes = "\n\n".join(state["notes"])
    answer = model.invoke(
        [
            ("system", "You write short reports from notes, with the sources in brackets."),
            ("user", f"Write the report on: {state['question']}\n\nNotes:\n{notes}"),
        ]
    )
    return {"report": str(answer.content)}


def rank(query: str, k1: float = 1.2, b: float = 0.75) -> list[tuple[str, str]]:
    """Title and text of the library's passages, best first: Okapi BM25 (Robertson and Zaragoza 2009, eq. 3.15)."""
    passages = library()
    counts = [Counter(words(f"{title} {text}")) for title, text in passages]
    lengths = [count.total() for count in counts]
    mean = sum(lengths) / len(lengths)
    scores = [0.0] * len(passages)
    for word in set(words(query)):
        holding = sum(word in count for count in counts)
        rarity = math.log(1 + (len(passages) - holding + 0.5) / (holding + 0.5))
        for index, count in enumerate(counts):
            weight = count[word] * (k1 + 1) / (count[word] + k1 * (1 - b + b * lengths[index] / mean))
            scores[index] += rarity * weight
    order = sorted(range(len(passages)), key=lambda index: (-scores[index], index))
    return [passages[index] for index in order if scores[index] > 0] or passages[:1]


def words(text: str) -> list[str]:
    """Lower-case words without their plural s."""
    return [word.removesuffix("s") for word in re.findall(r"[a-z]+", text.lower())]


@cache
def library() -> list[tuple[str, str]]:
    """The bundled passages."""
    entries = [json.loads(line) for line in LIBRARY.read_text("utf-8").splitlines()]
    return [(entry["title"], entry["text"]) for entry in entries]


builder = StateGraph(Research)
builder.add_node("plan", plan)
builder.add_node("search", search)
builder.add_node("write", write)
builder.add_edge(START, "plan")
builder.add_conditional_edges("plan", spread, ["search"])
builder.add_edge("search", "write")
builder.add_edge("write", END)
graph = builder.compile(name="researcher")
