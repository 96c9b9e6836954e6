"""Where is a Chromium for the tests of the page? The one named, or Debian's, or playwright's own."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from playwright.async_api import Browser, Playwright, async_playwright

VARIABLE = "AGENTSERVE_CHROMIUM"
DEBIAN = Path("/usr/bin/chromium")
NONE = (
    f"no Chromium is here: set {VARIABLE} to one, or install it (Debian: apt-get install chromium; "
    "elsewhere: python -m playwright install chromium)"
)


def find_chromium(playwright: Playwright) -> str | None:
    """The program to start; None if there is none."""
    named = os.environ.get(VARIABLE)
    if named:
        return named if Path(named).exists() else None
    own = Path(playwright.chromium.executable_path)
    return next((str(path) for path in (DEBIAN, own) if path.exists()), None)


@asynccontextmanager
async def chromium() -> AsyncIterator[Browser]:
    """A headless Chromium; SystemExit says what to do when there is none."""
    async with async_playwright() as playwright:
        program = find_chromium(playwright)
        if program is None:
            raise SystemExit(NONE)
        # Without a sandbox, since containers and root have none; it sees only this machine's own page.
        browser = await playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            await browser.close()


async def check() -> None:
    """Say which Chromium the tests use; SystemExit if there is none."""
    async with chromium() as browser:
        print(f"Chromium {browser.version}")


if __name__ == "__main__":
    asyncio.run(check())
