"""Coder: writes a Python module, runs its tests in a process of their own, and edits until they pass.

edit (LLM) → run_tests (subprocess) → edit again with the failure, or done: green, or after MAX_TRIES

The tests run the model's code with a time and memory limit, but with your user's rights: use a container for code that
you would not run by hand.
"""

import os
import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TypedDict

from langgraph.graph import END, START, StateGraph

from agentserve import ChatModel

model = ChatModel(model=os.environ.get("AGENTSERVE_MODEL", "llama-3.1-8b"), temperature=0.0)

EXAMPLE = {
    "task": "Write a module solution.py with a function slugify(text) that turns a title into a URL slug: lower case, "
    "letters and digits kept, everything else becomes a single hyphen, no hyphen at either end.",
    "tests": """
from solution import slugify

assert slugify("Hello World") == "hello-world", slugify("Hello World")
assert slugify("  Spaces  around ") == "spaces-around", slugify("  Spaces  around ")
assert slugify("C++ & Rust: 2 languages!") == "c-rust-2-languages", slugify("C++ & Rust: 2 languages!")
assert slugify("---") == "", slugify("---")
""",
}

MAX_TRIES = 4
TIME_LIMIT_S = 10
MEMORY_LIMIT_BYTES = 1 << 30
OUTPUT_LIMIT_CHARS = 2_000


class Work(TypedDict, total=False):
    """The task, and the last try."""

    task: str
    tests: str
    code: str
    output: str
    passed: bool
    tries: int


def edit(state: Work) -> Work:
    """Ask for the whole module, showing the last one and how its tests failed."""
    request = f"Task: {state['task']}\n\nTests:\n{state['tests']}"
    if "code" in state:
        request = (
            f"The tests fail; repair the module.\n\n{request}\n\nModule:\n```python\n{state['code']}\n```\n\n"
            f"Output of the tests:\n{state['output']}"
        )
    answer = model.invoke(
        [
            (
                "system",
                "You write Python. Explain briefly what you do, then give the whole module in one ```python block.",
            ),
            ("user", request),
        ]
    )
    blocks = re.findall(r"```(?:python)?\n(.*?)```", str(answer.content), re.DOTALL)
    return {"code": blocks[-1] if blocks else "", "tries": state.get("tries", 0) + 1}


def run_tests(state: Work) -> Work:
    """Run the tests against the module, in an empty folder, alone, with limits."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "solution.py").write_text(state["code"], "utf-8")
        Path(folder, "tests.py").write_text(state["tests"], "utf-8")
        command = [sys.executable, "-B", "tests.py"]
        try:
            done = subprocess.run(  # noqa: S603  # running the model's code is what this agent is for
                command, cwd=folder, env={}, capture_output=True, text=True, timeout=TIME_LIMIT_S, preexec_fn=limit
            )
        except subprocess.TimeoutExpired:
            return {"passed": False, "output": f"the tests ran longer than {TIME_LIMIT_S} s and were stopped"}
    output = (done.stdout + done.stderr)[-OUTPUT_LIMIT_CHARS:]
    return {"passed": done.returncode == 0, "output": output.replace(folder, ".")}


def limit() -> None:
    """In the child: no more memory and processor time than the tests may take."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (TIME_LIMIT_S, TIME_LIMIT_S))


def judge(state: Work) -> str:
    """Again, unless the tests pass or the tries are used up."""
    return END if state["passed"] or state["tries"] >= MAX_TRIES else "edit"


builder = StateGraph(Work)
builder.add_node("edit", edit)
builder.add_node("run_tests", run_tests, metadata={"agentserve.kind": "tool"})
builder.add_edge(START, "edit")
builder.add_edge("edit", "run_tests")
builder.add_conditional_edges("run_tests", judge, ["edit", END])
graph = builder.compile(name="coder")
