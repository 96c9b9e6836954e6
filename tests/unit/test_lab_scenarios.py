"""What scenario files may say, and how all else is refused: in one message with file, key and what is allowed."""

import json

import pytest

from agentserve.errors import BadInput
from agentserve.lab.fleets import fleet_of, middle_gpu, profiles_of
from agentserve.lab.loads import check_fits, slo_rule, workload_of
from agentserve.lab.points import base_point, cases_of, points_of, variants_of, with_settings
from agentserve.lab.scenario import (
    read_scenario,
    shipped_scenarios,
)
from agentserve.lab.tuned import tuned_parameters
from agentserve.lab.workloads import BUNDLED
from scheduler.events import Role
from scheduler.policies import policy_names

FLEET = '[[fleet]]\ngpu = "a100"\ncount = 2\n[[fleet]]\ngpu = "h100"\n'
WORKLOAD = '[workload]\ntrace = "azure-conv"\nrate = 2.0\nlimit = 20\n'


def written(tmp_path, text, model="llama-3.1-8b", name="mine.toml"):
    path = tmp_path / name
    path.write_text(f'model = "{model}"\n' + text)
    return str(path)


def read(tmp_path, text, **more):
    return read_scenario(written(tmp_path, text, **more))


def refused(tmp_path, text, **more):
    """The one message with which a scenario is refused before anything is simulated."""
    with pytest.raises(BadInput) as caught:
        file = read(tmp_path, text, **more)
        points_of(file)
        scenario = base_point(file).scenario
        workload = workload_of(scenario.workload, file.folder, 0)
        check_fits(workload, fleet_of(scenario, profiles_of(scenario, file.folder)))
    return str(caught.value)


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("colour = 1\n" + FLEET + WORKLOAD, ["colour: no such key", "known are description, model", "sweep"]),
        (FLEET + WORKLOAD + "ratte = 1\n", ["workload.ratte: no such key", "rate", "limit"]),
        (FLEET + "gpus = 2\n" + WORKLOAD, ["fleet.1.gpus: no such key", "known are gpu, count"]),
        (FLEET + WORKLOAD + "[slo]\nalfa = 2\n", ["slo.alfa: no such key", "known are rule, alpha"]),
        (FLEET + WORKLOAD + "[simulation]\nspeed = 2\n", ["simulation.speed: no such key", "report_period_s"]),
        (FLEET + WORKLOAD + "[scheduler.migration]\nx = 2\n", ["scheduler.migration.x: no such key", "min_gain_s"]),
        (FLEET + WORKLOAD + "[workload.tenants]\nn = 2\n", ["workload.tenants.n: no such key", "count, skew"]),
        (FLEET + WORKLOAD + "[sweep]\nratez = [1]\n", ["ratez: no such key", "known are description"]),
        (FLEET + WORKLOAD + '[sweep]\n"workload.x" = [1]\n', ["workload.x: no such key", "rate"]),
    ],
)
def test_an_unknown_key_is_refused_naming_the_known_ones(tmp_path, text, said):
    message = refused(tmp_path, text)
    assert "mine.toml" in message
    assert "\n" not in message
    for part in said:
        assert part in message


def test_an_unknown_gpu_is_refused_naming_the_known_ones(tmp_path):
    message = refused(tmp_path, FLEET.replace("h100", "rtx-9") + WORKLOAD)
    assert message.startswith(f"scenario {tmp_path}/mine.toml: fleet.1.gpu: unknown gpu 'rtx-9'; known: a100-80g, h100")
    message = refused(tmp_path, FLEET + WORKLOAD + '[slo]\ngpu = "rtx-9"\n')
    assert "slo.gpu: unknown gpu 'rtx-9'; known: a100-80g, h100, h200" in message


def test_an_unknown_model_is_refused_naming_the_known_ones(tmp_path):
    message = refused(tmp_path, FLEET + WORKLOAD, model="gpt-9")
    assert "mine.toml: model: unknown model 'gpt-9'; known: llama-3.1-8b" in message


def test_an_unknown_policy_is_refused_naming_the_known_ones(tmp_path):
    for text in ('compare = ["fifo"]\n' + FLEET + WORKLOAD, FLEET + WORKLOAD + "[policies.fifo]\nx = 1\n"):
        message = refused(tmp_path, text)
        assert "mine.toml: polic" in message
        assert "unknown policy 'fifo'; known are" in message
        assert all(name in message for name in policy_names())
    file = read(tmp_path, FLEET + WORKLOAD)
    with pytest.raises(BadInput, match=r"mine.toml: policy: unknown policy 'fifo'; known are .*round_robin"):
        variants_of(file, base_point(file), ["fifo"])


def test_an_unknown_or_bad_policy_parameter_is_refused_naming_the_known_ones(tmp_path):
    message = refused(tmp_path, FLEET + WORKLOAD + "[policies.goodserve]\nmax_move = 1\n")
    assert "mine.toml: policies.goodserve.max_move: no such parameter; known are" in message
    assert "max_moves" in message
    message = refused(tmp_path, FLEET + WORKLOAD + "[policies.round_robin]\nx = 1\n")
    assert "policies.round_robin.x: no such parameter; round_robin has none" in message
    message = refused(tmp_path, FLEET + WORKLOAD + "[policies.goodserve]\nmax_moves = -4\n")
    assert "policies.goodserve" in message
    assert "allowed are 0 to" in message


def test_an_unknown_trace_is_refused_naming_the_known_ones(tmp_path):
    message = refused(tmp_path, FLEET + WORKLOAD.replace("azure-conv", "azure-chat"))
    assert "mine.toml: workload.trace: no trace 'azure-chat'" in message
    assert all(name in message for name in BUNDLED)
    message = refused(tmp_path, FLEET + WORKLOAD + 'arrivals = "rush"\n')
    assert "workload.arrivals: 'rush' is no trace; allowed are own, poisson, gamma" in message


def test_an_unknown_agent_is_refused_naming_the_known_ones(tmp_path):
    text = FLEET + '[workload]\ngenerator = "catalog"\nlimit = 5\nagents = { poet = 1 }\n'
    assert "workload.agents.poet: no such agent; known are researcher, debate" in refused(tmp_path, text)


@pytest.mark.parametrize("rate", ["0", "-1.5", "nan", '"fast"'])
def test_a_rate_that_is_not_positive_is_refused(tmp_path, rate):
    message = refused(tmp_path, FLEET + WORKLOAD.replace("2.0", rate))
    assert "mine.toml: workload.rate: must be a" in message or "workload.rate: must be greater than 0" in message


def test_a_swept_rate_of_zero_is_refused(tmp_path):
    message = refused(tmp_path, FLEET + WORKLOAD + "[sweep]\nrates = [1.0, 0.0]\n")
    assert "mine.toml: workload.rate: must be greater than 0 (given: 0.0)" in message


def test_a_model_that_does_not_fit_a_gpus_memory_is_refused(tmp_path):
    fleet = FLEET.replace("count = 2", "count = 2\nmemory_share = 0.4")
    message = refused(tmp_path, fleet + WORKLOAD, model="llama-3.1-70b")
    assert "mine.toml: fleet.0: llama-3.1-70b does not fit" in message
    assert "0.4 of the memory of 4 × a100-80g" in message
    assert "memory_share" in message


def test_a_request_longer_than_any_kv_capacity_is_refused(tmp_path):
    fleet = "".join(f'[[fleet]]\ngpu = "h100"\nkv_capacity_tokens = {tokens}\n' for tokens in (300, 400))
    message = refused(tmp_path, fleet + WORKLOAD)
    assert "needs 418 tokens of KV cache (prompt 374, answer 44); the largest decode instance holds 400" in message
    assert "set max_prompt_tokens or a smaller prompt_scale" in message
    scaled = WORKLOAD + "prompt_scale = 0.01\noutput_scale = 0.01\n"
    file = read(tmp_path, fleet + scaled)
    scenario = base_point(file).scenario
    check_fits(workload_of(scenario.workload, tmp_path, 0), fleet_of(scenario, profiles_of(scenario, tmp_path)))


def test_a_call_must_fit_where_it_is_prefilled_and_where_it_is_decoded(tmp_path):
    fleet = ('[[fleet]]\ngpu = "h100"\nrole = "prefill"\n'
             '[[fleet]]\ngpu = "h100"\nrole = "decode"\nkv_capacity_tokens = 100\n')  # fmt: skip
    assert "largest decode instance holds 100" in refused(tmp_path, fleet + WORKLOAD)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (WORKLOAD, "fleet: is missing"),
        (FLEET, "workload: is missing"),
        (FLEET + "[workload]\nrate = 1.0\n", "workload: give a trace, a generator or parts, one of them"),
        (FLEET + '[workload]\ngenerator = "catalog"\n', "workload: a generator needs limit"),
        (FLEET + WORKLOAD + '[slo]\nrule = "fixed"\n', "slo: the rule fixed needs seconds"),
        (FLEET + WORKLOAD + '[slo]\nrule = "cheap"\n', "slo.rule: must be 'solo_scale', 'fixed' or"),
        (FLEET.replace("count = 2", 'role = "all"') + WORKLOAD, "fleet.0.role: must be 'mixed', 'prefill' or 'decode'"),
        (FLEET + WORKLOAD + "[sweep]\nrates = 3\n", "sweep.rates: must be a list of values (given: 3)"),
        (FLEET + WORKLOAD + '[sweep]\n"fleet.7.count" = [1]\n', "7 is no place in a list of 2; allowed are 0 to 1"),
        (FLEET + WORKLOAD + '[sweep]\ncombine = "zip"\n', "sweep.combine: is 'zip'; allowed are product, each"),
        (
            FLEET + WORKLOAD + '[[simulation.faults]]\nat_s = 1\ninstance_id = "h1"\nkind = "lost"\n',
            "simulation.faults.0.instance_id: no instance 'h1'; there are a100-80g-1, a100-80g-2, h100-1",
        ),
        (FLEET.replace('gpu = "h100"', 'gpu = "h100"\nrole = "decode"').replace("count", 'role = "decode"\ncount')
         + WORKLOAD, "every instance has the role decode; at least one must be prefill or mixed"),
        (FLEET + WORKLOAD + "agents = { coder = 1 }\n", "workload: agents cannot be used with a trace"),
        (FLEET + '[workload]\ngenerator = "catalog"\nlimit = 4\ntake = 2\n', "take cannot be used with the generator"),
        ("fleet = 3\n" + WORKLOAD, "fleet: must be a valid list (given: 3)"),
        ("seeds = []\n" + FLEET + WORKLOAD, "seeds: must have at least 1 item, not 0"),
        (FLEET + WORKLOAD + "[scheduler]\nrisk_period_s = 1e9\n", "risk_period_s is 1000000000.0; allowed are 0.001"),
        (FLEET + WORKLOAD + "[simulation]\nrelay_s = -1\n", "simulation: relay_s is -1.0; expected 0 or more"),
        (FLEET + WORKLOAD + '[[simulation.faults]]\nat_s = 1\nx = 2\ninstance_id = "h100-1"\nkind = "lost"\n',
         "simulation.faults.0.x: no such key; known are at_s, instance_id, kind, factor"),
        ("[[[", "not TOML"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(tmp_path, text, said):
    assert said in refused(tmp_path, text)


def test_several_mistakes_are_told_at_once(tmp_path):
    message = refused(tmp_path, FLEET + "gpus = 1\n" + WORKLOAD.replace("2.0", "0") + "x = 1\n")
    assert message.count("mine.toml") == 1
    for part in ("fleet.1.gpus", "workload.rate", "workload.x"):
        assert part in message


def test_a_scenario_that_is_not_there_is_refused_naming_the_shipped_ones(tmp_path):
    with pytest.raises(
        BadInput, match=r"scenario nowhere: cannot be read .*; shipped ones are azure-conv, coding-bursts"
    ):
        read_scenario("nowhere")


# -- what it means ---------------------------------------------------------------------------------------------------


def fleet_in(tmp_path, fleet, **more):
    file = read(tmp_path, fleet + WORKLOAD, **more)
    scenario = base_point(file).scenario
    profiles = profiles_of(scenario, file.folder)
    return fleet_of(scenario, profiles), profiles


def test_instances_are_named_by_gpu_or_by_name_and_take_what_is_left_out_from_the_profile(tmp_path):
    instances, profiles = fleet_in(
        tmp_path,
        FLEET + '[[fleet]]\ngpu = "A100"\nname = "old"\nspeed = 0.5\nslowdown = 1.5\nkv_link_bytes_per_s = 0\n'
        'role = "decode"\nmax_num_seqs = 16\nkv_group = "rack1"\n',
    )
    specs = [instance.spec for instance in instances]
    assert [spec.instance_id for spec in specs] == ["a100-80g-1", "a100-80g-2", "h100-1", "old-1"]
    assert specs[2].kv_link_bytes_per_s == 5e10
    assert specs[2].kv_capacity_tokens == profiles("h100", "llama-3.1-8b").kv_capacity_tokens
    old = instances[3]
    assert (old.spec.speed, old.slowdown, old.spec.kv_link_bytes_per_s) == (0.5, 1.5, None)
    assert (old.spec.role, old.spec.max_num_seqs, old.spec.kv_group) == (Role.DECODE, 16, "rack1")
    assert middle_gpu(instances, profiles) == "a100"


def test_a_smaller_memory_share_leaves_less_kv_cache(tmp_path):
    instances, profiles = fleet_in(tmp_path, '[[fleet]]\ngpu = "h100"\nmemory_share = 0.8\n')
    less_bytes = 0.1 * 85_520_809_984
    known = profiles("h100", "llama-3.1-8b")
    assert instances[0].spec.kv_capacity_tokens == pytest.approx(
        known.kv_capacity_tokens - less_bytes / known.kv_bytes_per_token, abs=1
    )


def test_a_users_own_profile_serves_his_own_gpu(tmp_path):
    (tmp_path / "l4.toml").write_text(
        'gpu = "l4"\nmodel = "tiny"\nprefill_s = [0.01, 1e-5, 0.0]\ndecode_s = [0.02, 1e-4, 0.0]\n'
        "kv_bytes_per_token = 1000\nkv_capacity_tokens = 50000\n"
    )
    file = read(tmp_path, 'profiles = ["l4.toml"]\n[[fleet]]\ngpu = "l4"\n' + WORKLOAD, model="tiny")
    scenario = base_point(file).scenario
    profiles = profiles_of(scenario, file.folder)
    instances = fleet_of(scenario, profiles)
    assert instances[0].spec.kv_capacity_tokens == 50_000
    rule = slo_rule(scenario.slo, "tiny", instances, profiles, 0)
    assert rule.slo_s(workload_of(scenario.workload, tmp_path, 0).plans[0]) > 0
    assert "memory of l4 is not known" in refused(
        tmp_path, 'profiles = ["l4.toml"]\n[[fleet]]\ngpu = "l4"\nmemory_share = 0.5\n' + WORKLOAD, model="tiny"
    )


def slos_under(tmp_path, slo, seed=0):
    file = read(tmp_path, FLEET + WORKLOAD + slo)
    scenario = base_point(file).scenario
    profiles = profiles_of(scenario, tmp_path)
    plans = workload_of(scenario.workload, tmp_path, 0).plans
    rule = slo_rule(scenario.slo, scenario.model, fleet_of(scenario, profiles), profiles, seed)
    return [rule.slo_s(plan) for plan in plans], rule.describe()


def test_the_three_slo_rules(tmp_path):
    solo, said = slos_under(tmp_path, '[slo]\nalpha = 1.0\ngpu = "h100"\n')
    double, _ = slos_under(tmp_path, '[slo]\ngpu = "h100"\n')
    assert double == pytest.approx([2 * value for value in solo])
    assert "1 x the run's solo time on one h100" in said
    fixed, _ = slos_under(tmp_path, '[slo]\nrule = "fixed"\nalpha = 1.5\nseconds = { single = 4.0 }\n')
    assert fixed == [6.0] * 20
    spread, said = slos_under(tmp_path, '[slo]\nrule = "solo_scale_lognormal"\nalpha = 1.0\ngpu = "h100"\n')
    assert len({round(one / other, 6) for one, other in zip(spread, solo, strict=True)}) == 20
    assert "log-normal" in said
    assert spread != slos_under(tmp_path, '[slo]\nrule = "solo_scale_lognormal"\nalpha = 1.0\ngpu = "h100"\n', 1)[0]


def test_the_reference_of_solo_times_is_the_fleets_middle_gpu(tmp_path):
    fleet = FLEET + '[[fleet]]\ngpu = "h200"\n'
    file = read(tmp_path, fleet + WORKLOAD)
    scenario = base_point(file).scenario
    profiles = profiles_of(scenario, tmp_path)
    assert middle_gpu(fleet_of(scenario, profiles), profiles) == "h100"


def test_a_mix_draws_its_runs_from_the_parts_by_share(tmp_path):
    text = FLEET + (
        '[workload]\nlimit = 400\nrate = 2.0\narrivals = "gamma"\n'
        '[[workload.parts]]\ngenerator = "catalog"\nagents = { coder = 1 }\nshare = 3\n'
        '[[workload.parts]]\ngenerator = "catalog"\nagents = { coder = 1, debate = 1 }\n'
    )
    scenario = base_point(read(tmp_path, text)).scenario
    workload = workload_of(scenario.workload, tmp_path, 5)
    assert len(workload.plans) == 400
    assert len({plan.run_id for plan in workload.plans}) == 400
    first = sum(plan.run_id.startswith("p0.") for plan in workload.plans)
    assert first / 400 == pytest.approx(0.75, abs=0.07)
    assert set(workload.workflows) == {"coder", "debate"}
    assert workload == workload_of(scenario.workload, tmp_path, 5)
    coders = [plan for plan in workload.plans if plan.workflow == "coder"]
    assert len({plan.steps[0].blocks for plan in coders}) == len(coders)
    assert "Gamma arrivals (CV 4), 2 runs/s" in workload.notes


def test_a_mix_ends_where_a_part_has_none_left(tmp_path):
    text = FLEET + '[workload]\nrate = 2.0\n' + (
        '[[workload.parts]]\ntrace = "azure-conv"\ntake = 20\n[[workload.parts]]\ntrace = "azure-code"\ntake = 2000\n'
    )  # fmt: skip
    plans = workload_of(base_point(read(tmp_path, text)).scenario.workload, tmp_path, 0).plans
    assert sum(plan.run_id.startswith("p0.") for plan in plans) == 20
    assert len(plans) < 80


def test_parts_keep_their_keys_to_themselves(tmp_path):
    text = FLEET + '[workload]\nprompt_scale = 0.5\n[[workload.parts]]\ntrace = "azure-conv"\n'
    assert "with parts, prompt_scale belong into the parts" in refused(tmp_path, text)


def test_tenants_are_given_by_the_scenario(tmp_path):
    text = FLEET + WORKLOAD + '[workload.tenants]\ntrace = "servegen"\n'
    plans = workload_of(base_point(read(tmp_path, text)).scenario.workload, tmp_path, 0).plans
    assert len({plan.tenant for plan in plans}) > 1
    assert all(plan.tenant.startswith("client") for plan in plans)


def test_a_trace_is_found_relative_to_the_scenario_file(tmp_path):
    row = {"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    file = read(tmp_path, FLEET + '[workload]\ntrace = "rows.jsonl"\nrate = 1.0\n')
    assert len(workload_of(base_point(file).scenario.workload, file.folder, 0).plans) == 1


# -- points ----------------------------------------------------------------------------------------------------------


def test_axes_are_combined_or_varied_each_on_its_own(tmp_path):
    sweep = "[sweep]\nrates = [1.0, 2.0]\nslo_scales = [1.5, 3.0]\n"
    crossed = points_of(read(tmp_path, FLEET + WORKLOAD + sweep))
    assert [(p.scenario.workload.rate, p.scenario.slo.scale) for p in crossed] == [
        (1.0, 1.5), (1.0, 3.0), (2.0, 1.5), (2.0, 3.0),
    ]  # fmt: skip
    each = points_of(read(tmp_path, FLEET + WORKLOAD + sweep + 'combine = "each"\n'))
    assert [(p.scenario.workload.rate, p.scenario.slo.scale) for p in each] == [
        (2.0, 2.0), (1.0, 2.0), (2.0, 1.5), (2.0, 3.0),
    ]  # fmt: skip
    assert [p.label for p in each][:2] == ["as given", "rate 1.0"]


def test_any_key_can_be_an_axis(tmp_path):
    sweep = '[sweep]\n"fleet.0.count" = [1, 3]\n"policies.goodserve.max_moves" = [0, 2]\n'
    points = points_of(read(tmp_path, FLEET + WORKLOAD + sweep))
    file = read(tmp_path, FLEET + WORKLOAD + sweep)
    assert [p.scenario.fleet[0].count for p in points] == [1, 1, 3, 3]
    assert [variants_of(file, p, ["goodserve"])[0].params["max_moves"] for p in points[:2]] == [0, 2]


def test_a_variant_is_a_policy_with_other_parameters_under_its_own_name(tmp_path):
    text = FLEET + WORKLOAD + '[policies.goodserve-stays]\npolicy = "goodserve"\nmax_moves = 0\ntuned = false\n'
    file = read(tmp_path, text)
    (variant,) = variants_of(file, base_point(file))
    assert (variant.label, variant.policy, variant.params) == ("goodserve-stays", "goodserve", {"max_moves": 0})


def test_parameters_that_a_scenario_leaves_out_are_as_tuned_unless_it_says_otherwise(tmp_path):
    tuned = tuned_parameters("goodserve")
    assert tuned
    assert tuned_parameters("agentserve") == {}
    for table, params in (
        ("", tuned),
        ("[policies.goodserve]\nmax_moves = 0\n", {**tuned, "max_moves": 0}),
        ("[policies.goodserve]\nmargin = 9.0\n", {**tuned, "margin": 9.0}),
        ("[policies.goodserve]\ntuned = false\n", {}),
    ):
        file = read(tmp_path, FLEET + WORKLOAD + table)
        assert variants_of(file, base_point(file), ["goodserve"])[0].params == params


def test_tuned_is_true_or_false(tmp_path):
    message = refused(tmp_path, FLEET + WORKLOAD + '[policies.goodserve]\ntuned = "no"\n')
    assert "mine.toml: policies.goodserve.tuned: must be true or false (given: 'no')" in message


def keys(tmp_path, text, policies=("round_robin",), seeds=(0,)):
    file = read(tmp_path, text)
    return [case.key for case in cases_of(file, points_of(file), policies, seeds)]


def test_a_key_changes_with_all_that_determines_a_result_and_with_nothing_else(tmp_path):
    base = keys(tmp_path, FLEET + WORKLOAD)
    assert base == keys(tmp_path, 'description = "x"\nseeds = [4]\n' + FLEET + WORKLOAD + "[sweep]\nrates = [2.0]\n")
    others = [
        keys(tmp_path, FLEET + WORKLOAD.replace("20", "21")),
        keys(tmp_path, FLEET + WORKLOAD + "[slo]\nalpha = 3\n"),
        keys(tmp_path, FLEET + WORKLOAD + "[simulation]\nrelay_s = 0.1\n"),
        keys(tmp_path, FLEET + WORKLOAD + "[scheduler]\nrisk_period_s = 2.0\n"),
        keys(tmp_path, FLEET + WORKLOAD, policies=["least_requests"]),
        keys(tmp_path, FLEET + WORKLOAD, seeds=[1]),
    ]
    assert len({tuple(one) for one in (base, *others)}) == len(others) + 1


def test_a_key_changes_with_the_content_of_a_trace(tmp_path):
    def key(rows):
        row = {"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [0, 1, 2]}
        (tmp_path / f"{rows}").mkdir()
        (tmp_path / f"{rows}" / "t.jsonl").write_text((json.dumps(row) + "\n") * rows)
        return keys(tmp_path / f"{rows}", FLEET + '[workload]\ntrace = "t.jsonl"\nrate = 1.0\n')

    assert key(1) != key(2)


def test_settings_from_the_command_line_go_into_the_scenario(tmp_path):
    file = with_settings(read(tmp_path, FLEET + WORKLOAD), {"workload.rate": 9.0, "slo.alpha": 4})
    assert (base_point(file).scenario.workload.rate, base_point(file).scenario.slo.scale) == (9.0, 4.0)
    with pytest.raises(BadInput, match=r"mine.toml: workload.rat: no such key"):
        with_settings(file, {"workload.rat": 1})


@pytest.mark.parametrize("name", shipped_scenarios())
def test_every_shipped_scenario_can_be_simulated(name):
    file = read_scenario(name)
    points = points_of(file)
    assert cases_of(file, points)
    scenario = base_point(file).scenario
    profiles = profiles_of(scenario, file.folder)
    instances = fleet_of(scenario, profiles)
    workload = workload_of(scenario.workload, file.folder, scenario.seeds[0])
    check_fits(workload, instances)
    rule = slo_rule(scenario.slo, scenario.model, instances, profiles, scenario.seeds[0])
    assert all(rule.slo_s(plan) > 0 for plan in workload.plans)
    assert scenario.description
    assert {"coding-hot", "dags-hot", "mooncake", "azure-conv", "coding-bursts", "tenants"} <= set(shipped_scenarios())
