"""Which numbers steer the scheduler, in what range, and what each one means?

Defaults suit live serving of 8B to 70B models; the lab sweeps them. A value out of range raises InvalidConfig with the
field's name.
"""

from dataclasses import dataclass, field

from scheduler.errors import InvalidConfig


def check_bounds(config: object, **bounds: tuple[float, float]) -> None:
    """Raise InvalidConfig if a field lies outside its bounds, or is no number."""
    for name, (low, high) in bounds.items():
        value = getattr(config, name)
        if not low <= value <= high:
            raise InvalidConfig(f"{type(config).__name__}.{name} is {value}; allowed are {low} to {high}")


def check_choice(config: object, **choices: tuple[str, ...]) -> None:
    """Raise InvalidConfig if a field is none of its choices."""
    for name, known in choices.items():
        value = getattr(config, name)
        if value not in known:
            raise InvalidConfig(f"{type(config).__name__}.{name} is {value!r}; allowed are {', '.join(known)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthConfig:
    """How output lengths are learned: decay per sample, back-off strength in samples, and the cold-start prior."""

    half_life_samples: float = 200.0
    """An observed length weighs half after so many later ones."""
    backoff_samples: float = 6.0
    """How many samples a parent (node, model, prior) is worth against a child's own."""
    prior_median_tokens: float = 200.0
    """Median length of the cold-start prior."""
    prior_sigma: float = 1.1
    """Standard deviation of ln(length) of the cold-start prior."""
    bias: float = 1.0
    """Factor on every observed length: what a predictor that errs one way would say, for studies of sensitivity."""
    max_keys: int = 8192
    """Histograms kept; names come from clients, so the least recently used go first."""

    def __post_init__(self) -> None:
        check_bounds(
            self,
            half_life_samples=(1.0, 1e6),
            backoff_samples=(0.01, 1e4),
            prior_median_tokens=(1.0, 1e5),
            prior_sigma=(0.05, 5.0),
            bias=(0.01, 100.0),
            max_keys=(1, 10_000_000),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateConfig:
    """How far reports and observations are trusted."""

    stale_after_s: float = 3.0
    """A report older than this no longer adds load that the scheduler did not place itself."""
    instance_alpha: float = 0.2
    """EMA weight of one observed/predicted speed ratio of an instance."""
    gpu_alpha: float = 0.05
    """The same for the ratio shared by all instances of a GPU type."""
    gpu_samples: float = 4.0
    """How many samples of its own an instance needs to weigh as much as its GPU type's shared ratio."""
    min_correction: float = 0.2
    """Least factor by which observed speeds may correct the GPU profile."""
    max_correction: float = 5.0
    """And the largest."""
    window_tokens: int = 32
    """Output tokens of one call per sample of decode speed."""
    overhead_s: float = 0.005
    """Part of an observed time to first token that is neither queue nor prefill (HTTP, relay)."""
    black_box_alpha: float = 0.2
    """EMA weight of GoodServe's q, p and d."""
    draw_memory_s: float = 60.0
    """How long the calls that came to an instance tell what will come."""
    pair_retry_s: float = 60.0
    """How long no split is formed of two instances between which KV did not pass, while there is another way."""

    def __post_init__(self) -> None:
        check_bounds(
            self,
            stale_after_s=(0.0, 3600.0),
            instance_alpha=(0.001, 1.0),
            gpu_alpha=(0.0, 1.0),
            gpu_samples=(0.0, 1e6),
            min_correction=(0.01, 1.0),
            max_correction=(1.0, 100.0),
            window_tokens=(1, 1_000_000),
            overhead_s=(0.0, 10.0),
            black_box_alpha=(0.001, 1.0),
            draw_memory_s=(0.1, 86400.0),
            pair_retry_s=(0.0, 86400.0),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationConfig:
    """When a running call may move (every policy with `rectify` reads these; GoodServe's paper has none of them)."""

    min_gain_s: float = 0.5
    """Hysteresis: predicted finish must come earlier by this much, cost included."""
    min_gain_share: float = 0.2
    """Hysteresis: and by this share of the remaining time at the source."""
    min_chance_gain: float = 0.2
    """And the chance of the run to end in time must grow by this much more than those of the target's runs fall."""
    cooldown_s: float = 5.0
    """Least time between two moves of a call."""
    max_moves: int = 2
    """Moves per call, drains not counted."""
    max_concurrent: int = 4
    """Calls that may be on the move at once in the cluster."""
    drain_patience_s: float = 3.0
    """A call on a draining instance moves when it is expected to run longer than this there."""
    checks_per_wake: int = 32
    """Calls weighed for a move at one Woke, the most urgent first."""
    kv_moves: bool = False
    """Weigh a move of the KV against replay of the tokens, for targets to which the source can hand it."""

    def __post_init__(self) -> None:
        check_bounds(
            self,
            min_gain_s=(0.0, 3600.0),
            min_gain_share=(0.0, 1.0),
            min_chance_gain=(0.0, 1.0),
            cooldown_s=(0.0, 3600.0),
            max_moves=(0, 1000),
            max_concurrent=(0, 1_000_000),
            drain_patience_s=(0.0, 86400.0),
            checks_per_wake=(1, 1_000_000),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class GoodServeConfig:
    """GoodServe as published: no hysteresis, no cap, no cost term. Raise them to give the baseline its best setting."""

    migration: bool = True
    """Without: late calls stay where they are, the paper's ablation."""
    predictor: bool = True
    """Without: the mean length of all answers so far stands for every call's, the paper's ablation."""

    max_moves: int = 1_000_000
    """Moves per call."""
    cooldown_s: float = 0.0
    """Least time between two moves of a call."""
    min_gain_s: float = 0.0
    """Predicted finish must come earlier by this much."""
    charge_replay: bool = False
    """Add the re-prefill of emitted tokens to the target's estimate before the just-enough test."""
    margin: float = 1.0
    """T is multiplied by this before it is held against the time left."""

    def __post_init__(self) -> None:
        check_bounds(
            self,
            max_moves=(0, 1_000_000),
            cooldown_s=(0.0, 3600.0),
            min_gain_s=(0.0, 3600.0),
            margin=(0.01, 100.0),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentServeConfig:
    """Prices of our policy: chances of runs to end in time, and seconds of somebody's delay."""

    second_price: float = 0.001
    """Price of a second of anybody's delay, in runs: what decides where no run's chance is at stake."""
    capability_weight: float = 1.0
    """How much dearer a second of its own is on a stronger instance: 1 in proportion to capability, 0 not at all."""
    resident_weight: float = 1.0
    """Weight of what the runs of resident calls lose of their chances."""
    coming_weight: float = 1.0
    """Weight of what runs of calls to come lose."""
    queue_weight: float = 1.0
    """The same for what they lose by waiting behind its prefill."""
    late_moves: bool = True
    """Move late calls where that pays."""
    life_weight: float = 0.7
    """A new run waits while its chance is below this times what it costs others over all its calls; 0: none waits."""
    busy_share: float = 0.5
    """Share of a run's rest that is spent in calls, tools taking the other."""
    lost_chance: float = 0.02
    """Below this chance to end in time a run counts as lost and gives way."""
    lost_loss: float = 0.02
    """What others may lose by a lost run's call without it having to wait."""
    lost_wait_s: float = 5.0
    """How long the calls of a lost run wait for others in all, besides `lost_wait_slos`."""
    lost_wait_slos: float = 1.0
    """And as many times its SLO."""
    social_weight: float = 1.0
    """Price of one second of delay caused to a resident call, against one second of the call's own."""
    prefix_weight: float = 0.5
    """Price of a second of prefill that evicted prefixes will have to repeat."""
    kv_weight: float = 4.0
    """Price in seconds of filling the last of the KV cache; grows with the square above 80 % use."""
    split_gain_share: float = 0.0
    """A prefill/decode split is weighed where it is this much quicker than the best colocated placement."""
    split_candidates: int = 4
    """Best prefill and best decode instances from which pairs are formed."""
    best_effort_slack_s: float = 120.0
    """Slack that orders calls without SLO among those that have one."""

    def __post_init__(self) -> None:
        check_bounds(
            self,
            second_price=(0.0, 10.0),
            capability_weight=(0.0, 10.0),
            resident_weight=(0.0, 100.0),
            coming_weight=(0.0, 1000.0),
            queue_weight=(0.0, 1000.0),
            life_weight=(0.0, 1000.0),
            busy_share=(0.0, 1.0),
            lost_chance=(0.0, 1.0),
            lost_loss=(0.0, 100.0),
            lost_wait_s=(0.0, 86400.0),
            lost_wait_slos=(0.0, 1000.0),
            social_weight=(0.0, 100.0),
            prefix_weight=(0.0, 100.0),
            kv_weight=(0.0, 1000.0),
            split_gain_share=(0.0, 1.0),
            split_candidates=(1, 64),
            best_effort_slack_s=(0.0, 1e6),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FairnessConfig:
    """How tenants share the cluster while their calls compete; with one tenant it changes nothing."""

    strength: float = 2.0
    """To which power the mean service over a tenant's own makes its runs' chances weigh more; 0: no fairness."""
    most_worth: float = 16.0
    """By how much at most they weigh more, or less."""
    memory_s: float = 60.0
    """How long service that was received counts (it fades exponentially)."""

    def __post_init__(self) -> None:
        check_bounds(self, strength=(0.0, 8.0), most_worth=(1.0, 1e6), memory_s=(0.1, 86400.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """Everything that `make_scheduler` may be told; sections are named after the file that reads them."""

    risk_period_s: float = 1.0
    """τ: how often a running call is re-estimated (GoodServe: every 50 iterations)."""
    hold_limit_s: float = 10.0
    """How long a call waits for an instance to join before it is refused."""
    max_attempts: int = 4
    """Failed attempts after which a call is refused."""
    waiting_tries: int = 2
    """Waiting calls that are asked about whenever capacity may have come free."""
    waiting_tries_per_wake: int = 256
    """And at every Woke: so many are asked about, so that those at the end of a queue find out that they may go."""
    explained_candidates: int = 3
    """Losing candidates listed in a decision's reason."""
    max_ended: int = 8192
    """Ended calls remembered, so that a late event about one is told from a wrong one."""
    length: LengthConfig = field(default_factory=LengthConfig)
    estimate: EstimateConfig = field(default_factory=EstimateConfig)
    migration: MigrationConfig = field(default_factory=MigrationConfig)
    fairness: FairnessConfig = field(default_factory=FairnessConfig)
    goodserve: GoodServeConfig = field(default_factory=GoodServeConfig)
    agentserve: AgentServeConfig = field(default_factory=AgentServeConfig)

    def __post_init__(self) -> None:
        check_bounds(
            self,
            risk_period_s=(0.001, 3600.0),
            hold_limit_s=(0.0, 86400.0),
            max_attempts=(1, 1000),
            waiting_tries=(1, 1_000_000),
            waiting_tries_per_wake=(1, 1_000_000),
            explained_candidates=(0, 64),
            max_ended=(0, 10_000_000),
        )
