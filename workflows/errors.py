"""What can be wrong with a graph or a run; every error names the node, step or run it is about."""


class WorkflowError(Exception):
    """Root of every error raised by `workflows`."""


class InvalidWorkflow(WorkflowError):
    """A graph cannot be served: an unreachable node, a loop without exit, an edge to nowhere, a duplicate name."""


class IllegalTransition(WorkflowError):
    """A run or step cannot go from the state it is in to the one asked for."""


class DuplicateStep(IllegalTransition):
    """A step id is used for another node, or again after its step ended."""


class InvalidSlo(WorkflowError):
    """An SLO is not a positive, finite number of seconds, or its deadline has already passed."""
