"""Every client, case by case, through a gateway process; docs/conformance.md says exactly what is seen here."""

import gc
from collections.abc import AsyncIterator, Iterator
from importlib.metadata import version

import pytest
import pytest_asyncio

from tests.clients import cases_answers, cases_errors, cases_fields, with_litellm
from tests.clients.bench import Bench, running_bench
from tests.clients.heard import Client
from tests.clients.table import CASES, CLIENTS, PAGE, Case, documented, observe

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),  # litellm keeps its connections, and with them its loop
    # The libraries' warnings are theirs: raised as errors inside them, they would change what is tested here.
    pytest.mark.filterwarnings("ignore"),
]
_SECTIONS = (cases_answers.ANSWERS, cases_fields.FIELDS, cases_errors.ERRORS, cases_errors.TIMES)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with running_bench() as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module", autouse=True)
async def leftovers() -> AsyncIterator[None]:
    """What the libraries left open is collected here, not in the middle of other tests."""
    yield
    await with_litellm.close()
    gc.collect()


@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.name)
@pytest.mark.parametrize("one", CASES, ids=lambda one: one.run.__name__)
async def test_a_case_ends_as_the_page_says(one: Case, client: Client, bench: Bench) -> None:
    cells = documented(PAGE.read_text())[one.section][one.title]
    assert await observe(one, bench, client) == cells[CLIENTS.index(client)]


async def test_the_page_has_exactly_these_rows_and_columns() -> None:
    page = PAGE.read_text()
    rows = {section: list(rows) for section, rows in documented(page).items()}
    assert rows == {name: [one.title for one in CASES if one.section == name] for name in _SECTIONS}
    heads = [line for line in page.splitlines() if line.startswith(tuple(f"| {name} |" for name in _SECTIONS))]
    assert heads == [f"| {name} | {' | '.join(client.name for client in CLIENTS)} |" for name in _SECTIONS]


@pytest.mark.parametrize("package", ["openai", "langchain-openai", "litellm"])
async def test_the_page_names_the_versions_that_ran(package: str) -> None:
    assert f"`{package}` {version(package)}" in PAGE.read_text()
