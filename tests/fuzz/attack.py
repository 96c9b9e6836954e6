"""How are cases made, counted and kept? Hypothesis draws and shrinks; what was found stays in the corpus for ever."""

import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import orjson
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.fuzz import bus, calls, files, stored, streams
from tests.fuzz.mutations import DRAWS
from tests.fuzz.target import Target

TARGETS: Final = (*streams.TARGETS, *calls.TARGETS, *bus.TARGETS, *files.TARGETS, *stored.TARGETS)
CORPUS: Final = Path(__file__).with_name("corpus")
PIECE: Final = 2000
"""Cases drawn by one run of hypothesis; a piece has a seed of its own, and ends with its first defect."""


@dataclass(frozen=True, slots=True)
class Found:
    """A defect: the smallest input that shows it, and where it broke."""

    target: str
    input: bytes
    story: str


def attack(target: Target, cases: int, first_seed: int, tell: Callable[[int], None] = lambda done: None) -> list[Found]:
    """Send about so many cases at a target, told in `tell` as they are done; a defect found twice counts once."""
    found: dict[str, Found] = {}
    for piece, begin in enumerate(range(0, cases, PIECE)):
        size = min(PIECE, cases - begin)
        defect = _piece(target, size, first_seed + piece)
        tell(size)
        if defect is not None:
            found.setdefault(defect.story, defect)
        if len(found) >= 5:
            break
    return list(found.values())


def corpus(target: Target) -> Iterator[bytes]:
    """Inputs that once broke the target."""
    path = CORPUS / f"{target.name}.jsonl"
    if path.exists():
        for line in path.read_bytes().splitlines():
            yield bytes.fromhex(orjson.loads(line)["hex"])


def keep(defect: Found) -> None:
    """Add what was found to the corpus."""
    path = CORPUS / f"{defect.target}.jsonl"
    row = {"hex": defect.input.hex(), "broke": defect.story.splitlines()[0][:200]}
    known = path.read_bytes() if path.exists() else b""
    if orjson.dumps(row["hex"]) not in known:
        path.write_bytes(known + orjson.dumps(row) + b"\n")


def _piece(target: Target, cases: int, number: int) -> Found | None:
    last: list[bytes] = []

    @seed(number)
    @settings(
        max_examples=cases,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(DRAWS)
    def one(draw: bytes) -> None:
        last[:] = [target.make(draw)]
        target.survives(last[0])

    try:
        one()
    except Exception as raised:  # noqa: BLE001  # whatever it is, it is what is looked for
        error = raised.exceptions[0] if isinstance(raised, ExceptionGroup) else raised
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "tests/fuzz" not in frame.filename]
        own = [
            frame for frame in frames if "site-packages" not in frame.filename and "/hypothesis/" not in frame.filename
        ]
        where = "\n".join(f"  {frame.filename}:{frame.lineno} {frame.name}" for frame in own[-4:])
        return Found(target.name, last[0], f"{type(error).__name__}: {str(error)[:160]}\n{where}")
    return None
