"""A local cluster and a headless Chromium for the page's tests, both brought up once."""

import os
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest_asyncio
from playwright.async_api import Browser, BrowserContext

from agentserve.local.cluster import LocalCluster
from agentserve.local.fleet import default_fleet
from tests.ui.browser import chromium
from tests.ui.sight import Sight

OUT = Path(os.environ.get("AGENTSERVE_UI_OUT", "out/ui"))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    async with chromium() as started:
        yield started


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def cluster() -> AsyncIterator[LocalCluster]:
    async with LocalCluster(default_fleet(speed=2, stream_interval=2)) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def client(cluster: LocalCluster) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=cluster.gateway_url, timeout=60, trust_env=False) as opened:
        yield opened


@pytest_asyncio.fixture(loop_scope="session")
async def sight(browser: Browser, cluster: LocalCluster) -> AsyncIterator[Sight]:
    """The page, opened; a script that fails or a word on the console fails the test."""
    context: BrowserContext = await browser.new_context(viewport={"width": 1440, "height": 1000}, color_scheme="light")
    page = await context.new_page()
    seen = Sight(page, cluster.gateway_url, OUT)
    await seen.open()
    yield seen
    await context.close()
    assert seen.complaints == []
