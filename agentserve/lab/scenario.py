"""What may a scenario file say? Its sections and keys, read and checked; every complaint names file and key.

A scenario is TOML: a fleet, a model, a workload, an SLO rule, policies with their parameters, seeds, and the axes of a
sweep. docs/lab.md explains each key. What a key means for a simulation is in fleets.py and loads.py.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from agentserve.errors import BadInput
from agentserve.lab.arrivals import MAX_CV
from agentserve.lab.options import SimulationOptions
from scheduler.config import SchedulerConfig
from scheduler.errors import InvalidConfig
from scheduler.events import Role

SHIPPED: Final = Path(__file__).with_name("scenarios")
MAX_FILE_BYTES: Final = 256 * 1024
MAX_INSTANCES: Final = 4096
_SHOWN_ERRORS: Final = 5

Count = Annotated[int, Field(ge=1, le=1_000_000)]
Positive = Annotated[float, Field(gt=0, lt=1e15)]
Share = Annotated[float, Field(gt=0, le=1)]


class _Section(BaseModel):
    """A table of the file: no other keys, no changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class FleetGroup(_Section):
    """Instances of one kind. What is left out comes from the GPU's profile or the engine's own default."""

    gpu: str
    count: int = Field(default=1, ge=1, le=MAX_INSTANCES)
    role: Role = Role.MIXED
    name: str | None = Field(default=None, min_length=1, max_length=64)
    """Instances are called name-1, name-2, …; the GPU's name if left out."""
    kv_link_bytes_per_s: float | None = Field(default=None, ge=0)
    """0: it cannot hand over KV."""
    kv_group: str | None = None
    max_num_seqs: Count = 256
    max_batched_tokens: int = Field(default=8192, ge=16, le=1_000_000)
    kv_capacity_tokens: Count | None = None
    memory_share: Share | None = None
    """Part of the GPUs' memory that the engine takes (vLLM: gpu_memory_utilization)."""
    speed: Positive = 1.0
    """So many times as fast as its profile, and the scheduler is told."""
    slowdown: Positive = 1.0
    """Iterations take so many times as long, and the scheduler is not told."""


class RunSource(_Section):
    """Runs of one trace or generator, with what is done to them."""

    trace: str | None = None
    generator: Literal["catalog"] | None = None
    agents: dict[str, float] = Field(default_factory=dict)
    """Weights of the catalog's agents for the generator; all alike if left out."""
    prompt_scale: Positive = 1.0
    output_scale: Positive = 1.0
    tool_time_scale: float = Field(default=1.0, ge=0)
    max_prompt_tokens: Count | None = None
    max_steps: Count | None = None
    max_tool_gap_s: float | None = Field(default=None, ge=0)
    skip: int = Field(default=0, ge=0)
    take: Count | None = None
    repeats: Count = 1
    drawn_start: bool = False

    @model_validator(mode="after")
    def _keys_of_its_kind(self) -> Self:
        of_traces, of_generators = {"take", "repeats", "drawn_start"}, {"agents"}
        if self.generator is not None and (given := sorted(of_traces & self.model_fields_set)):
            raise ValueError(f"{', '.join(given)} cannot be used with the generator")
        if self.trace is not None and (given := sorted(of_generators & self.model_fields_set)):
            raise ValueError(f"{', '.join(given)} cannot be used with a trace")
        return self


class MixedSource(RunSource):
    """One of several sources of a workload; `share` is its share of the runs, against the others'."""

    share: Positive = 1.0

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.trace is None) == (self.generator is None):
            raise ValueError("give a trace or a generator, one of them")
        return self


class Tenants(_Section):
    """Whose runs they are: `count` tenants of Zipf weights, or the clients of a ServeGen trace with their rates."""

    count: Count | None = None
    skew: float = Field(default=1.0, ge=0, le=10)
    trace: str | None = None
    own_prompts: bool = False
    """Generated runs share system prompts only with runs of the same tenant."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.count is None) == (self.trace is None):
            raise ValueError("give count (and skew) or trace, one of them")
        return self


class Flood(_Section):
    """Further runs of the same kind by a tenant of their own, while the others, which stay as they are, come."""

    rate: float = Field(ge=0, lt=1e6)
    """Runs per second, as a Poisson process; 0: none come."""
    tenant: str = Field(default="flood", min_length=1, max_length=64)


class Load(RunSource):
    """Which runs come and when."""

    parts: tuple[MixedSource, ...] = ()
    """In place of a trace or generator: several of them, mixed."""
    arrivals: str = "own"
    """The trace's own times; poisson, gamma or hyperexponential; or another trace's name or path."""
    cv: float = Field(default=4.0, gt=0, le=MAX_CV)
    """Coefficient of variation of gamma and hyperexponential gaps."""
    rate: Positive | None = None
    """Runs per second."""
    limit: Count | None = None
    """Number of runs; needed by a generator."""
    tenants: Tenants | None = None
    flood: Flood | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if sum((self.trace is not None, self.generator is not None, bool(self.parts))) != 1:
            raise ValueError("give a trace, a generator or parts, one of them")
        generated = self.generator is not None or any(part.generator is not None for part in self.parts)
        if generated and self.limit is None:
            raise ValueError("a generator needs limit, the number of runs")
        if self.parts:
            alone = sorted(set(self.model_fields_set) & set(RunSource.model_fields))
            if alone:
                raise ValueError(f"with parts, {', '.join(alone)} belong into the parts")
        return self


class Rule(StrEnum):
    """What an SLO is made from."""

    SOLO_SCALE = "solo_scale"
    FIXED = "fixed"
    SOLO_SCALE_LOGNORMAL = "solo_scale_lognormal"


class Slo(_Section):
    """Each run's SLO. `alpha` multiplies the run's solo time, or the fixed seconds."""

    rule: Rule = Rule.SOLO_SCALE
    alpha: Positive | None = None
    """2 if left out, with the rule fixed 1."""
    gpu: str | None = None
    """Where the solo time is taken; the fleet's middle GPU type if left out."""
    sigma: float = Field(default=0.5, ge=0, le=3)
    seconds: dict[str, Positive] = Field(default_factory=dict)
    """By workflow, for the rule fixed."""
    default_s: Positive | None = None
    """For the rule fixed: of workflows that are not in seconds."""

    @property
    def scale(self) -> float:
        """alpha, or its default."""
        return self.alpha if self.alpha is not None else (1.0 if self.rule is Rule.FIXED else 2.0)

    @model_validator(mode="after")
    def _fixed_has_seconds(self) -> Self:
        if self.rule is Rule.FIXED and not self.seconds and self.default_s is None:
            raise ValueError("the rule fixed needs seconds (by workflow) or default_s")
        if self.rule is not Rule.FIXED and (self.seconds or self.default_s is not None):
            raise ValueError(f"seconds and default_s are for the rule fixed, not {self.rule}")
        return self


class Scenario(_Section):
    """A whole scenario file."""

    description: str = ""
    model: str
    profiles: tuple[str, ...] = ()
    """Files of the user's own GPU profiles, relative to the scenario."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1)] = (0,)
    compare: tuple[str, ...] = ()
    """Policies that `agentserve compare` takes if told none."""
    fleet: Annotated[tuple[FleetGroup, ...], Field(min_length=1)]
    workload: Load
    slo: Slo = Slo()
    simulation: SimulationOptions = SimulationOptions()
    scheduler: SchedulerConfig = SchedulerConfig()
    policies: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Parameters by name; an entry with `policy` is a variant of that policy under a name of its own."""
    sweep: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScenarioFile:
    """A scenario as it stands in its file: enough to make it again, in another process or at another point."""

    name: str
    source: str
    """For messages: the file's path."""
    folder: Path
    text: str
    raw: Mapping[str, Any]


def shipped_scenarios() -> tuple[str, ...]:
    """Names of the scenarios that come with agentserve."""
    return tuple(sorted(path.stem for path in SHIPPED.glob("*.toml")))


def read_scenario(name: str) -> ScenarioFile:
    """The scenario of a shipped one's name, or in a file. Raises BadInput: not there, not TOML, or unsound."""
    path = SHIPPED / f"{name}.toml" if name in shipped_scenarios() else Path(name).expanduser()
    try:
        raw = path.read_bytes()
    except OSError as error:
        known = ", ".join(shipped_scenarios())
        raise BadInput(f"scenario {name}: cannot be read ({error.strerror}); shipped ones are {known}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise BadInput(f"scenario {path}: {len(raw):,} bytes, at most {MAX_FILE_BYTES:,} are read")
    try:
        text = raw.decode()
        tables = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise BadInput(f"scenario {path}: not TOML: {error}") from None
    source = name if name in shipped_scenarios() else str(path)
    found = ScenarioFile(path.stem, f"scenario {source}", path.parent, text, tables)
    parse_scenario(found.raw, found.source)
    return found


def parse_scenario(raw: Mapping[str, Any], source: str) -> Scenario:
    """The scenario of a file's tables. Raises BadInput naming `source`, the keys and what is allowed."""
    try:
        return Scenario.model_validate(raw)
    except ValidationError as error:
        told = [_told(Scenario, details) for details in error.errors()]
        more = f"; and {len(told) - _SHOWN_ERRORS} more" if len(told) > _SHOWN_ERRORS else ""
        raise BadInput(f"{source}: {'; '.join(told[:_SHOWN_ERRORS])}{more}") from None
    except (InvalidConfig, BadInput) as error:
        raise BadInput(f"{source}: {error}") from None


_WORDS: Final = {
    "Value error, ": "", "Input should be": "must be", "Tuple should have": "must have", " after validation": "",
    "tuple": "list", "dictionary": "table",
}  # fmt: skip
"""The validator's words in those of a TOML file."""


def _told(model: type[BaseModel], details: Any) -> str:
    """One complaint: the key, what is wrong with it, and what is allowed."""
    where = ".".join(str(part) for part in details["loc"]) or "the file"
    if details["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"{where}: no such key; known are {', '.join(_keys_at(model, details['loc'][:-1]))}"
    if details["type"] == "missing":
        return f"{where}: is missing"
    text = details["msg"]
    for theirs, ours in _WORDS.items():
        text = text.replace(theirs, ours)
    given = details.get("input")
    return f"{where}: {text}" if isinstance(given, dict) else f"{where}: {text} (given: {given!r:.80})"


def _keys_at(model: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """The keys of the table at `loc`, where models, dataclasses and collections of them are nested."""
    found: Any = model
    for part in loc:
        if isinstance(part, int):
            continue  # a list's element has the type that the list's own step has found
        inner = found.model_fields[part].annotation if hasattr(found, "model_fields") else _hint(found, part)
        found = next((one for one in _tables_in(inner)), None)
        if found is None:
            return []
    return list(found.model_fields) if hasattr(found, "model_fields") else [one.name for one in fields(found)]


def _hint(table: Any, name: str) -> Any:
    from typing import get_type_hints

    return get_type_hints(table).get(name)


def _tables_in(annotation: Any) -> list[Any]:
    from typing import get_args

    if isinstance(annotation, type) and (hasattr(annotation, "model_fields") or is_dataclass(annotation)):
        return [annotation]
    return [found for inner in get_args(annotation) for found in _tables_in(inner)]
