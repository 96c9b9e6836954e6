"""The process that speaks for an engine, and the gateway's list of those that do."""
