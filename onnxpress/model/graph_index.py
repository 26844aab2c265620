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
        self.producer = {v.name or "": i for i, n in enumerate(self.nodes) for v in n.outputs}
        self.outputs = {v.name or "" for v in model.graph.outputs}
        given = {v.name or "" for v in model.graph.inputs}
        self.reads: list[tuple[str, ...]] = []
        for node in self.nodes:
            all_read = [v.name or "" for v in node.inputs if v is not None] + sorted(read.captured(node))
            self.reads.append(tuple(dict.fromkeys(n for n in all_read if n in self.producer or n in given)))
        self.readers: dict[str, list[int]] = {}
        for i, names in enumerate(self.reads):
            for name in names:
                self.readers.setdefault(name, []).append(i)
        self.all = self._needed({})

    def data_inputs(self, index: int) -> tuple[str, ...]:
        """Values whose contents a node reads."""
        return () if self.nodes[index].op_type in _SHAPE_OPS else self.reads[index]

    def _needed(self, instead: Mapping[str, str]) -> set[int]:
        seen: set[int] = set()
        queue = [instead.get(n, n) for n in self.outputs]
        while queue:
            index = self.producer.get(queue.pop())
            if index is None or index in seen:
                continue
            seen.add(index)
            queue += [instead.get(n, n) for n in self.reads[index]]
        return seen

    def dead_without(self, instead: Mapping[str, str]) -> frozenset[str]:
        return frozenset(self.nodes[i].name or "" for i in self.all - self._needed(instead))

    def depends_on(self, value: str, source: str) -> bool:
        """Whether a value's contents depend on the source's."""
        first = self.producer.get(source, -1)
        seen: set[str] = set()
        queue = [value]
        while queue:
            name = queue.pop()
            if name == source:
                return True
            index = self.producer.get(name)
            if name in seen or index is None or index <= first:
                continue
            seen.add(name)
            queue += self.data_inputs(index)
        return False

    def post_dominators(self) -> list[int]:
        """For every node the nearest later one that all its influence passes; len(nodes) where there is none."""
        sink = len(self.nodes)
        parent = [sink] * (sink + 1)
        for index in range(sink - 1, -1, -1):
            names = [v.name or "" for v in self.nodes[index].outputs]
            following = {r for n in names for r in self.readers.get(n, ()) if n in self.data_inputs(r)}
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

    def shared_path(self) -> list[int]:
        """The nodes that everything the inputs say passes, in order."""
        paths = [path for path in self._paths().values() if path]
        return [] if not paths else [i for i in paths[0] if all(i in other for other in paths)]

    def main_path(self) -> tuple[str, list[int]]:
        """The input whose contents pass most nodes as a whole, and those nodes in order; "" where there is none."""
        paths = self._paths()
        best = max(paths, key=lambda name: len(paths[name]), default="")
        return best, paths.get(best, [])

    def _paths(self) -> dict[str, list[int]]:
        """For every input of the graph the nodes that all its contents pass."""
        parent = self.post_dominators()
        found = {}
        for value in self.model.graph.inputs:
            starts = [
                r for r in self.readers.get(value.name or "", ()) if value.name in self.data_inputs(r) and r in self.all
            ]
            paths = []
            for index in starts:
                path = [index]
                while parent[path[-1]] < len(self.nodes):
                    path.append(parent[path[-1]])
                paths.append(path)
            if paths:
                found[value.name or ""] = [i for i in paths[0] if all(i in other for other in paths)]
        return found

    def only_used_output(self, index: int) -> str | None:
        """The only value of a node that anything uses."""
        used = [v.name or "" for v in self.nodes[index].outputs if v.name in self.readers or v.name in self.outputs]
        return used[0] if len(used) == 1 else None
