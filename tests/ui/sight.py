"""How do the tests look at the page? Opened, listened to, and photographed."""

from pathlib import Path

from playwright.async_api import Page

LONG_MS = 15_000


class Sight:
    """The page in a browser, and everything that its console and its scripts complain of."""

    def __init__(self, page: Page, url: str, out: Path) -> None:
        self.page = page
        self.complaints: list[str] = []
        self._url = url
        self._out = out
        page.set_default_timeout(LONG_MS)
        page.on(
            "console", lambda said: self.complaints.append(said.text) if said.type in ("error", "warning") else None
        )
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("dialog", lambda dialog: self.complaints.append(f"a dialog: {dialog.message}"))

    async def open(self, place: str = "") -> None:
        """Go there, and wait until the page is live."""
        await self.page.goto(f"{self._url}/ui{place}")
        await self.page.wait_for_selector("#connection[data-state=live]")

    async def picture(self, name: str) -> None:
        """Write a screenshot."""
        self._out.mkdir(parents=True, exist_ok=True)
        await self.page.screenshot(path=self._out / f"{name}.png")

    async def focused(self) -> str:
        """What has the focus: its id, else its text."""
        return str(await self.page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
