"""Turns an agent's graph into runs, and what is left of a run's SLO into a deadline for every step."""
