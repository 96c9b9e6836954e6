"""The HTTP headers by which a call takes part in a run; any client may send them, the SDK does by itself.

A call without them is a run of one step.
"""

from typing import Final

RUN_ID: Final = "x-agentserve-run-id"
"""The run this call belongs to; created on first sight, with the SLO given beside it."""
STEP_ID: Final = "x-agentserve-step-id"
"""The step (node execution) within the run; several calls of one step share it."""
PARENTS: Final = "x-agentserve-parent-steps"
"""Comma-separated step ids whose results this step waited for."""
NODE: Final = "x-agentserve-node"
"""The graph node that the step executes."""
WORKFLOW: Final = "x-agentserve-workflow"
"""Name of the registered workflow; absent: a workflow of its own is assumed."""
SLO_S: Final = "x-agentserve-slo-s"
"""Relative: seconds from the run's submission to its deadline. Read when the run is created."""
DEADLINE: Final = "x-agentserve-deadline"
"""Absolute: Unix seconds by which the run must end. Read when the run is created; wins over SLO_S.

On a response: the step's target deadline, as the gateway derived it."""
REQUEST_ID: Final = "x-agentserve-request-id"
"""Names the call, so that a retry after a lost connection is the same call."""
SESSION_ID: Final = "x-agentserve-session-id"
"""Calls of one session share a growing prefix."""
INSTANCE: Final = "x-agentserve-instance"
"""On a response: the instance that the call was first given to."""

SESSION_ALIASES: Final = ("x-session-id", "session-id", "x-claude-code-session-id", "x-dynamo-session-id")
"""Session headers of other products that are read when SESSION_ID is absent."""
