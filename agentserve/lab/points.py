"""Which simulations does a scenario ask for? Its points (one setting of the sweep's axes each), policies and seeds."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, Final

import orjson

from agentserve.errors import BadInput
from agentserve.lab.fingerprint import code_fingerprint
from agentserve.lab.fleets import fleet_of, profiles_of
from agentserve.lab.loads import check_workload, slo_rule, trace_files
from agentserve.lab.scenario import Scenario, ScenarioFile, parse_scenario
from agentserve.lab.tuned import tuned_parameters
from scheduler.errors import InvalidConfig, UnknownPolicy
from scheduler.policies import make_policy, policy_names, policy_parameters

DEFAULT_POLICIES: Final = ("round_robin", "least_requests", "goodserve", "agentserve")
MAX_POINTS: Final = 1000
_SHORT: Final = {"rates": "workload.rate", "slo_scales": "slo.alpha"}
_COMBINE: Final = ("product", "each")


@dataclass(frozen=True, slots=True)
class Variant:
    """A policy with its parameters, under the name that tables show."""

    label: str
    policy: str
    params: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Point:
    """The scenario at one setting of the axes; `axes` is empty for the scenario as it stands."""

    axes: Mapping[str, Any]
    raw: Mapping[str, Any]
    scenario: Scenario

    @property
    def label(self) -> str:
        """The setting in words."""
        return ", ".join(f"{axis.rpartition('.')[2]} {value}" for axis, value in self.axes.items()) or "as given"


@dataclass(frozen=True, slots=True)
class Case:
    """One simulation: everything that determines its result, so that it can run in any process."""

    file: ScenarioFile
    point: Point
    variant: Variant
    seed: int
    key: str
    """Sixteen hex digits: equal for equal results, whatever the scenario is called and how it is swept."""
    code: str
    """The fingerprint of the code when the key was made."""


_NOT_DETERMINING: Final = {"description", "seeds", "compare", "sweep", "policies", "profiles"}


def with_settings(file: ScenarioFile, settings: Mapping[str, Any]) -> ScenarioFile:
    """The scenario with dotted keys set anew, such as workload.rate. Raises BadInput for a key or value not allowed."""
    raw = file.raw
    for key, value in settings.items():
        raw = _set_at(raw, key.split("."), value, f"{file.source}: {key}")
    parse_scenario(raw, file.source)
    return replace(file, raw=raw)


def points_of(file: ScenarioFile) -> list[Point]:
    """The scenario's points in order of its axes, each checked. Raises BadInput naming file, key, what is allowed."""
    sweep = dict(parse_scenario(file.raw, file.source).sweep)
    combine = sweep.pop("combine", "product")
    if combine not in _COMBINE:
        raise BadInput(f"{file.source}: sweep.combine: is {combine!r}; allowed are {', '.join(_COMBINE)}")
    axes = {_SHORT.get(name, name): _values(file, name, values) for name, values in sweep.items()}
    if combine == "product":
        settings = [dict(zip(axes, values, strict=True)) for values in product(*axes.values())]
    else:
        settings = [{}, *({axis: value} for axis, values in axes.items() for value in values
                          if value != value_at(file.raw, axis))]  # fmt: skip
    if len(settings) > MAX_POINTS:
        raise BadInput(f"{file.source}: sweep: {len(settings)} points, at most {MAX_POINTS} are simulated")
    return [_point(file, one) for one in settings]


def value_at(raw: Mapping[str, Any], key: str) -> Any:
    """What a dotted key is set to in a scenario's tables; None if it is left out."""
    found: Any = raw
    for part in key.split("."):
        if isinstance(found, list):
            found = found[int(part)] if part.isdigit() and int(part) < len(found) else None
        else:
            found = found.get(part) if isinstance(found, Mapping) else None
    return found


def base_point(file: ScenarioFile) -> Point:
    """The scenario as it stands, without its sweep."""
    return _point(file, {})


def variants_of(file: ScenarioFile, point: Point, names: Sequence[str] = ()) -> list[Variant]:
    """The policies of these names (default: those the scenario compares), with the parameters that it gives them.

    What it leaves out is as tuned, or with `tuned = false` as published. Raises BadInput naming the file, the key and
    what is allowed.
    """
    scenario = point.scenario
    chosen = names or scenario.compare or tuple(scenario.policies) or DEFAULT_POLICIES
    return [_variant(file, scenario, name) for name in dict.fromkeys(chosen)]


def cases_of(
    file: ScenarioFile, points: Sequence[Point], policies: Sequence[str] = (), seeds: Sequence[int] = ()
) -> list[Case]:
    """Every point under every policy with every seed; the seeds of a point lie together."""
    return [
        _case(file, point, variant, seed)
        for point in points
        for variant in variants_of(file, point, policies)
        for seed in dict.fromkeys(seeds or point.scenario.seeds)
    ]


def _case(file: ScenarioFile, point: Point, variant: Variant, seed: int) -> Case:
    code = code_fingerprint(variant.policy)
    scenario = point.scenario
    plain = scenario.model_dump(mode="json", exclude=_NOT_DETERMINING)
    plain["slo"]["alpha"] = scenario.slo.scale
    plain |= {"policy": variant.policy, "params": dict(variant.params), "seed": seed, "code": code}
    files = [*trace_files(scenario.workload, file.folder), *(file.folder / name for name in scenario.profiles)]
    plain["files"] = [_digest(path, path.stat().st_mtime_ns) for path in files]
    key = hashlib.sha256(orjson.dumps(plain, option=orjson.OPT_SORT_KEYS)).hexdigest()[:16]
    return Case(file, point, variant, seed, key, code)


@cache
def _digest(path: Path, _changed_ns: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def _point(file: ScenarioFile, axes: Mapping[str, Any]) -> Point:
    raw = file.raw
    for key, value in axes.items():
        raw = _set_at(raw, key.split("."), value, f"{file.source}: sweep.{key}")
    scenario = parse_scenario(raw, file.source)
    try:
        check_workload(scenario.workload, file.folder)
        profiles = profiles_of(scenario, file.folder)
        slo_rule(scenario.slo, scenario.model, fleet_of(scenario, profiles), profiles, 0)
    except BadInput as error:
        raise BadInput(f"{file.source}: {error}") from None
    point = Point(axes, raw, scenario)
    for name in (*scenario.policies, *scenario.compare):
        _variant(file, scenario, name)
    return point


def _variant(file: ScenarioFile, scenario: Scenario, name: str) -> Variant:
    params = dict(scenario.policies.get(name, {}))
    policy = params.pop("policy", name)
    key = f"policies.{name}" if name in scenario.policies else "policy"
    if not isinstance(policy, str) or policy not in policy_names():
        known = ", ".join(dict.fromkeys((*policy_names(), *scenario.policies)))
        raise BadInput(f"{file.source}: {key}: unknown policy {policy!r}; known are {known}")
    as_tuned = params.pop("tuned", True)
    if not isinstance(as_tuned, bool):
        raise BadInput(f"{file.source}: {key}.tuned: must be true or false (given: {as_tuned!r:.80})")
    known_params = policy_parameters(policy)
    for parameter in params:
        if parameter not in known_params:
            allowed = f"known are {', '.join(known_params)}" if known_params else f"{policy} has none"
            raise BadInput(f"{file.source}: {key}.{parameter}: no such parameter; {allowed}")
    if as_tuned:
        params = {**tuned_parameters(policy), **params}
    try:
        make_policy(policy, params)
    except (InvalidConfig, UnknownPolicy, TypeError, ValueError) as error:
        raise BadInput(f"{file.source}: {key}: {error}") from None
    return Variant(name, policy, params)


def _values(file: ScenarioFile, name: str, values: Any) -> list[Any]:
    if not isinstance(values, list) or not values:
        known = f"{', '.join(_SHORT)}, combine or a dotted key such as workload.limit"
        raise BadInput(
            f"{file.source}: sweep.{name}: must be a list of values (given: {values!r:.80}); keys are {known}"
        )
    return values


def _set_at(tables: Any, path: Sequence[str], value: Any, where: str) -> Any:
    """The tables with one value put in place of another; tables on the way that are missing are made."""
    head, *rest = path
    if isinstance(tables, list):
        if not head.isdigit() or int(head) >= len(tables):
            raise BadInput(
                f"{where}: {head} is no place in a list of {len(tables)}; allowed are 0 to {len(tables) - 1}"
            )
        changed = list(tables)
        changed[int(head)] = _set_at(tables[int(head)], rest, value, where) if rest else value
        return changed
    if not isinstance(tables, Mapping):
        raise BadInput(f"{where}: nothing can be set below {head!r}")
    return {**tables, head: _set_at(tables.get(head, {}), rest, value, where) if rest else value}
