"""The docs point at files and headings that exist, and the reference says what the code says."""

import re
from itertools import chain
from pathlib import Path

import pytest

from agentserve.emulator.config import EmulatorConfig
from agentserve.workers.config import WorkerConfig
from docs import generate_configuration as configuration
from scheduler.config import SchedulerConfig

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    heads = re.findall(r"^#+ +(.+?) *$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page.parent.name}-{page.name}")
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text())
    assert [link for link, _ in links if not (page.parent / link).exists()] == []
    named = [(page.parent / link if link else page, anchor) for link, anchor in links if anchor]
    assert [(target.name, anchor) for target, anchor in named if anchor not in anchors(target)] == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_every_page_is_in_the_index(page: Path) -> None:
    links = re.findall(r"\]\(([\w-]+\.md)\)", (ROOT / "docs" / "README.md").read_text())
    assert page.name == "README.md" or links.count(page.name) == 1


def test_the_configuration_reference_is_what_the_code_says() -> None:
    assert configuration.PAGE.read_text(encoding="utf-8") == configuration.page(), "run `make docs`"


def test_every_setting_is_described() -> None:
    rows = chain(
        configuration.gateway_rows(),
        configuration.flag_rows(WorkerConfig, "worker"),
        configuration.flag_rows(EmulatorConfig, "emulator"),
        configuration.scheduler_rows(SchedulerConfig()),
    )
    assert [row.name for row in rows if not row.text] == []


def test_every_variable_that_the_code_names_is_in_the_configuration_reference() -> None:
    named = {
        variable
        for folder in ("agentserve", "workflows")
        for path in (ROOT / folder).rglob("*.py")
        for variable in re.findall(r"AGENTSERVE_[A-Z][A-Z_]*[A-Z]", path.read_text())
    }
    assert len(named) > 8
    known = set(re.findall(r"AGENTSERVE_\w+", configuration.PAGE.read_text(encoding="utf-8")))
    assert named - known == set()


def test_every_file_of_the_reading_order_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = re.findall(r"`((?:agentserve|scheduler|workflows)/[\w/.]*)`", text)
    assert len(named) > 20
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_file_of_the_lab_s_reading_order_exists() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    section = text[text.index("## One simulation") : text.index("## Three rules")]
    named = re.findall(r"`(\w+\.py)`", section)
    assert len(named) > 20
    assert [name for name in named if not (ROOT / "agentserve" / "lab" / name).exists()] == []
