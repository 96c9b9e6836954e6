"""How much load does each policy carry with 95 % of the runs in time, and what do fewer GPUs cost it?"""

from agentserve.lab.searches import holds_up_to
from benchmarks.lab.plan import loads, ours, published, strongest
from benchmarks.lab.runner import Asked, Study, over_all, shares

LEVEL = 0.95
WORKLOADS = ("coding-hot", "dags-hot", "azure-conv")
SEEDS = (1, 2)
REACH = (0.25, 4.0)
WITHIN = 1.15
FLEETS = {
    "2 A100, H100, H200": [{"gpu": "a100-80g", "count": 2}, {"gpu": "h100"}, {"gpu": "h200"}],
    "1 A100, H100, H200": [{"gpu": "a100-80g"}, {"gpu": "h100"}, {"gpu": "h200"}],
    "H100, H200": [{"gpu": "h100"}, {"gpu": "h200"}],
}
FEWER = ("dags-hot",)


def capacity(study: Study) -> None:
    """Runs per second at 95 % attainment, by bisection on the rate under each policy."""
    asked = {
        (workload, label): Asked(workload, {"workload.limit": study.limit(workload)}, {label: params}, SEEDS)
        for workload in WORKLOADS
        for label, params in {**published(strongest(workload)), **ours()}.items()
    }
    starts = {key: loads()[key[0]]["95"] for key in asked}
    curves = study.search("capacity at 95 %", asked, "workload.rate", LEVEL, starts, REACH, WITHIN)
    for (workload, label), by_seed in curves.items():
        whole = over_all(by_seed)
        found = holds_up_to(whole, LEVEL)
        each = [holds_up_to(by_seed[seed], LEVEL).at for seed in sorted(by_seed)]
        study.add("capacity", workload=workload, policy=label, rate=found.at, or_more=found.open_end, by_seed=each,
                  curve={f"{rate:.4g}": share for rate, share in sorted(whole.items())})  # fmt: skip


def fewer_gpus(study: Study) -> None:
    """The load of 80 % on fewer GPUs: which pool is enough for what the best published attains on the whole one?"""
    asked = {}
    for workload in FEWER:
        policies = {**published(strongest(workload)), **ours()}
        base = {"workload.rate": loads()[workload]["80"], "workload.limit": study.limit(workload)}
        for name, fleet in FLEETS.items():
            asked[workload, name] = Asked(workload, {**base, "fleet": fleet}, policies, study.seeds[:2])
    for (workload, name), found in study.simulate("fewer GPUs", asked).items():
        for label, rows in found.items():
            study.add("fewer", workload=workload, fleet=name, policy=label, attainment=shares(rows))
