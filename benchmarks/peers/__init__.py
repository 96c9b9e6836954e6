"""agentserve beside the routers that others ship, in front of the same bare engines and under the same load."""
