"""Text to SQL: writes a query for a question, checks it on a real SQLite database, repairs it, and answers in words.

generate (LLM) → check (SQLite) → repair (LLM) → check … → explain (LLM)
"""

import os
import re
import sqlite3
from typing import TypedDict

from langgraph.graph import END, START, StateGraph

from agentserve import ChatModel

model = ChatModel(model=os.environ.get("AGENTSERVE_MODEL", "llama-3.1-8b"), temperature=0.0)

EXAMPLE = {"question": "Which customer from Lisbon spent the most in total, and how much was it?"}

SCHEMA = """
CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT NOT NULL, city TEXT NOT NULL);
CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id INTEGER NOT NULL REFERENCES customers(id), day TEXT NOT NULL);
CREATE TABLE items (order_id INTEGER NOT NULL REFERENCES orders(id), product TEXT NOT NULL, quantity INTEGER NOT NULL,
                    price_cents INTEGER NOT NULL);
""".strip()

ROWS = """
INSERT INTO customers VALUES (1, 'Ines', 'Lisbon'), (2, 'Rui', 'Lisbon'), (3, 'Greta', 'Oslo'), (4, 'Tiago', 'Porto');
INSERT INTO orders VALUES (1, 1, '2025-03-02'), (2, 2, '2025-03-05'), (3, 1, '2025-04-11'), (4, 3, '2025-04-12'),
                          (5, 4, '2025-05-01'), (6, 2, '2025-05-09');
INSERT INTO items VALUES (1, 'lamp', 1, 3990), (1, 'bulb', 4, 450), (2, 'chair', 1, 18900), (3, 'desk', 1, 24900),
                         (4, 'desk', 3, 24900), (5, 'lamp', 2, 3990), (6, 'monitor arm', 2, 8900);
"""

MAX_TRIES = 3
MAX_STEPS = 2_000_000
MAX_ROWS = 20


class Query(TypedDict, total=False):
    """The question, and the last try at a query."""

    question: str
    sql: str
    rows: list[tuple[object, ...]]
    error: str | None
    tries: int
    answer: str


def generate(state: Query) -> Query:
    """Write the first query."""
    return {"sql": ask(f"Write a query for this question: {state['question']}"), "tries": 1}


def repair(state: Query) -> Query:
    """Write the query again, knowing what SQLite said."""
    request = f"This query failed:\n{state['sql']}\n\nSQLite says: {state['error']}\n\nQuestion: {state['question']}"
    return {"sql": ask(f"Repair the query. {request}"), "tries": state["tries"] + 1}


def ask(request: str) -> str:
    """The last SQL block of the model's answer."""
    answer = model.invoke(
        [
            ("system", f"You write SQLite. Reason briefly, then give one query in a ```sql block. Schema:\n{SCHEMA}"),
            ("user", request),
        ]
    )
    blocks = re.findall(r"```(?:sql)?\n(.*?)```", str(answer.content), re.DOTALL)
    return blocks[-1].strip() if blocks else ""


def check(state: Query) -> Query:
    """Run the query on the shop's database, which it can only read; at most MAX_ROWS rows and MAX_STEPS of work."""
    if not state["sql"]:
        return {"error": "there is no query in the answer", "rows": []}
    shop = open_shop()
    try:
        rows = shop.execute(state["sql"]).fetchmany(MAX_ROWS)
    except (sqlite3.Error, sqlite3.Warning) as error:
        return {"error": str(error), "rows": []}
    finally:
        shop.close()
    return {"error": None if rows else "the query finds no rows", "rows": rows}


def open_shop() -> sqlite3.Connection:
    """A fresh shop in memory, then closed to writes and to queries without end."""
    shop = sqlite3.connect(":memory:")
    shop.executescript(SCHEMA + ROWS)
    shop.execute("PRAGMA query_only = ON")
    steps = iter(range(MAX_STEPS // 10_000))
    shop.set_progress_handler(lambda: next(steps, None) is None, 10_000)
    return shop


def judge(state: Query) -> str:
    """Explain a result, or the failure after the last try."""
    return "explain" if state["error"] is None or state["tries"] >= MAX_TRIES else "repair"


def explain(state: Query) -> Query:
    """Answer the question in words, from the rows."""
    result = "\n".join(map(str, state["rows"])) or f"no result: {state['error']}"
    answer = model.invoke(
        [
            ("system", "You explain query results in one short paragraph to somebody who does not know SQL."),
            ("user", f"Explain the result of this query.\n{state['sql']}\n\nRows:\n{result}\n\n"
             f"Question: {state['question']}"),
        ]
    )  # fmt: skip
    return {"answer": str(answer.content)}


builder = StateGraph(Query)
builder.add_node("generate", generate)
builder.add_node("check", check, metadata={"agentserve.kind": "tool"})
builder.add_node("repair", repair)
builder.add_node("explain", explain)
builder.add_edge(START, "generate")
builder.add_edge("generate", "check")
builder.add_conditional_edges("check", judge, ["repair", "explain"])
builder.add_edge("repair", "check")
builder.add_edge("explain", END)
graph = builder.compile(name="text_to_sql")
