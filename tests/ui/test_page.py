"""Does the page show what goes on, in a real browser on a real cluster? Order matters: the last test kills a worker."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from axe_playwright_python.async_playwright import Axe

from agentserve.local.cluster import LocalCluster
from tests.e2e.live import scripted, streamed
from tests.ui.sight import Sight

pytestmark = pytest.mark.asyncio(loop_scope="session")
HOSTILE = '<img src=x onerror="alert(1)"><script>alert(2)</script>'


@asynccontextmanager
async def call(
    client: httpx.AsyncClient, run_id: str, tokens: int, slo_s: int = 60
) -> AsyncIterator[asyncio.Task[int]]:
    """A streamed chat of a run, in flight; the task gives how many pieces came."""
    headers = {"x-agentserve-run-id": run_id, "x-agentserve-slo-s": str(slo_s), "x-agentserve-node": "write"}

    async def take() -> int:
        return len([piece async for piece in streamed(client, scripted(run_id, tokens), headers)])

    task = asyncio.create_task(take())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_a_run_appears_is_live_and_ends_in_time(sight: Sight, client: httpx.AsyncClient) -> None:
    page = sight.page
    assert await page.locator("#instances tbody tr").count() == 4
    async with call(client, "appears-1", 800) as going:
        row = page.locator("#runs tbody tr", has_text="appears-1")
        await row.wait_for()
        await row.locator(".verdict", has_text="slack").wait_for()
        assert await row.locator("svg .step").count() == 1
        await going
    await client.post("/v1/runs/appears-1/finish", json={})
    await row.locator(".verdict[data-tone=good]", has_text="in time by").wait_for()
    await page.locator(".tile", has_text="In time").locator("dd", has_text="100 %").wait_for()
    await sight.picture("overview")


async def test_a_run_is_explained_step_by_step_while_it_goes_on(sight: Sight, client: httpx.AsyncClient) -> None:
    page = sight.page
    async with call(client, "explained-1", 1500) as going:
        await page.locator("#runs a", has_text="explained-1").click()
        entry = page.locator("#steps .step-entry", has_text="write")
        await entry.get_by_text("most runs in time").first.wait_for()
        await page.locator("#run-title:focus").wait_for()
        assert await page.title() == "explained-1 · agentserve"
        await page.locator(".fall .decode").wait_for()
        await going
    await client.post("/v1/runs/explained-1/finish", json={})
    await page.locator("#run-verdict[data-tone=good]", has_text="attained").wait_for()
    await entry.locator("summary").click()
    assert await entry.locator("details tbody tr").count() > 1
    await sight.picture("run")
    await page.locator(".back a").click()
    await page.locator("#runs tbody tr", has_text="explained-1").wait_for()


async def test_text_from_outside_is_shown_and_never_runs(sight: Sight, client: httpx.AsyncClient) -> None:
    run = {"run_id": "hostile-1", "workflow": HOSTILE, "slo_s": 30}
    await client.post("/v1/runs", json=run)
    step = {"event": "started", "step_id": "'><svg/onload=alert(3)>", "node": HOSTILE, "kind": "tool"}
    end = {"event": "finished", "step_id": step["step_id"], "node": HOSTILE, "kind": "tool", "status": "failed"}
    reported = await client.post("/v1/runs/hostile-1/steps", json={"steps": [step, {**end, "error": HOSTILE}]})
    assert reported.status_code == 200, reported.text
    page = sight.page
    row = page.locator("#runs tbody tr", has_text="hostile-1")
    await row.get_by_text(HOSTILE, exact=True).wait_for()
    await row.locator("a").click()
    await page.locator("#steps h3", has_text=HOSTILE).wait_for()
    await page.locator("#steps .error", has_text=HOSTILE).first.wait_for()
    await page.locator(".fall-name", has_text=HOSTILE).click()
    await sight.open("#/run/%3Cscript%3Ealert(4)%3C%2Fscript%3E")
    await page.get_by_text("This is no id of a run.").wait_for()
    assert await page.locator("img[onerror], main script, [onload]").count() == 0
    await client.post("/v1/runs/hostile-1/cancel")


async def test_script_put_into_the_page_does_not_run(sight: Sight) -> None:
    tried = await sight.page.evaluate(
        """() => { try { document.body.innerHTML += "<img src=x onerror=window.ran=1>"; return "done" }
                   catch (error) { return error.name } }"""
    )
    assert tried == "TypeError", "Trusted Types refuse text as markup"
    await sight.page.evaluate(
        """() => { const made = document.createElement("script"); made.append("window.ran = 1");
                   document.body.append(made) }"""
    )
    assert await sight.page.evaluate("window.ran") is None
    assert len(sight.complaints) >= 2, "the browser says that it refused both"
    sight.complaints.clear()


async def test_runs_are_found_by_their_id_and_by_kind(sight: Sight, client: httpx.AsyncClient) -> None:
    for n in range(30):
        await client.post("/v1/runs", json={"run_id": f"many-{n}", "workflow": "bulk"})
    page = sight.page
    await page.locator("#place", has_text="1–25 of").wait_for()
    await page.get_by_label("Find a run").fill("many-7")
    await page.locator("#place", has_text="1–1 of 1").wait_for()
    assert await page.locator("#runs tbody a").all_inner_texts() == ["many-7"]
    await page.keyboard.press("Enter")
    await page.locator("#run-title", has_text="many-7").wait_for()
    await page.locator(".back a").click()
    await page.get_by_label("Find a run").fill("nowhere")
    await page.get_by_text("No run matches").wait_for()
    await page.keyboard.press("Enter")
    await page.locator("#said", has_text="There is no run of the id nowhere").wait_for(state="attached")
    await page.get_by_label("Find a run").fill("bulk")
    await page.get_by_role("button", name="Older").click()
    await page.locator("#place", has_text="26–30 of 30").wait_for()
    await page.get_by_label("Show", exact=True).select_option("ended")
    await page.get_by_text("No run matches").wait_for()
    for n in range(30):
        await client.post(f"/v1/runs/many-{n}/cancel")
    sight.complaints[:] = [told for told in sight.complaints if "status of 404" not in told]


async def test_the_mode_that_holds_is_marked_with_what_runs_did_in_it(sight: Sight, client: httpx.AsyncClient) -> None:
    switched = await client.put("/v1/mode", json={"mode": "observe"})
    assert switched.status_code == 200, switched.text
    async with call(client, "observed-1", 50) as going:
        await going
    await client.post("/v1/runs/observed-1/finish", json={})
    row = sight.page.locator("#modes tbody tr", has=sight.page.locator("[aria-current=true]"))
    await row.get_by_text("routes as least_requests does").wait_for(timeout=20_000)
    await row.locator("td.number").first.get_by_text("1", exact=True).wait_for(timeout=20_000)
    await sight.page.locator("#modes tbody th", has_text="estimate").wait_for(timeout=20_000)
    await client.put("/v1/mode", json={"mode": "split"})


async def test_the_page_is_used_by_keyboard_alone(sight: Sight) -> None:
    page = sight.page
    await page.locator("#runs tbody tr").first.wait_for()
    await page.keyboard.press("Tab")
    assert await sight.focused() == "skip"
    await page.keyboard.press("Enter")
    assert await sight.focused() == "main"
    await page.locator("#skip").focus()
    order = []
    for _ in range(40):
        await page.keyboard.press("Tab")
        order.append(await sight.focused())
        if await page.evaluate("document.activeElement.matches('#runs a')"):
            break
    assert order[:3] == ["agentserve", "pause", "theme"]
    assert order.index("find") < order.index("show") < len(order) - 1
    opened = order[-1]
    ring = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert ring == "solid", "what has the focus is to be seen"
    await page.keyboard.press("Enter")
    await page.locator("#run-title", has_text=opened).wait_for()
    await page.locator("#run-title:focus").wait_for()
    await page.keyboard.press("Shift+Tab")
    assert await sight.focused() == "← All runs"
    await page.keyboard.press("Enter")
    await page.locator("#overview-title:focus").wait_for()


async def test_updates_can_be_paused(sight: Sight, client: httpx.AsyncClient) -> None:
    page = sight.page
    await page.get_by_role("button", name="Pause updates").press("Space")
    await page.locator("#connection", has_text="paused at").wait_for()
    assert await page.locator("#pause").get_attribute("aria-pressed") == "true"
    await client.post("/v1/runs", json={"run_id": "while-paused", "workflow": "w"})
    assert await page.locator("#runs", has_text="while-paused").count() == 0
    await page.get_by_role("button", name="Pause updates").press("Space")
    await page.locator("#runs", has_text="while-paused").wait_for()
    await client.post("/v1/runs/while-paused/cancel")


async def test_dark_and_light_follow_the_system_or_the_readers_choice(sight: Sight) -> None:
    page = sight.page
    ground = "getComputedStyle(document.body).backgroundColor"
    light = await page.evaluate(ground)
    await page.emulate_media(color_scheme="dark")
    dark = await page.evaluate(ground)
    assert light != dark
    await sight.picture("dark")
    await page.get_by_label("Theme").select_option("light")
    assert await page.evaluate(ground) == light
    await page.reload()
    await page.locator("#connection[data-state=live]").wait_for()
    assert await page.evaluate(ground) == light, "the choice is kept"
    await page.get_by_label("Theme").select_option("auto")
    assert await page.evaluate(ground) == dark


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_no_barrier(sight: Sight, client: httpx.AsyncClient, scheme: str) -> None:
    page = sight.page
    await page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    await page.locator("#runs tbody a").first.wait_for()
    await page.locator("#policy dt").first.wait_for()
    overview = await Axe().run(page)
    await sight.open("#/run/explained-1")
    await page.locator("#steps .step-entry").first.wait_for()
    await page.locator("#steps summary").first.click()
    run = await Axe().run(page)
    for found in (overview, run):
        assert found.violations_count == 0, found.generate_report()
    moving = await page.evaluate("document.getAnimations().length")
    assert moving == 0, "nothing moves for who asked for less motion"


async def test_a_narrow_window_keeps_everything_within_reach(sight: Sight) -> None:
    await sight.page.set_viewport_size({"width": 390, "height": 800})
    await sight.page.locator("#runs tbody a").first.wait_for()
    wider = await sight.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wider <= 0, "the page itself does not scroll sideways; wide tables do, each in its region"
    await sight.picture("narrow")


async def test_a_killed_engine_is_lost_and_its_run_moves(
    sight: Sight, client: httpx.AsyncClient, cluster: LocalCluster
) -> None:
    page = sight.page
    async with call(client, "moves-1", 3000, slo_s=120) as going:
        row = page.locator("#runs tbody tr", has_text="moves-1")
        await row.locator("svg .step").wait_for()
        await page.locator("#runs a", has_text="moves-1").click()
        await page.locator(".fall .decode").wait_for()
        told = (await client.get("/v1/runs/moves-1/story")).json()
        victim = told["steps"][0]["calls"][0]["phases"][-1][3]
        await cluster.parts[f"engine-{victim}"].kill()
        await page.locator("#steps .error", has_text=victim).wait_for()
        await page.locator("#steps p", has_text="⇢").first.wait_for()
        await sight.picture("run-moved")
        await page.locator(".back a").click()
        lost = page.locator("#instances tr", has_text=victim)
        await lost.locator("[data-state=lost]").wait_for()
        await page.locator(".tile", has_text="Instances").get_by_text("3 / 4").wait_for()
        await row.locator("svg .move").wait_for()
        await sight.picture("lost")
        assert await going > 0
    await client.post("/v1/runs/moves-1/finish", json={})
    await row.locator(".verdict", has_text="in time").wait_for()


async def test_a_gateway_that_goes_away_is_said_and_found_again(sight: Sight, cluster: LocalCluster) -> None:
    page = sight.page
    await cluster.restart_gateway(kill=True)
    await page.locator("#connection[data-state=lost]").wait_for()
    await page.locator("#connection[data-state=live]").wait_for()
    await page.locator("#runs a").first.wait_for()
    sight.complaints.clear()
