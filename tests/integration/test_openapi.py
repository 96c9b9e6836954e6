"""The API's description names every route that there is, and a real gateway answers bad requests as described."""

import asyncio
import re
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from agentserve.gateway.openapi import description
from agentserve.local.cluster import LocalCluster
from agentserve.local.fleet import Fleet, Group
from tests.fuzz.http import attack_http
from tests.integration.gateway_parts import gateway

pytestmark = pytest.mark.asyncio(loop_scope="module")
REQUESTS = 200


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster() -> AsyncIterator[LocalCluster]:
    fleet = Fleet(model="llama-3.1-8b", speed=1000, workers=(Group(gpu="h100"),))
    async with LocalCluster(fleet) as running:
        yield running


async def test_the_description_names_every_route() -> None:
    async with gateway() as running:
        routed = {
            (re.sub(r":path\}", "}", route.path), method.lower())
            for route in running.app.routes
            for method in route.methods - {"HEAD"}
        }
    paths = description("1")["paths"]
    described = {(path, method) for path, given in paths.items() for method in given if method != "parameters"}
    assert described == routed


@pytest.mark.timeout(300)  # hundreds of requests, one after the other, on a machine that may be busy
async def test_no_request_is_answered_by_an_undescribed_status(cluster: LocalCluster) -> None:
    answered = await asyncio.to_thread(lambda: list(attack_http(cluster.gateway_url, REQUESTS, 0)))
    assert {each.operation: each.problems for each in answered if each.problems} == {}
    assert sum(sum(each.statuses.values()) for each in answered) > REQUESTS // 2
    assert not any(500 in each.statuses for each in answered)
