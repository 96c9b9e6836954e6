"""Serves LLM agents so that their whole runs finish inside one SLO, on the GPUs at hand."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from agentserve.sdk import ChatModel, current_run, serve

__all__ = ["ChatModel", "current_run", "serve"]


def __getattr__(name: str) -> Any:
    """Load the SDK on first use, so that `import agentserve` does not load LangGraph."""
    if name in __all__:
        return getattr(import_module("agentserve.sdk"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
