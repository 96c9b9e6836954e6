"""One log line when a GPU profile does not fit its instance any more."""

import logging
from typing import Any

import pytest

from agentserve.telemetry.drift import DriftLog
from scheduler.snapshot import DRIFT_SAMPLES
from tests.unit.scheduler_builders import Cluster, spec


def instance(name: str, prefill: float, decode: float, *drifted: str) -> dict[str, Any]:
    return {
        "instance_id": name, "gpu": "h100", "prefill_correction": prefill, "decode_correction": decode,
        "drifted": list(drifted),
    }  # fmt: skip


def test_drift_is_logged_once_until_it_is_gone(caplog: pytest.LogCaptureFixture) -> None:
    seen = [instance("a", 1.5, 1.0, "prefill"), instance("b", 1.0, 1.0)]
    log = DriftLog(lambda: {"instances": seen})
    with caplog.at_level(logging.WARNING):
        log.look()
        log.look()
        assert [record.getMessage()[:48] for record in caplog.records] == [
            "a: prefill takes 1.50 × the time of its GPU prof"
        ]
        seen[0] = instance("a", 1.1, 1.0)
        log.look()
        seen[0] = instance("a", 1.5, 1.0, "prefill")
        log.look()
    assert len(caplog.records) == 2


def test_an_instance_drifts_only_with_enough_samples() -> None:
    cluster = Cluster("round_robin", spec("a"))
    pool = next(iter(cluster.scheduler._state.pools.values()))
    for _ in range(int(DRIFT_SAMPLES)):
        assert cluster.instance("a")["drifted"] == []
        pool.observe_decode(0, 3.0, 1.0)

    assert cluster.instance("a")["drifted"] == ["decode"]
    assert cluster.instance("a")["decode_samples"] == DRIFT_SAMPLES
    assert cluster.instance("a")["prefill_samples"] == 0.0
