"""The order in which straight-line code computes a circuit and its class sums, and where values are kept meanwhile.

Gates follow one another depth-first, first from what convolutions give, neighbours together, then from the outputs,
class after class; an output is added to its class's sum as soon as it is there. So what has been computed is used soon,
and few values live at a time. The order is cut into parts that compilers and instruction caches take well. A value that
other parts read has a place of its own until the last of them has run.
"""

import heapq
from collections import Counter
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from .netlist import Circuit

AND, AND_NOT, A, XOR, OR, NOT_A = 1, 2, 3, 6, 7, 12  # numbers of gates, as in `gates`
PART_OPERATIONS: Final = 400
TRUE: Final = (0, True)
Literal = tuple[int, bool]  # a node, and whether its complement is meant


class Operation(NamedTuple):
    """node = gate(a, b)."""

    node: int
    gate: int
    a: int
    b: int


class Program(NamedTuple):
    """What `schedule` makes of a circuit.

    Args:
        operations: part after part. Nodes are those of the circuit, then those of the adders.
        part_ends: where each part ends in `operations`.
        places: of each node that a part other than its own reads, and of the sums' bits, which come first: bit i of
            class k's sum is in place k * sum_bits + i.
        num_places: how many are needed.
        sum_bits: bits of a class sum.
    """

    operations: list[Operation]
    part_ends: list[int]
    places: dict[int, int]
    num_places: int
    sum_bits: int


def schedule(circuit: "Circuit") -> Program:
    """A circuit and the adders of its class sums as operations in parts. It is one that `simplify` has left."""
    operations: list[Operation] = []
    cones = _Cones(circuit, operations)
    per_class = len(circuit.outputs) // circuit.num_classes
    literals = list(zip(circuit.outputs.tolist(), circuit.inverted.tolist(), strict=True))
    adders = _Adders(operations, 1 + circuit.num_inputs + circuit.num_gates, per_class.bit_length())
    classes = [_merged(literals[start : start + per_class]) for start in range(0, len(literals), per_class)]
    for root in _convolved(circuit, _needed(circuit, classes)):
        cones.compute(root)
    sums: list[int] = []
    for merged in classes:
        for literal, times in merged:
            cones.compute(literal[0])
            adders.add(literal, times)
        sums += adders.finish()
    part_ends = [*range(PART_OPERATIONS, len(operations), PART_OPERATIONS), len(operations)]
    places, num_places = _places(operations, part_ends, sums)
    return Program(operations, part_ends, places, num_places, adders.num_bits)


def _needed(circuit: "Circuit", classes: list[list[tuple[Literal, int]]]) -> npt.NDArray[np.bool_]:
    """Whether sums depend on a node. On some that outputs read they do not: a node and its complement always add 1."""
    first = 1 + circuit.num_inputs
    is_needed = bytearray(first + circuit.num_gates)
    for merged in classes:
        for (node, _), _ in merged:
            is_needed[node] = 1
    gates = zip(circuit.a[::-1].tolist(), circuit.b[::-1].tolist(), strict=True)
    for node, (a, b) in zip(range(len(is_needed) - 1, first - 1, -1), gates, strict=True):
        if is_needed[node]:
            is_needed[a] = is_needed[b] = 1
    return np.frombuffer(is_needed, np.bool_)


def _convolved(circuit: "Circuit", is_needed: npt.NDArray[np.bool_]) -> list[int]:
    """Nodes that convolutions give to later layers, a convolution at a time, neighbours in the image together: they
    share what they read, and find it in the cache.

    All but the first convolution's where there are more: its are best computed when the second needs them.
    """
    if len(circuit.input_shape) != 3:
        return []
    kinds = [layer.name.split("_") for layer in circuit.layers]
    numbers = [int(number) if kind in ("conv", "pool") else 0 for kind, number in kinds]  # of convolutions
    first = 1 + circuit.num_inputs
    block = np.repeat([0, *numbers], [first, *(layer.num_gates for layer in circuit.layers)])
    is_given = np.zeros(len(block), np.bool_)
    is_given[circuit.outputs] = True
    for nodes in (circuit.a, circuit.b):
        is_given[nodes[block[nodes] != block[first:]]] = True
    places = _places_in_image(circuit)
    roots: list[int] = []
    convolutions = sorted({*numbers} - {0})
    for number in convolutions[1:] or convolutions:
        given = np.flatnonzero(is_given & is_needed & (block == number)).tolist()
        roots += sorted(given, key=lambda node: places[node])
    return roots


def _places_in_image(circuit: "Circuit") -> list[tuple[int, float]]:
    """Of each node the band of rows and the column where the bits it sees lie, roughly."""
    rows, columns = circuit.input_shape[1:]
    pixel = np.arange(circuit.num_inputs)
    row = [0.0, *(pixel // columns % rows).tolist()]
    column = [0.0, *(pixel % columns).tolist()]
    for a, b in zip(circuit.a.tolist(), circuit.b.tolist(), strict=True):
        row.append((row[a] + row[b]) / 2)
        column.append((column[a] + column[b]) / 2)
    return [(int(8 * r // rows), c) for r, c in zip(row, column, strict=True)]


def _merged(literals: list[Literal]) -> list[tuple[Literal, int]]:
    """Each node once, with how often it counts: a literal and its complement are a constant one together."""
    times = Counter(literals)
    merged: list[tuple[Literal, int]] = []
    num_ones = times[TRUE]
    for node in dict.fromkeys(node for node, _ in literals):
        if node:
            plain, inverted = times[node, False], times[node, True]
            num_ones += min(plain, inverted)
            if plain != inverted:
                merged.append(((node, inverted > plain), abs(plain - inverted)))
    return [*merged, (TRUE, num_ones)]


class _Cones:
    """The circuit's gates, each computed when first needed.

    Of a gate's two inputs the one that takes more values at a time goes first, so that fewer live at a time
    (Sethi and Ullman 1970, "The generation of optimal code for arithmetic expressions").
    """

    def __init__(self, circuit: "Circuit", operations: list[Operation]) -> None:
        self._operations = operations
        self._a, self._b, self._gate = circuit.a.tolist(), circuit.b.tolist(), circuit.gate.tolist()
        self._first = 1 + circuit.num_inputs
        self._is_done = bytearray([1] * self._first + [0] * circuit.num_gates)
        self._num_live = [0] * self._first
        for a, b in zip(self._a, self._b, strict=True):
            one, other = self._num_live[a], self._num_live[b]
            self._num_live.append(max(one, other, 1) if one != other else one + 1)

    def compute(self, root: int) -> None:
        """Append the gates that `root` still lacks."""
        is_done, num_live, first = self._is_done, self._num_live, self._first
        stack = [root]
        while stack:
            node = stack[-1]
            if is_done[node]:
                stack.pop()
                continue
            a, b = self._a[node - first], self._b[node - first]
            if is_done[a] and is_done[b]:
                is_done[node] = 1
                self._operations.append(Operation(node, self._gate[node - first], a, b))
            else:
                stack += (a, b) if num_live[a] < num_live[b] else (b, a)


class _Adders:
    """The sum of one class after another, in carry-save form: as soon as three bits weigh the same, they become one of
    that weight and one of twice it.

    Complements cost nothing: a full adder of three complements gives the complements of its two results.
    """

    def __init__(self, operations: list[Operation], next_node: int, num_bits: int) -> None:
        self.num_bits = num_bits
        self._operations, self._next_node = operations, next_node
        self._waiting: list[list[Literal]] = [[] for _ in range(num_bits)]
        self._num_ones = 0

    def add(self, literal: Literal, times: int) -> None:
        """Count a literal."""
        if literal == TRUE:
            self._num_ones += times
            return
        for bit in range(times.bit_length()):
            if times >> bit & 1:
                self._put(literal, bit)

    def finish(self) -> list[int]:
        """The nodes of the sum's bits, from the lowest; the next sum starts at 0."""
        sums = []
        for bit in range(self.num_bits):
            waiting = self._waiting[bit]
            if self._num_ones >> bit & 1:
                waiting.append(TRUE)
            if len(waiting) == 3:
                self._reduce(bit)
            if len(waiting) == 2:
                one, other = waiting
                if bit + 1 < self.num_bits:
                    self._put(self._and(one, other), bit + 1)
                waiting[:] = [self._xor(one, other)]
            node, is_inverted = waiting.pop() if waiting else (0, False)
            sums.append(self._append(NOT_A if is_inverted else A, node, node))
        self._num_ones = 0
        return sums

    def _put(self, literal: Literal, bit: int) -> None:
        if literal != (0, False):
            self._waiting[bit].append(literal)
        if len(self._waiting[bit]) == 3:
            self._reduce(bit)

    def _reduce(self, bit: int) -> None:
        one, other, third = sorted(reversed(self._waiting[bit]), key=lambda literal: literal[1])
        are_inverted = other[1]  # two of three or all: add the complements
        if are_inverted:
            one, other, third = ((node, not is_inverted) for node, is_inverted in (third, other, one))
        differs = self._xor(one, other)
        node, is_inverted = self._xor(differs, third)
        self._waiting[bit][:] = [(node, is_inverted ^ are_inverted)]
        if bit + 1 < self.num_bits:  # a carry out of the highest bit is always 0
            node, is_inverted = self._or(self._and(one, other), self._and(differs, third))
            self._put((node, is_inverted ^ are_inverted), bit + 1)

    def _xor(self, one: Literal, other: Literal) -> Literal:
        is_inverted = one[1] ^ other[1]
        if 0 in (one[0], other[0]):
            return one[0] or other[0], is_inverted
        return self._append(XOR, one[0], other[0]), is_inverted

    def _and(self, one: Literal, other: Literal) -> Literal:
        (a, a_inverted), (b, b_inverted) = sorted((one, other), key=lambda literal: literal[1])
        if one[0] == 0 or other[0] == 0:
            constant, kept = (one, other) if one[0] == 0 else (other, one)
            return kept if constant[1] else (0, False)
        if a_inverted:
            return self._append(OR, a, b), True
        return self._append(AND_NOT if b_inverted else AND, a, b), False

    def _or(self, one: Literal, other: Literal) -> Literal:
        node, is_inverted = self._and((one[0], not one[1]), (other[0], not other[1]))
        return node, not is_inverted

    def _append(self, gate: int, a: int, b: int) -> int:
        self._operations.append(Operation(self._next_node, gate, a, b))
        self._next_node += 1
        return self._next_node - 1


def _places(operations: list[Operation], part_ends: list[int], sums: list[int]) -> tuple[dict[int, int], int]:
    """Places by node, and how many there are."""
    last_part: dict[int, int] = {}  # that reads a node
    start = 0
    for part, end in enumerate(part_ends):
        for _, _, a, b in operations[start:end]:
            last_part[a] = last_part[b] = part
        start = end
    places = {node: place for place, node in enumerate(sums)}
    num_places, free = len(places), list[int]()
    released: list[list[int]] = [[] for _ in part_ends]
    start = 0
    for part, end in enumerate(part_ends):
        for node, *_ in operations[start:end]:
            if node not in places and last_part[node] > part:
                if free:
                    places[node] = heapq.heappop(free)  # the lowest, to keep the places together
                else:
                    places[node], num_places = num_places, num_places + 1
                released[last_part[node]].append(places[node])
        for place in released[part]:
            heapq.heappush(free, place)
        start = end
    return places, num_places
