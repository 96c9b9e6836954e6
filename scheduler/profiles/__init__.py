"""How fast a GPU runs a model: step-time formulas with measured constants, and where those come from."""

from scheduler.profiles.book import ProfileBook, book_from_plain, profile_book
from scheduler.profiles.loader import known_gpus, known_models, load_profile
from scheduler.profiles.profile import GpuProfile

__all__ = [
    "GpuProfile", "ProfileBook", "book_from_plain", "known_gpus", "known_models", "load_profile", "profile_book",
]  # fmt: skip
