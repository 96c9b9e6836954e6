"""Which instances does a scenario's fleet mean? Profiles, names, memory and links of each."""

from collections.abc import Sequence
from pathlib import Path

from agentserve.errors import BadInput
from agentserve.lab.options import SimulatedInstance
from agentserve.lab.scenario import FleetGroup, Scenario
from agentserve.profile_files import read_profiles
from scheduler.errors import UnknownProfile
from scheduler.events import InstanceSpec, Role
from scheduler.profiles import GpuProfile, ProfileBook
from scheduler.profiles.loader import MEMORY_SHARE, gpu_memory_bytes


def profiles_of(scenario: Scenario, folder: Path) -> ProfileBook:
    """The shipped profiles and the scenario's own files of them. Raises BadInput naming the file."""
    return read_profiles([folder / name for name in scenario.profiles])


def fleet_of(scenario: Scenario, profiles: ProfileBook) -> list[SimulatedInstance]:
    """The instances in the file's order. Raises BadInput naming the group's key: an unknown GPU, a model too large."""
    counts: dict[str, int] = {}
    found = []
    for index, group in enumerate(scenario.fleet):
        profile = _profile(scenario.model, group, index, profiles)
        capacity_tokens = _kv_capacity(group, index, profile)
        for _ in range(group.count):
            name = group.name or profile.gpu
            counts[name] = counts.get(name, 0) + 1
            spec = _spec(f"{name}-{counts[name]}", scenario, group, profile, capacity_tokens)
            found.append(SimulatedInstance(spec=spec, slowdown=group.slowdown))
    _check_roles(found)
    _check_faults(scenario, [instance.spec.instance_id for instance in found])
    return found


def middle_gpu(instances: Sequence[SimulatedInstance], profiles: ProfileBook) -> str:
    """The fleet's GPU type of middle capability (of two, the weaker one): the usual reference of solo times."""
    models = {instance.spec.gpu: instance.spec.model for instance in instances}
    ranked = sorted(models, key=lambda gpu: (profiles(gpu, models[gpu]).capability, gpu))
    return ranked[(len(ranked) - 1) // 2]


def _profile(model: str, group: FleetGroup, index: int, profiles: ProfileBook) -> GpuProfile:
    try:
        return profiles(group.gpu, model)
    except UnknownProfile as error:
        key = "model" if profiles.knows_gpu(group.gpu) else f"fleet.{index}.gpu"
        raise BadInput(f"{key}: {error}") from None


def _kv_capacity(group: FleetGroup, index: int, profile: GpuProfile) -> int:
    if group.kv_capacity_tokens is not None:
        return group.kv_capacity_tokens
    capacity = profile.kv_capacity_tokens
    if group.memory_share is not None:
        memory = gpu_memory_bytes(profile.gpu)
        if memory is None:
            raise BadInput(
                f"fleet.{index}.memory_share: the memory of {group.gpu} is not known; give kv_capacity_tokens instead"
            )
        missing_bytes = (MEMORY_SHARE - group.memory_share) * memory * profile.tensor_parallel
        capacity -= round(missing_bytes / profile.kv_bytes_per_token)
    if capacity < 1:
        share = MEMORY_SHARE if group.memory_share is None else group.memory_share
        raise BadInput(
            f"fleet.{index}: {profile.model} does not fit: its weights leave no room for KV cache in {share:g} of the "
            f"memory of {profile.tensor_parallel} × {profile.gpu}; give a larger memory_share or GPU, or a "
            "smaller model"
        )
    return capacity


def _spec(
    instance_id: str, scenario: Scenario, group: FleetGroup, profile: GpuProfile, capacity_tokens: int
) -> InstanceSpec:
    link = profile.kv_link_bytes_per_s if group.kv_link_bytes_per_s is None else group.kv_link_bytes_per_s
    return InstanceSpec(
        instance_id=instance_id,
        model=scenario.model,
        gpu=group.gpu,
        role=group.role,
        kv_capacity_tokens=capacity_tokens,
        block_tokens=scenario.simulation.engine_block_tokens,
        max_num_seqs=group.max_num_seqs,
        max_batched_tokens=group.max_batched_tokens,
        kv_bytes_per_token=profile.kv_bytes_per_token,
        kv_link_bytes_per_s=link or None,
        kv_group=group.kv_group,
        speed=group.speed,
        supports_priority=scenario.simulation.engine_priority,
        supports_replay=True,
    )


def _check_roles(instances: Sequence[SimulatedInstance]) -> None:
    roles = {instance.spec.role for instance in instances}
    if Role.MIXED not in roles and len(roles) == 1:
        other = Role.DECODE if Role.PREFILL in roles else Role.PREFILL
        raise BadInput(f"fleet: every instance has the role {roles.pop()}; at least one must be {other} or mixed")


def _check_faults(scenario: Scenario, names: Sequence[str]) -> None:
    for index, fault in enumerate(scenario.simulation.faults):
        if fault.instance_id not in names:
            shown = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
            raise BadInput(
                f"simulation.faults.{index}.instance_id: no instance {fault.instance_id!r}; there are {shown}"
            )
