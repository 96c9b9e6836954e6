"""The live driver of the scheduler: clock, timers, calls in flight, and the streams that survive a change of engine."""

from agentserve.orchestrator.call import CallFailed, LiveCall
from agentserve.orchestrator.driver import Orchestrator
from agentserve.orchestrator.request import CallRequest, Resume

__all__ = ["CallFailed", "CallRequest", "LiveCall", "Orchestrator", "Resume"]
