"""An agent whose process dies where it is told to: each execution of a node is a line in $DIARY, the end its output."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any, TypedDict

from langgraph.graph import END, START, StateGraph

from agentserve import ChatModel, serve
from agentserve.sdk.checkpoints import RedisCheckpoints

model = ChatModel(model="llama-3.1-8b")
TOKENS = 120


class State(TypedDict, total=False):
    topic: str
    plan: str
    found: str
    story: str


def told(topic: str) -> str:
    return f"Tell me of {topic}. [[reply tokens={TOKENS}]]"


def executed(node: str) -> None:
    with Path(os.environ["DIARY"]).open("a") as diary:
        diary.write(f"{node}\n")


def die_at(place: str) -> None:
    if os.environ.get("DIE_AT") == place:
        os.kill(os.getpid(), signal.SIGKILL)


async def plan(state: State) -> State:
    executed("plan")
    return {"plan": (await model.ainvoke(told("a plan"))).text}


async def search(state: State) -> State:
    executed("search")
    die_at("search")
    return {"found": "what was found"}


async def write(state: State) -> State:
    executed("write")
    story = ""
    async for chunk in model.astream(told(state["topic"])):
        story += chunk.text
        if len(story) > 200:
            await asyncio.sleep(0.3)  # so that what came has been kept
            die_at("write")
    return {"story": story}


def build(metadata: dict[str, Any] | None = None) -> Any:
    builder = StateGraph(State)
    builder.add_node("plan", plan)
    builder.add_node("search", search, metadata=metadata)
    builder.add_node("write", write)
    builder.add_edge(START, "plan")
    builder.add_edge("plan", "search")
    builder.add_edge("search", "write")
    builder.add_edge("write", END)
    return builder.compile()


graph = build()
retryable = build({"agentserve.retryable": True})


def main(name: str, run_id: str) -> None:
    served = serve(
        globals()[name], slo_s=60, name="durable", durable=True, app=f"tests.integration.durable_agent:{name}"
    )
    if os.environ.get("DIE_AT") == "between":
        put = RedisCheckpoints.put

        def put_and_die(self: Any, *args: Any) -> Any:
            kept = put(self, *args)
            if args[1]["channel_values"].get("plan"):
                die_at("between")
            return kept

        RedisCheckpoints.put = put_and_die  # type: ignore[method-assign]
    if name == "sync":
        served.run({"topic": "rivers"}, run_id=run_id)
    else:
        asyncio.run(served.arun({"topic": "rivers"}, run_id=run_id))


if __name__ == "__main__":
    main(*sys.argv[1:])
