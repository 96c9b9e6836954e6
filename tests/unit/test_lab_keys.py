"""Does the page of the lab explain every key of a scenario, and does a flood leave other tenants' runs as they are?"""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from agentserve.lab.loads import workload_of
from agentserve.lab.options import SimulationOptions
from agentserve.lab.points import base_point, with_settings
from agentserve.lab.scenario import FleetGroup, Flood, Load, MixedSource, Scenario, Slo, Tenants, read_scenario
from agentserve.lab.workloads import BUNDLED

DOCS = Path(__file__).parents[2] / "docs" / "lab.md"


@pytest.mark.parametrize("section", [Scenario, FleetGroup, Load, MixedSource, Tenants, Flood, Slo])
def test_the_page_explains_every_key(section):
    text = DOCS.read_text()
    assert [key for key in section.model_fields if not re.search(rf"\b{key}\b", text)] == []


def test_the_page_names_every_option_of_a_simulation_and_every_bundled_trace():
    text = DOCS.read_text()
    options = [field.name for field in fields(SimulationOptions)]
    assert [name for name in (*options, *BUNDLED) if f"`{name}`" not in text] == []


def test_a_flood_adds_runs_of_one_more_tenant_and_leaves_the_others_as_they_are():
    file = with_settings(read_scenario("tenants"), {"workload.limit": 40})
    flooded = with_settings(file, {"workload.flood": {"rate": 12.0}})
    alone, both = (workload_of(base_point(one).scenario.workload, one.folder, 1) for one in (file, flooded))
    assert tuple(plan for plan in both.plans if plan.tenant != "flood") == alone.plans
    flood = [plan for plan in both.plans if plan.tenant == "flood"]
    assert len(flood) == round(12.0 * alone.plans[-1].arrival_s)
    assert not {plan.run_id for plan in flood} & {plan.run_id for plan in alone.plans}
    spaces = [{step.block_space for plan in plans for step in plan.steps} for plans in (flood, alone.plans)]
    assert not spaces[0] & spaces[1]
    assert [plan.arrival_s for plan in both.plans] == sorted(plan.arrival_s for plan in both.plans)
