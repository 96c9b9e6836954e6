"""The cluster that `make compose-test` has brought up; without it these tests fail and say so."""

import json
import os

import pytest

from tests.compose.cluster import STARTED, Cluster


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    told = os.environ.get(STARTED)
    if told is None:
        pytest.fail("these tests look at a cluster in containers: run `make compose-test`")
    return Cluster(**json.loads(told))
