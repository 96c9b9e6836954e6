"""Which cases are there, and what does docs/conformance.md say of them? Cases by section, and the page's tables."""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.clients.bench import Bench
from tests.clients.heard import Client, NotApplicable, Refused
from tests.clients.with_curl import Curl
from tests.clients.with_langchain import LangChain
from tests.clients.with_litellm import LiteLlm
from tests.clients.with_openai import OpenAi

PAGE: Final = Path(__file__).parents[2] / "docs" / "conformance.md"
CLIENTS: Final[tuple[Client, ...]] = (OpenAi(), LangChain(), LiteLlm(), Curl())
PASSES: Final = "passes"
Run = Callable[[Bench, Client], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Case:
    """One row: `run` asserts what must hold for any client, or lets the Refused through that the row is about."""

    section: str
    title: str
    run: Run


CASES: Final[list[Case]] = []


def case(section: str, title: str) -> Callable[[Run], Run]:
    """Make a function a row of the table; its docstring is for readers of the code."""

    def add(run: Run) -> Run:
        assert title not in {each.title for each in CASES}, title
        CASES.append(Case(section, title, run))
        return run

    return add


async def observe(one: Case, bench: Bench, client: Client) -> str:
    """Run a case and say what came of it, as the table's cell does."""
    try:
        await one.run(bench, client)
    except Refused as refused:
        return refused.cell
    except NotApplicable as lacking:
        return f"– {lacking}"
    return PASSES


def documented(page: str) -> Mapping[str, Mapping[str, tuple[str, ...]]]:
    """The page's cells by section and row."""
    found: dict[str, dict[str, tuple[str, ...]]] = {}
    for section, title, cells in _rows(page):
        found.setdefault(section, {})[title] = cells
    return found


def written(page: str, cells: Mapping[tuple[str, str], str]) -> str:
    """The page with the tables of all cases, given the cell of each (title, client)."""
    sections: dict[str, list[Case]] = {}
    for one in CASES:
        sections.setdefault(one.section, []).append(one)
    for section, members in sections.items():
        names = [client.name for client in CLIENTS]
        lines = [f"| {section} | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        lines += [f"| {one.title} | {' | '.join(cells[one.title, name] for name in names)} |" for one in members]
        table = "\n".join(lines)
        page = re.sub(rf"^\| {section} \|.*\n(\|.*\n)+", lambda _, text=table: f"{text}\n", page, flags=re.MULTILINE)
    return page


def _rows(page: str) -> list[tuple[str, str, tuple[str, ...]]]:
    sections = {one.section for one in CASES}
    rows, section = [], None
    for line in page.splitlines():
        parts = [part.strip() for part in line.strip("|").split(" | ")]
        if not line.startswith("|"):
            section = None
        elif parts[0] in sections:
            section = parts[0]
        elif section is not None and not line.startswith("|---"):
            rows.append((section, parts[0], tuple(parts[1:])))
    return rows
