"""Which nodes can be reached, which can end, where do branches join? The few graph algorithms, on plain mappings.

All are iterative (a graph may be a path of hundreds of nodes) and deterministic (they follow the order given).
"""

from collections.abc import Iterable, Mapping, Sequence


def reachable(source: str, successors: Mapping[str, Iterable[str]]) -> set[str]:
    """Every node that a path from `source` visits, `source` itself too."""
    found, waiting = {source}, [source]
    while waiting:
        for target in successors.get(waiting.pop(), ()):
            if target not in found:
                found.add(target)
                waiting.append(target)
    return found


def able_to_end(end: str, outcomes: Mapping[str, Sequence[Sequence[str]]]) -> set[str]:
    """The nodes from which everything that is started can end.

    `outcomes` holds, for each node, the sets of targets of which one follows it: a node can end if all targets of one
    of its outcomes can. A node of a loop without exit is not among them.
    """
    ending = {end}
    waiting = list(outcomes)
    while waiting:
        stuck = []
        for node in reversed(waiting):
            if any(all(target in ending for target in outcome) for outcome in outcomes[node]):
                ending.add(node)
            else:
                stuck.append(node)
        if len(stuck) == len(waiting):
            break
        waiting = stuck[::-1]
    return ending


def back_edges(source: str, successors: Mapping[str, Sequence[str]]) -> set[tuple[str, str]]:
    """The edges that close a loop: those to a node which depth-first search from `source` is still inside of."""
    found: set[tuple[str, str]] = set()
    inside, done = {source}, set()
    path = [(source, iter(successors.get(source, ())))]
    while path:
        node, targets = path[-1]
        target = next(targets, None)
        if target is None:
            path.pop()
            inside.discard(node)
            done.add(node)
        elif target in inside:
            found.add((node, target))
        elif target not in done:
            inside.add(target)
            path.append((target, iter(successors.get(target, ()))))
    return found


def loops(source: str, successors: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """For each node reachable from `source` the number of its group: nodes that can reach each other share one.

    Kosaraju's strongly connected components.
    """
    order = _postorder(source, successors)
    predecessors: dict[str, list[str]] = {}
    for node in order:
        for target in successors.get(node, ()):
            predecessors.setdefault(target, []).append(node)
    group: dict[str, int] = {}
    for root in reversed(order):
        if root in group:
            continue
        number = len(group)
        group[root], waiting = number, [root]
        while waiting:
            for before in predecessors.get(waiting.pop(), ()):
                if before not in group:
                    group[before] = number
                    waiting.append(before)
    return group


def post_dominators(end: str, successors: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """For each node that can reach `end`, the nearest other node that every path to `end` goes through.

    Cooper, Harvey, Kennedy: A Simple, Fast Dominance Algorithm (2001), on the reversed graph.
    """
    predecessors: dict[str, list[str]] = {}
    for node, targets in successors.items():
        for target in targets:
            predecessors.setdefault(target, []).append(node)
    order = _postorder(end, predecessors)
    rank = {node: position for position, node in enumerate(order)}
    nearest = {end: end}
    changed = True
    while changed:
        changed = False
        for node in reversed(order[:-1]):
            joined: str | None = None
            for target in successors[node]:
                if target in nearest:
                    joined = target if joined is None else _meet(joined, target, nearest, rank)
            if joined is not None and nearest.get(node) != joined:
                nearest[node] = joined
                changed = True
    del nearest[end]
    return nearest


def _meet(one: str, other: str, nearest: Mapping[str, str], rank: Mapping[str, int]) -> str:
    while one != other:
        while rank[one] < rank[other]:
            one = nearest[one]
        while rank[other] < rank[one]:
            other = nearest[other]
    return one


def _postorder(source: str, successors: Mapping[str, Sequence[str]]) -> list[str]:
    order: list[str] = []
    seen = {source}
    path = [(source, iter(successors.get(source, ())))]
    while path:
        node, targets = path[-1]
        target = next(targets, None)
        if target is None:
            path.pop()
            order.append(node)
        elif target not in seen:
            seen.add(target)
            path.append((target, iter(successors.get(target, ()))))
    return order
