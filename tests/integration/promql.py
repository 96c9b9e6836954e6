"""Which metrics and labels does a PromQL expression need, and which labels has what it gives?

Reads the tree that a parser of the real grammar makes. What is wrong is an `AssertionError` that names it.
"""

from collections.abc import Mapping
from typing import Any, Final

import promql_parser as ql

Series = Mapping[str, frozenset[str]]
"""Sample names (with `_bucket`, `_total` …) and the labels of each."""

TARGET: Final = frozenset({"job", "instance"})
"""Labels that Prometheus adds to everything it scrapes."""
_SETS: Final = ("and", "unless")


def labels_of(text: str, series: Series) -> frozenset[str]:
    """The labels of the result of an expression over `series`, all of whose names and labels must be there."""
    return _of(ql.parse(text), series) or frozenset()


def _of(node: Any, series: Series) -> frozenset[str] | None:
    """Labels of a vector; None for a number or a string."""
    match node:
        case ql.VectorSelector():
            return _selected(node, series)
        case ql.MatrixSelector():
            return _selected(node.vector_selector, series)
        case ql.AggregateExpr():
            return _aggregated(node, series)
        case ql.Call():
            return _called(node, series)
        case ql.BinaryExpr():
            return _joined(node, series)
        case ql.ParenExpr() | ql.UnaryExpr() | ql.SubqueryExpr():
            return _of(node.expr, series)
        case ql.NumberLiteral() | ql.StringLiteral():
            return None
    raise AssertionError(f"{node}: {type(node).__name__} is not known here")


def _selected(selector: Any, series: Series) -> frozenset[str]:
    assert selector.name in series, f"{selector.name} is not exposed"
    has = series[selector.name] | TARGET
    for matcher in selector.matchers.matchers:
        assert matcher.name in has, f"{selector.name} has no label {matcher.name}: it has {sorted(has)}"
    return has


def _aggregated(node: Any, series: Series) -> frozenset[str]:
    inner = _of(node.expr, series)
    assert inner is not None, f"{node}: a number cannot be aggregated"
    if node.modifier is None:
        return frozenset()
    named = frozenset(node.modifier.labels)
    assert named <= inner, f"{node}: no label {sorted(named - inner)} there"
    return named if node.modifier.type == ql.AggModifierType.By else inner - named


def _called(node: Any, series: Series) -> frozenset[str] | None:
    vectors = [labels for labels in (_of(argument, series) for argument in node.args) if labels is not None]
    if not vectors:
        return None
    if node.func.name == "histogram_quantile":
        assert "le" in vectors[0], f"{node}: what it gets has no label le"
        return vectors[0] - {"le"}
    if node.func.name == "absent":
        return frozenset(m.name for m in node.args[0].matchers.matchers if m.op == ql.MatchOp.Equal)
    return vectors[0]


def _joined(node: Any, series: Series) -> frozenset[str] | None:
    left, right = _of(node.lhs, series), _of(node.rhs, series)
    if left is None or right is None:
        return left if right is None else right
    matching = node.modifier.matching if node.modifier is not None else None
    if matching is None:
        assert left == right or str(node.op) == "or", f"{node}: {sorted(left)} never match {sorted(right)}"
    else:
        assert frozenset(matching.labels) <= left & right, f"{node}: not on both sides: {sorted(matching.labels)}"
    return left & right if str(node.op) == "or" else left
