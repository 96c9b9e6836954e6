"""What does the page look like at work? Screenshots of it while real coding-agent turns run on a local cluster.

`python -m tests.ui.pictures [FOLDER]`; without a folder those of the README are made anew.
"""

import asyncio
import sys
from pathlib import Path

from playwright.async_api import Browser, Page

from agentserve.lab.replay import SoloScaleSlo, replay
from agentserve.lab.workloads import BUNDLED_ARRIVALS, BUNDLED_SESSIONS, Workload, WorkloadOptions, load_workload
from agentserve.local.cluster import LocalCluster
from agentserve.local.fleet import default_fleet
from tests.ui.browser import chromium

README_FOLDER = Path(__file__).parents[2] / "docs" / "images"
SPEED = 2.0
WARM_S = 100.0
AFTER_S = 5.0
"""From the loss of an engine, so that its moves are to be seen, to the first picture."""
SIZE = {"width": 1440, "height": 1180}


async def main(folder: Path) -> None:
    """Bring a cluster up, load it, and take the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    fleet = default_fleet(speed=SPEED, stream_interval=4)
    async with LocalCluster(fleet, said=print) as cluster, chromium() as browser:
        load = asyncio.create_task(
            replay(workload(), cluster.gateway_url, speed=SPEED, slo=SoloScaleSlo(2.0), model=fleet.model, seed=3)
        )
        try:
            await asyncio.sleep(WARM_S)
            await cluster.parts["engine-a100-80g-2"].kill()
            await asyncio.sleep(AFTER_S)
            await overview(browser, cluster, folder)
            await one_run(browser, cluster, folder)
        finally:
            load.cancel()
            await asyncio.wait([load])


def workload() -> Workload:
    """Coding-agent turns, as in the demo but more of them."""
    options = WorkloadOptions(
        prompt_scale=0.25,
        max_prompt_tokens=32_000,
        max_steps=12,
        max_tool_gap_s=10.0,
        arrivals=BUNDLED_ARRIVALS,
        rate_per_s=0.7,
        limit=400,
        seed=3,
    )
    return load_workload(BUNDLED_SESSIONS, options)


async def overview(browser: Browser, cluster: LocalCluster, folder: Path) -> None:
    """The whole cluster, light and dark."""
    for theme in ("light", "dark"):
        page = await open_page(browser, cluster.gateway_url, theme)
        await page.screenshot(path=folder / f"ui-{theme}.png")
        await page.close()


async def one_run(browser: Browser, cluster: LocalCluster, folder: Path) -> None:
    """One run that moved, or else the newest that has ended."""
    page = await open_page(browser, cluster.gateway_url, "light")
    for shown in ("moved", "ended"):
        await page.select_option("#show", shown)
        await page.wait_for_timeout(2000)
        link = page.locator("#runs tbody a").first
        if await link.count():
            await link.click()
            break
    await page.wait_for_selector("#steps .step-entry")
    await page.wait_for_selector("#connection[data-state=live]")
    await page.screenshot(path=folder / "ui-run.png")
    await page.close()


async def open_page(browser: Browser, url: str, theme: str) -> Page:
    """The page with its rows there."""
    context = await browser.new_context(viewport=SIZE, color_scheme=theme)
    page = await context.new_page()
    page.on("console", lambda message: print("console:", message.text))
    page.on("pageerror", lambda error: print("error:", error))
    await page.goto(f"{url}/ui")
    await page.wait_for_selector("#runs tbody tr")
    await page.wait_for_timeout(3000)
    return page


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]) if len(sys.argv) > 1 else README_FOLDER))
