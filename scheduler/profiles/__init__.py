"""How fast a GPU runs a model: step-time formulas with measured constants, and where those come from."""

from scheduler.profiles.loader import known_gpus, known_models, load_profile
from scheduler.profiles.profile import GpuProfile

__all__ = ["GpuProfile", "known_gpus", "known_models", "load_profile"]
