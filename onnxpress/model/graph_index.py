"""Who makes and who reads which value of a graph, what passes where, and what is needed for what."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxpress.model import read

_SHAPE_OPS = frozenset({"Shape", "Size"})


class GraphIndex:
    """Who makes and who reads which value, by name; nodes by their place in the (topological) graph."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.nodes = list(model.graph)
        self.maker = {v.name or "": i for i, n in enumerate(self.nodes) for v in n.outputs}
        self.outputs = {v.name or "" for v in model.graph.outputs}
        given = {v.name or "" for v in model.graph.inputs}
        self.reads: list[tuple[str, ...]] = []
        for node in self.nodes:
            all_read = [v.name or "" for v in node.inputs if v is not None] + sorted(read.captured(node))
            self.reads.append(tuple(dict.fromkeys(n for n in all_read if n in self.maker or n in given)))
        self.readers: dict[str, list[int]] = {}
        for i, names in enumerate(self.reads):
            for name in names:
                self.readers.setdefault(name, []).append(i)
        self.all = self._needed({})

    def data(self, index: int) -> tuple[str, ...]:
        """Values whose contents a node reads."""
        return () if self.nodes[index].op_type in _SHAPE_OPS else self.reads[index]

    def _needed(self, instead: Mapping[str, str]) -> set[int]:
        seen: set[int] = set()
        queue = [instead.get(n, n) for n in self.outputs]
        while queue:
            index = self.maker.get(queue.pop())
            if index is None or index in seen:
                continue
            seen.add(index)
            queue += [instead.get(n, n) for n in self.reads[index]]
        return seen

    def dying(self, instead: Mapping[str, str]) -> frozenset[str]:
        return frozenset(self.nodes[i].name or "" for i in self.all - self._needed(instead))

    def depends(self, value: str, source: str) -> bool:
        """Whether a value's contents depend on the source's."""
        first = self.maker.get(source, -1)
        seen: set[str] = set()
        queue = [value]
        while queue:
            name = queue.pop()
            if name == source:
                return True
            index = self.maker.get(name)
            if name in seen or index is None or index <= first:
                continue
            seen.add(name)
            queue += self.data(index)
        return False

    def post_dominators(self) -> list[int]:
        """For every node the nearest later one that all its influence passes; len(nodes) where there is none."""
        sink = len(self.nodes)
        parent = [sink] * (sink + 1)
        for index in range(sink - 1, -1, -1):
            names = [v.name or "" for v in self.nodes[index].outputs]
            following = {r for n in names for r in self.readers.get(n, ()) if n in self.data(r)}
            if not following or any(n in self.outputs for n in names):
                continue
            at = following.pop()
            for other in following:
                while at != other:
                    if at < other:
                        at = parent[at]
                    else:
                        other = parent[other]
            parent[index] = at
        return parent

    def spine(self) -> list[int]:
        """The nodes that everything the inputs say passes, in order."""
        ways = [way for way in self._ways().values() if way]
        return [] if not ways else [i for i in ways[0] if all(i in other for other in ways)]

    def main_way(self) -> tuple[str, list[int]]:
        """The input whose contents pass most nodes as a whole, and those nodes in order; "" where there is none."""
        ways = self._ways()
        best = max(ways, key=lambda name: len(ways[name]), default="")
        return best, ways.get(best, [])

    def _ways(self) -> dict[str, list[int]]:
        """For every input of the graph the nodes that all its contents pass."""
        parent = self.post_dominators()
        found = {}
        for value in self.model.graph.inputs:
            starts = [r for r in self.readers.get(value.name or "", ()) if value.name in self.data(r) and r in self.all]
            ways = []
            for index in starts:
                way = [index]
                while parent[way[-1]] < len(self.nodes):
                    way.append(parent[way[-1]])
                ways.append(way)
            if ways:
                found[value.name or ""] = [i for i in ways[0] if all(i in other for other in ways)]
        return found

    def single(self, index: int) -> str | None:
        """The only value of a node that anything uses."""
        used = [v.name or "" for v in self.nodes[index].outputs if v.name in self.readers or v.name in self.outputs]
        return used[0] if len(used) == 1 else None
