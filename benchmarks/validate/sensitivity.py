"""Does the order of policies hold when the model of the world is wrong? One assumption varied at a time.

    python -m benchmarks.validate.sensitivity SCENARIO... --policies a,b [--seeds 1,2] [--limit N] [--tolerance POINTS]

Varied: how much faster an H100 prefills and decodes than an A100 (the A100's profile is scaled; a prefill of 2,048
tokens, a step of 32 sequences of 2,048), the factor on all that the length predictor learns, how late reports come.
For each setting it prints every policy's attainment, and whether two policies have changed places against the scenario
as it stands: in both they must differ by more than the tolerance, in points of attainment, to count.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

from agentserve.lab.points import base_point, cases_of, with_settings
from agentserve.lab.results import SimulationResult
from agentserve.lab.scenario import ScenarioFile, read_scenario
from agentserve.lab.simulation import simulate
from agentserve.lab.sweep import simulated
from agentserve.records import attainment
from scheduler.profiles import GpuProfile, load_profile

PREFILL_RATIOS = (1.8, 2.4, 3.0)
DECODE_RATIOS = (1.5, 1.7, 1.9)
LENGTH_ERRORS = (0.5, 2.0, 3.0)
REPORT_DELAYS_S = (0.0, 0.5, 2.0)
SLOW, FAST = "a100-80g", "h100"

Profiles = Callable[[str, str], GpuProfile]


def main() -> None:
    """Every scenario under every setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenarios", nargs="+")
    parser.add_argument("--policies", required=True)
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--limit", type=int, help="number of runs, in place of the scenario's")
    parser.add_argument("--tolerance", type=float, default=2.0)
    given = parser.parse_args()
    policies, seeds = given.policies.split(","), [int(seed) for seed in given.seeds.split(",")]
    for name in given.scenarios:
        file = read_scenario(name)
        if given.limit is not None:
            file = with_settings(file, {"workload.limit": given.limit})
        print(f"\n{name}, seeds {given.seeds}: attainment in %\n{'':22}" + "".join(f"{one:>18}" for one in policies))
        usual: dict[str, float] = {}
        for setting, varied, profiles in settings(file):
            shares = {policy: share(varied, policy, seeds, profiles) for policy in policies}
            usual = usual or shares
            swapped = swaps(usual, shares, given.tolerance)
            line = "".join(f"{shares[policy]:18.1f}" for policy in policies)
            print(f"{setting:22}{line}   {'changed: ' + ', '.join(swapped) if swapped else 'holds'}", flush=True)


def settings(file: ScenarioFile) -> Iterator[tuple[str, ScenarioFile, Profiles]]:
    """What is varied, in words, and the scenario and profiles that it comes to; first the scenario as it stands."""
    yield "as it stands", file, load_profile
    for ratio in PREFILL_RATIOS:
        yield f"prefill ratio {ratio:g}", file, with_ratio(prefill=ratio)
    for ratio in DECODE_RATIOS:
        yield f"decode ratio {ratio:g}", file, with_ratio(decode=ratio)
    for factor in LENGTH_ERRORS:
        yield f"lengths × {factor:g}", with_settings(file, {"simulation.length_error": factor}), load_profile
    for delay_s in REPORT_DELAYS_S:
        yield f"reports {delay_s:g} s late", with_settings(file, {"simulation.report_delay_s": delay_s}), load_profile


def with_ratio(*, prefill: float | None = None, decode: float | None = None) -> Profiles:
    """The shipped profiles with the A100's scaled so that an H100 is so many times faster in that phase."""

    def scaled(gpu: str, model: str) -> GpuProfile:
        profile = load_profile(gpu, model)
        if profile.gpu != SLOW:
            return profile
        fast = load_profile(FAST, model)
        if prefill is not None:
            by = prefill * fast.prefill_s(2048) / profile.prefill_s(2048)
            names = ("prefill_base_s", "prefill_per_token_s", "prefill_per_token2_s")
            return replace(profile, **{name: by * getattr(profile, name) for name in names})
        by = (decode or 1.0) * fast.decode_step_s(32, 65_536) / profile.decode_step_s(32, 65_536)
        names = ("decode_base_s", "decode_per_sequence_s", "decode_per_context_token_s", "overhead_per_sequence_s")
        return replace(profile, capability=profile.capability / by, **{n: by * getattr(profile, n) for n in names})

    return scaled


def share(file: ScenarioFile, policy: str, seeds: list[int], profiles: Profiles) -> float:
    """Attainment in percent over the seeds, in this world; SLOs are those of the scenario's own profiles."""

    def in_this_world(*args: Any, **given: Any) -> SimulationResult:
        return simulate(*args, **(given | {"profiles": profiles} if profiles is not load_profile else given))

    runs = []
    for case in cases_of(file, [base_point(file)], [policy], seeds):
        result, _ = simulated(case, in_this_world)
        runs += result.replay.runs
    return 100 * (attainment(runs) or 0.0)


def swaps(usual: Mapping[str, float], now: Mapping[str, float], tolerance: float) -> list[str]:
    """Pairs that stood one way round, clearly, and now stand the other way round, clearly."""
    found = []
    for one, other in combinations(usual, 2):
        before, after = usual[one] - usual[other], now[one] - now[other]
        if before * after < 0 and min(abs(before), abs(after)) > tolerance:
            found.append(f"{one} / {other}")
    return found


if __name__ == "__main__":
    main()
