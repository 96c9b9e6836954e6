"""What does a user import? `serve` a graph, talk through `ChatModel`, ask `current_run`; each loads on first use."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentserve.sdk.chat import ChatModel
    from agentserve.sdk.context import CurrentRun, current_run
    from agentserve.sdk.served import RunResult, ServedGraph, serve
    from agentserve.sdk.transport import AsyncRunTransport, RunTransport, async_http_client, http_client

__all__ = [
    "AsyncRunTransport",
    "ChatModel",
    "CurrentRun",
    "RunResult",
    "RunTransport",
    "ServedGraph",
    "async_http_client",
    "current_run",
    "http_client",
    "serve",
]

_HOMES = {
    "ChatModel": "chat",
    "CurrentRun": "context",
    "current_run": "context",
    "RunResult": "served",
    "ServedGraph": "served",
    "serve": "served",
    "AsyncRunTransport": "transport",
    "RunTransport": "transport",
    "async_http_client": "transport",
    "http_client": "transport",
}


def __getattr__(name: str) -> Any:
    """Load the module that holds `name`: a client of the transport alone need not load LangGraph."""
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
