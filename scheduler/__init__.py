"""Decides where and when every LLM call runs: events in, decisions out, no clock and no I/O."""
