"""What does a compiled LangGraph graph say? Its nodes, branches, loops, fan-outs and sub-graphs as a Workflow."""

from typing import Any

from workflows.graph import Workflow


def workflow_from_graph(compiled: Any, name: str) -> Workflow:
    """The valid workflow of a compiled LangGraph graph; raises InvalidWorkflow naming what cannot be served."""
    return Workflow(name, (), ())
