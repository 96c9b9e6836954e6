"""The demo, small: it ends well, its table is there, and its report stands alone."""

from pathlib import Path

import pytest

from tests.e2e.live import agentserve


@pytest.mark.timeout(200)
async def test_the_demo_compares_two_policies_and_writes_a_report(tmp_path: Path) -> None:
    done = await agentserve("demo", "--runs", "6", "--rate", "2", "--speed", "20", "--out", str(tmp_path), within_s=170)
    assert done.code == 0, done.err
    for shown in (
        "support_triage",
        "round_robin",
        "agentserve",
        "goodput",
        "TTFT p50 / p99",
        "split placements",
        "SLO",
    ):
        assert shown in done.out
    assert str(tmp_path / "report.html") in done.out.replace("\n", "")
    report = (tmp_path / "report.html").read_text()
    assert "<svg" in report
    assert "src=" not in report
    assert "href=" not in report.replace('xlink:href="#', "").replace('href="#', "")
