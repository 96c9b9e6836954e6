"""What is attacked? A name, how a draw becomes an input, what takes it, and the errors that bad input may end in."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """`take(make(draw))` must return or raise one of `allowed`; anything else is a defect of the product."""

    name: str
    make: Callable[[bytes], bytes]
    take: Callable[[bytes], object]
    allowed: tuple[type[Exception], ...] = ()

    def survives(self, given: bytes) -> None:
        """Take one input; what it raises is a defect."""
        try:
            self.take(given)
        except self.allowed:
            return
