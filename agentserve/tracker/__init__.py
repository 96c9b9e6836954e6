"""Keeps runs, their events and what was learned of workflows, so that nothing is lost when a gateway restarts."""
