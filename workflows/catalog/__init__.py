"""Which agents can be run as they are? Each module here is one agent in one file, with `graph` and `EXAMPLE`; copy one.

They are users' code: each imports what it needs when it is imported itself, and this package imports none of them.
"""

from pathlib import Path
from typing import Final

AGENTS: Final = ("support_triage", "researcher", "coder", "text_to_sql", "debate", "trip_desk")
"""Module names; `workflows.catalog.NAME:graph` is what `agentserve run` takes."""

SCRIPTS: Final = Path(__file__).with_name("scripts.jsonl")
"""What the emulated model answers to these agents, so that they work without a GPU."""
