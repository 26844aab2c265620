"""Index of a graph: producers and readers of values, dominance, and what is needed for the outputs."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from onnxpress.model import read

_SHAPE_OPS = frozenset({"Shape", "Size"})


class GraphIndex:
    """Producers and readers of values by name; nodes by position in the (topologically sorted) graph.

    nodes:    in the order of the graph
    producer: position of the node that computes a value
    outputs:  names of the graph outputs
    reads:    for each node the names of the values that it reads, sub-graphs included
    readers:  for each value the positions of the nodes that read it
    all:      positions of the nodes that the graph outputs need
    """

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
        """Values whose contents, and not only whose shape, a node reads."""
        return () if self.nodes[index].op_type in _SHAPE_OPS else self.reads[index]

    def _needed(self, instead: Mapping[str, str]) -> set[int]:
        """Positions of the nodes that the graph outputs need.  instead: by value, the value read in its place."""
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
        """Names of the nodes that nothing needs once values are replaced.

        instead: by value, the value read in its place
        """
        return frozenset(self.nodes[i].name or "" for i in self.all - self._needed(instead))

    def depends_on(self, value: str, source: str) -> bool:
        """Whether the contents of a value depend on those of the source."""
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
        """The immediate post-dominator of each node: the nearest later node on all paths to the outputs.

        len(nodes) where there is none.
        """
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
        """Positions of the nodes on all paths from all inputs, in order."""
        paths = [path for path in self._paths().values() if path]
        return [] if not paths else [i for i in paths[0] if all(i in other for other in paths)]

    def main_path(self) -> tuple[str, list[int]]:
        """The input with the most nodes on all of its paths, and the positions of these nodes in order; "" for none."""
        paths = self._paths()
        best = max(paths, key=lambda name: len(paths[name]), default="")
        return best, paths.get(best, [])

    def _paths(self) -> dict[str, list[int]]:
        """For each graph input the positions of the nodes on all of its paths, in order."""
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
        """The only output of a node that anything reads; None where there are several."""
        used = [v.name or "" for v in self.nodes[index].outputs if v.name in self.readers or v.name in self.outputs]
        return used[0] if len(used) == 1 else None
