"""The catalog as a load: which agent comes when, and what happens to runs that fail or are too many."""

import asyncio
from itertools import islice
from types import SimpleNamespace

import pytest

import agentserve
from workflows.catalog import AGENTS
from workflows.catalog.load import Load, arrivals, parsed, send, served_by


async def test_the_load_goes_on_after_a_run_that_fails() -> None:
    said: list[str] = []

    async def run(agent: str) -> str:
        if len(said) == 0:
            raise RuntimeError("no gateway")
        return f"{agent}: well"

    async def in_turn(_: float) -> None:
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    await send(Load(1.0, limit=5), run, said.append, in_turn)
    assert len(said) == 5
    assert "failed: RuntimeError: no gateway" in said[0]
    assert all(line.endswith(": well") for line in said[1:])


async def test_runs_beyond_the_limit_at_once_are_left_out_not_queued() -> None:
    gate, said, began = asyncio.Event(), [], []

    async def run(agent: str) -> str:
        began.append(agent)
        await gate.wait()
        return agent

    async def then_open(_: float) -> None:
        await asyncio.sleep(0)
        if len(said) == 2:
            gate.set()
            await asyncio.sleep(0)
            await asyncio.sleep(0)

    await send(Load(1.0, at_once=2, limit=5), run, said.append, then_open)
    assert len([line for line in said if "left out, 2 runs are going" in line]) == 2
    assert len(began) == 3


def test_arrivals_are_the_same_for_a_seed_and_bring_every_agent() -> None:
    drawn = list(islice(arrivals(Load(0.5, seed=3)), 400))
    assert drawn == list(islice(arrivals(Load(0.5, seed=3)), 400))
    assert {agent for _, agent in drawn} == set(AGENTS)
    assert sum(wait_s for wait_s, _ in drawn) / 400 == pytest.approx(2.0, rel=0.2)


async def test_an_agent_is_served_once_and_its_runs_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    served = []

    class Graph:
        async def arun(self, example: object) -> SimpleNamespace:
            assert example
            return SimpleNamespace(run_id="r-1", e2e_s=1.5, attained=True)

    def serve(graph: object, *, slo_s: float, name: str) -> Graph:
        served.append((name, slo_s))
        return Graph()

    monkeypatch.setattr(agentserve, "serve", serve)
    run = served_by(20.0)
    assert await run("debate") == await run("debate") == "debate: r-1: 1.50 s, inside its SLO of 20 s"
    assert served == [("debate", 20.0)]


def test_the_command_line_says_load_and_slo() -> None:
    assert parsed(["--rate", "2", "--slo", "12s", "--limit", "3"]) == (Load(2.0, limit=3), 12.0)


@pytest.mark.parametrize("bad", [["--rate", "0"], ["--slo=-3s"], ["--rate", "inf"]])
def test_a_load_that_cannot_be_is_refused(bad: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parsed(bad)
    assert "invalid" in capsys.readouterr().err
