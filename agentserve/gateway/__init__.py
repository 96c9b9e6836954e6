"""The HTTP face of agentserve: OpenAI's routes, runs and workflows, health and metrics."""
