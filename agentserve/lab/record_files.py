"""How are the records of a simulation kept on disk? One folder per simulation, one Parquet file per kind of record."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from agentserve.errors import BadInput
from agentserve.lab.outcome import Outcome
from agentserve.lab.results import InstanceSample, InstanceUse, Placement, ReplayResult, SimulationResult
from agentserve.records import CallRecord, RunRecord

KINDS: Final[dict[str, type]] = {
    "runs": RunRecord,
    "calls": CallRecord,
    "placements": Placement,
    "instances": InstanceUse,
    "samples": InstanceSample,
}
"""File name (without .parquet) and what a row of it is; the columns are the fields. docs/lab.md lists them."""


def need_pyarrow() -> ModuleType:
    """Pyarrow's parquet module; BadInput says how to get it."""
    try:
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError:
        raise BadInput("records are kept as Parquet, which needs pyarrow: pip install 'agentserve[lab]'") from None
    parquet: ModuleType = pyarrow.parquet
    return parquet


def write_records(folder: Path, result: SimulationResult) -> None:
    """Write every record of a result; what stood there under the same names is replaced, each file as a whole."""
    replay = result.replay
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Sequence[Any]] = {
        "runs": replay.runs,
        "calls": replay.calls,
        "placements": replay.placements,
        "instances": result.instances,
        "samples": result.samples,
    }
    for kind, records in rows.items():
        _write(folder / f"{kind}.parquet", KINDS[kind], records)


def read_records(folder: Path, outcome: Outcome) -> SimulationResult:
    """The result whose records are in the folder and whose figures are in `outcome`; BadInput if they are not there."""
    found = {kind: tuple(kept(**row) for row in _rows(folder / f"{kind}.parquet")) for kind, kept in KINDS.items()}
    return SimulationResult(
        replay=ReplayResult(
            policy=outcome.policy,
            source=outcome.source,
            model=outcome.model,
            speed=1.0,
            seed=outcome.seed,
            slo=outcome.slo,
            started_s=0.0,
            finished_s=max((call.finished_s for call in found["calls"]), default=0.0),
            calls=found["calls"],
            runs=found["runs"],
            placements=found["placements"],
            notes=outcome.notes,
            errors=outcome.errors,
        ),
        instances=found["instances"],
        samples=found["samples"],
        events=outcome.events,
        wall_s=outcome.wall_s,
    )


def _write(path: Path, kept: type, records: Sequence[Any]) -> None:
    import pyarrow as pa

    parquet = need_pyarrow()
    schema = pa.schema([pa.field(field.name, _arrow_type(pa, field.type)) for field in fields(kept)])
    table = pa.Table.from_pylist([asdict(record) for record in records], schema=schema)
    unfinished = path.with_suffix(".unfinished")
    parquet.write_table(table, unfinished, compression="zstd")
    unfinished.replace(path)


def _rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa

    try:
        rows: list[dict[str, Any]] = need_pyarrow().read_table(path).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise BadInput(f"{path}: cannot be read ({error})") from None
    return rows


def _arrow_type(pa: Any, annotation: Any) -> Any:
    name = annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))
    kinds = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
    return kinds[name.partition(" |")[0]]
