"""Writes the tables of docs/conformance.md from what the clients see: python -m tests.clients.record"""

import asyncio

from tests.clients import cases_answers, cases_errors, cases_fields, with_litellm
from tests.clients.bench import running_bench
from tests.clients.table import CASES, CLIENTS, PAGE, observe, written

MODULES = (cases_answers, cases_fields, cases_errors)
"""Imported for their cases."""


async def record() -> None:
    """Run every case once with every client."""
    with running_bench() as bench:
        cells = {(one.title, client.name): await observe(one, bench, client) for one in CASES for client in CLIENTS}
    await with_litellm.close()
    PAGE.write_text(written(PAGE.read_text(), cells))


if __name__ == "__main__":
    asyncio.run(record())
