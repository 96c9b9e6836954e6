"""The study's own arithmetic: what is tuned, which loads and rivals are chosen, and how gains and goals are told."""

import io
import json
from typing import Any

import pytest
from rich.console import Console

from agentserve.lab.points import base_point, cases_of
from agentserve.lab.scenario import shipped_scenarios
from agentserve.lab.tuned import tuned_parameters
from benchmarks.lab import ablations, capacity, plan, study, tune, write
from benchmarks.lab.calibrate import load_at
from benchmarks.lab.gains import gain, goals, mean_gain, paired
from benchmarks.lab.runner import Asked, Study
from benchmarks.lab.sections import sections
from scheduler.policies import policy_names, policy_parameters

OURS = plan.OURS


def test_every_published_policy_has_a_grid_of_parameters_that_it_knows():
    assert set(tune.GRIDS) == set(policy_names()) - {OURS}
    for name, grid in tune.GRIDS.items():
        assert set(grid) <= set(policy_parameters(name))
    assert {name for name in tune.GRIDS if tune.GRIDS[name]} == {one for one in policy_names() if tuned_parameters(one)}


def test_the_ablations_are_parameters_of_our_policy():
    for params in ablations.PARTS.values():
        assert set(params) <= set(policy_parameters(OURS))


def test_descent_takes_the_best_value_of_each_parameter_in_turn_and_comes_back_to_the_first():
    grids = {"a": {"x": (0, 1, 2), "y": (0, 1)}, "b": {}}
    worth = {(0, 0): 0.1, (1, 0): 0.3, (2, 0): 0.2, (1, 1): 0.5, (0, 1): 0.4, (2, 1): 0.9}
    measured: list[tune.Setting] = []

    def measure(settings):
        measured.extend(one for one in settings if one not in measured)
        return {one: {"w": 0.5 if one[0] == "b" else worth[tuple(value for _, value in one[1])]} for one in settings}

    best = tune.descend(grids, measure, passes=2)
    assert best == {"a": ("a", (("x", 2), ("y", 1))), "b": ("b", ())}
    assert len(measured) == len(set(measured)) == 7


def test_descent_keeps_its_value_among_equals():
    best = tune.descend({"a": {"x": (1, 0, 2)}}, lambda settings: {one: {"w": 0.5} for one in settings})
    assert best == {"a": ("a", (("x", 1),))}


def test_the_tuning_workloads_share_no_row_with_the_scenarios():
    for scenario, changes in tune.WORKLOADS.values():
        own = base_point(plan.scenario(scenario, {}, {})).scenario.workload
        tuning = base_point(plan.scenario(scenario, changes, {})).scenario.workload
        if own.trace == tuning.trace and own.trace is not None:
            assert tuning.skip + tuning.take <= own.skip
        else:
            assert own.trace != tuning.trace or tune.SEED not in (1, 2, 3)


def row(policy, taken=True, **attainment):
    return {"policy": policy, "params": {}, "attainment": attainment, "mean": 0.0, "taken": taken}


def test_rivals_are_the_best_on_each_tuning_workload_of_the_kind_beside_those_always_compared():
    sweep = [
        row("goodserve", a=0.1, b=0.1), row("prefix_affinity", a=0.2, b=0.2), row("hexagent", a=0.9, b=0.3),
        row("polyserve", a=0.8, b=0.4), row("preble", a=0.3, b=0.8), row("preble", taken=False, a=1.0, b=1.0),
        row("kairos", a=0.9, b=0.3), row("random", a=0.5, b=0.7),
    ]  # fmt: skip
    assert plan.ranked(sweep, ["a"]) == ["goodserve", "hexagent", "polyserve", "prefix_affinity"]
    assert plan.ranked(sweep, ["b"]) == ["goodserve", "preble", "prefix_affinity", "random"]
    assert plan.ranked(sweep, ["a", "b"]) == [
        "goodserve", "hexagent", "polyserve", "preble", "prefix_affinity", "random",
    ]  # fmt: skip


def test_every_workload_has_a_load_rivals_and_a_table_of_each_slo_rule():
    loads = plan.loads()
    assert set(loads) == set(plan.WORKLOADS) <= set(shipped_scenarios())
    for workload in plan.WORKLOADS:
        assert set(loads[workload]) == set(plan.LEVELS)
        assert {"goodserve", "prefix_affinity"} <= set(plan.strongest(workload))
    fixed = plan.slo_table("dags-hot", "fixed")
    assert set(fixed["seconds"]) == {"researcher", "debate", "support_triage", "text_to_sql", "coder", "trip_desk"}
    assert plan.slo_table("mooncake", "solo_scale_lognormal") == {
        "rule": "solo_scale_lognormal", "alpha": 3.0, "gpu": "h100",
    }  # fmt: skip


def test_a_load_is_where_the_best_published_attains_its_level_or_that_share_of_the_most():
    curve = {1.0: 1.0, 2.0: 0.9, 3.0: 0.7}
    assert load_at(curve, 0.8) == {"rate": 2.5, "attained": 0.8, "reached": True}
    never = load_at({1.0: 0.8, 2.0: 0.8, 3.0: 0.4}, 0.95)
    assert (never["rate"], never["reached"]) == (2.1, False)
    assert never["attained"] == pytest.approx(0.76)


def test_gains_are_paired_by_seed_and_averaged_over_workloads():
    assert paired([0.6, 0.6], [0.5, 0.6]).mean == pytest.approx(0.1)
    rows = [main_row("a", best=[0.5, 0.5], mine=[0.6, 0.6]), main_row("b", best=[0.5, 0.5], mine=[0.5, 0.5])]
    assert gain(rows[0]).half == pytest.approx(0.0)
    found = mean_gain(rows)
    assert found is not None
    assert found.mean == pytest.approx(0.1)


def main_row(workload, level="50", best=(0.5, 0.6), mine=(0.6, 0.66), goodserve=(0.4, 0.4), **more) -> dict[str, Any]:
    return {
        "workload": workload, "level": level, "rate": 2.0, "best": "hexagent", "bound": [0.9, 0.9],
        "attainment": {"hexagent": list(best), "goodserve": list(goodserve), plan.AS_PUBLISHED: list(goodserve),
                       OURS: list(mine)},
        "missed_p99": {"hexagent": 3.0, OURS: None}, **more,
    }  # fmt: skip


TABLES: dict[str, list[dict[str, Any]]] = {
    "main": [main_row("coding-bursts"), main_row("dags-hot", "80"), main_row("dags-hot", "95", best=(0.95, 0.95))],
    "capacity": [
        {"workload": "dags-hot", "policy": "hexagent", "rate": 2.0, "or_more": False, "by_seed": [2.0, None]},
        {"workload": "dags-hot", "policy": OURS, "rate": 3.0, "or_more": True, "by_seed": [3.0, 3.0]},
        {"workload": "dags-hot", "policy": "goodserve", "rate": None, "or_more": False, "by_seed": [None, None]},
    ],
    "hexagent": [
        {"workload": "p", "policy": name, "req95": req95, "req99": req99, "req95_by_seed": [req95, None]}
        for name, req95, req99 in (("hexagent", 2.0, 4.0), ("goodserve", 2.5, None), (OURS, 1.5, 3.0))
    ],
    "rules": [main_row("dags-hot", rule="fixed")],
    "goodserve": [{"scale": 1.0, "policy": OURS, "attainment": [0.5, 0.6], "goodput": 1.0}],
    "every": [{"workload": "w", "policy": name, "attainment": 0.5, "params": {}} for name in ("random", OURS)],
    "ablations": [{"workload": "w", "part": "whole", "attainment": [0.5], "missed_p99": 3.0}],
    "fewer": [{"workload": "w", "fleet": name, "policy": OURS, "attainment": [0.5]} for name in capacity.FLEETS],
}  # fmt: skip


def test_goals_say_what_was_wanted_what_was_measured_and_where_it_fails():
    found = {one.what: one for one in goals(TABLES)}
    half = next(one for what, one in found.items() if what.startswith("goodput over the best published, 50 %"))
    assert (half.measured, half.met) == ("+15.0%", False)
    worst = found["goodput over the best published, at its worst"]
    assert worst.met is False
    assert "dags-hot, 95 % load" in worst.measured
    assert found["capacity at 95 %, over the best published, mean over workloads"].met is True
    req95 = next(one for what, one in found.items() if what.startswith("Req95"))
    assert (req95.met, req95.measured[:5]) == (True, "32.5%")
    assert next(one for what, one in found.items() if "upper bound" in what).met is False
    assert any("SLO rule fixed" in what for what in found)


def test_a_table_without_figures_is_left_out():
    titles = [section.title for section in sections({"main": TABLES["main"]})]
    assert "Against the best published policy" in titles
    assert "GoodServe's table" not in titles
    assert sections({"every": TABLES["every"]})[0].title.startswith("All policies")


def test_the_page_and_the_terminal_tell_every_table(tmp_path):
    facts = {"command": "c", "commit": "f" * 40, "machine": "m", "date": "d", "seeds": [1, 2]}
    write.write_results_page(TABLES, facts, tmp_path)
    page = (tmp_path / "lab-results.md").read_text()
    assert (tmp_path / "images" / "lab-results.svg").exists()
    assert "| dags-hot | agentserve | 3 or more | +50% (+50%, –) |" in page
    assert "| p | goodserve | 2.50 (2.50, beyond 9) | beyond 9 |" in page
    assert (
        "| coding-bursts | 50 % | 2 | hexagent 0.550 ± 0.635 | 0.630 ± 0.381 | +15.0% ± 63.5 | 70% | 3.0 / – |" in page
    )
    console = Console(file=io.StringIO(), width=200)
    write.print_tables(TABLES, console)
    for section in sections(TABLES):
        assert f"## {section.title}\n" in page
        assert section.title[:12] in console.file.getvalue()


def test_the_study_simulates_each_setting_under_its_own_key_and_keeps_what_it_was_for(tmp_path):
    quiet = Console(file=io.StringIO())
    small = Study(tmp_path, 1, True, quiet)
    asked = {
        rate: Asked("dags-hot", {"workload.limit": 6, "workload.rate": rate}, plan.ours(), [1]) for rate in (1.0, 2.0)
    }
    found = small.simulate("two rates", asked)
    assert [list(found[rate]) for rate in asked] == [[OURS], [OURS]]
    assert found[1.0][OURS][0].outcome.key != found[2.0][OURS][0].outcome.key
    assert [(title, one.settings["workload.rate"]) for title, one, _ in small.kept] == [
        ("two rates", 1.0), ("two rates", 2.0),
    ]  # fmt: skip
    again = Study(tmp_path, 1, True, quiet).simulate("two rates", asked)
    assert again[2.0][OURS][0].outcome == found[2.0][OURS][0].outcome


def test_a_search_over_scales_goes_from_loose_to_tight(tmp_path):
    small = Study(tmp_path, 1, True, Console(file=io.StringIO()))
    asked = {"ours": Asked("dags-hot", {"workload.limit": 4, "workload.rate": 1.0}, plan.ours(), [1])}
    curves = small.search("scale", asked, "slo.alpha", 0.95, {"ours": 0.5}, (0.5, 4.0), inverse=True)
    curve = curves["ours"][1]
    assert 0.5 in curve
    assert all(0.25 <= value <= 2.0 for value in curve)
    assert {json.loads(json.dumps(one.settings))["slo.alpha"] for _, one, _ in small.kept} == {
        1 / value for value in curve
    }


def test_unknown_experiments_are_refused(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["study", "--only", "main,nothing"])
    with pytest.raises(SystemExit):
        study.main()
    assert "no experiment 'nothing'; there are main, bounds" in capsys.readouterr().err


def test_every_case_of_the_study_is_sound():
    for workload in plan.WORKLOADS:
        policies = {**plan.published(plan.everyone()), **plan.as_published(), **plan.ours()}
        file = plan.scenario(workload, {"workload.rate": 1.0}, policies)
        cases = cases_of(file, [base_point(file)], list(policies), [1])
        params = {case.variant.label: dict(case.variant.params) for case in cases}
        assert params[plan.AS_PUBLISHED] == {}
        assert params["goodserve"] == tuned_parameters("goodserve")
