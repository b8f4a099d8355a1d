"""Circuits as Verilog-2001: one module from an image to its class, combinational or pipelined.

Nets n1, n2 and so on are the nodes of the circuit. Shape letters: P pixels (bytes) of an image, F its bits, K classes.
"""

import itertools
from math import prod
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from ..gates import GATE_EXPRESSIONS
from .names import safe_name

if TYPE_CHECKING:
    from .netlist import Circuit

ALWAYS: Final = -1  # the stage of constants, which no register has to carry


class _Signal(NamedTuple):
    """A net or a literal, the largest value it takes, and the stage of the pipeline in which it takes it."""

    text: str
    largest: int
    stage: int

    @property
    def width(self) -> int:
        return max(1, self.largest.bit_length())


def verilog(circuit: "Circuit", name: str = "circuit", pipeline: int | None = None) -> str:
    """The text of a module with the ports

    - `clk`, of a pipelined module only;
    - `pixels`, 8 * P bits, where the circuit has thresholds: byte p of the flattened (channels, H, W) image is bits
      8 * p + 7 to 8 * p, and the module compares those that the circuit reads; else `bits`, F bits, the image's own;
    - `class_index`, just wide enough: the class of the highest sum; of equal ones the lowest;
    - `sums`, how many of each class's outputs are one, class 0 in the lowest bits, each just wide enough for all.

    A pipelined module has registers after the comparators, after every `pipeline` levels of gates, and after every
    addition and comparison on the way to the class. It takes an image a clock: one that is sampled at a rising edge has
    its outputs ready to be sampled LATENCY edges later.

    Args:
        circuit: written as it is; `simplify()` it first for the fewest gates.
        name: of the module, made safe by `safe_name`.
        pipeline: levels of gates between registers, at least 1; None for a combinational module.

    Raises:
        ValueError: pipeline is less than 1.
    """
    if pipeline is not None and pipeline < 1:
        raise ValueError(f"pipeline={pipeline} levels of gates: choose at least 1, or None for no registers")
    body = _Body(is_pipelined=pipeline is not None)
    outputs = _add_gates(body, circuit, pipeline or 1)
    num_own = len(outputs) // circuit.num_classes
    sums = [_add_sum(body, k, outputs[k * num_own : (k + 1) * num_own]) for k in range(circuit.num_classes)]
    winner = _add_argmax(body, sums)
    latency = max(1, winner.stage, *(total.stage for total in sums))
    width = num_own.bit_length()
    for k, total in enumerate(sums):
        body.lines.append(f"assign sums[{width * (k + 1) - 1}:{width * k}] = {body.at(total, latency)};")
    body.lines.append(f"assign class_index = {body.at(winner, latency)};")
    if body.clocked:
        body.lines += ["always @(posedge clk) begin", *(f"    {line}" for line in body.clocked), "end"]
    ports = [
        *(["input clk"] if body.is_pipelined else []),
        f"input [{circuit.num_inputs - 1}:0] bits"
        if circuit.thresholds is None
        else f"input [{8 * len(circuit.thresholds) * prod(circuit.input_shape[1:]) - 1}:0] pixels",
        f"output [{winner.width - 1}:0] class_index",
        f"output [{circuit.num_classes * width - 1}:0] sums",
    ]
    lines = [
        *(f"// {line}".rstrip() for line in _comment(circuit, ports, width, pipeline, latency)),
        f"module {safe_name(name)} (",
        ",\n".join(f"    {port}" for port in ports),
        ");",
        *([f"localparam LATENCY = {latency};"] if body.is_pipelined else []),
        *body.lines,
        "endmodule",
    ]
    return "\n".join(lines) + "\n"


def _comment(circuit: "Circuit", ports: list[str], width: int, pipeline: int | None, latency: int) -> list[str]:
    """What the module is, for whoever opens the file."""
    counts = circuit.counts
    if circuit.thresholds is None:
        image = f"bit i of the flattened {circuit.input_shape} image is bits[i]"
    else:
        shape = (len(circuit.thresholds), *circuit.input_shape[1:])
        image = f"byte p of the flattened {shape} image is bits 8 * p + 7 to 8 * p of pixels"
    clocks = [
        f"Pipelined, with registers after every {pipeline} levels of gates; it takes an image a clock. One that is",
        f"sampled at a rising edge of clk has its outputs ready to be sampled LATENCY = {latency} edges later.",
    ]
    return [
        "A network of logic gates, from an image to its class. Ports:",
        *(f"    {port}" for port in ports),
        f"- {image};",
        f"- bits {width} * k + {width - 1} to {width} * k of sums say how many of the "
        f"{len(circuit.outputs) // circuit.num_classes} outputs of class k are one;",
        "- class_index is the class of the highest sum, of equal ones the lowest.",
        *(clocks if pipeline else []),
        # as many gates as after simplification are those of after it: it drops wires and inverters, and adds none
        *([] if circuit.num_gates == counts.core else [f"{circuit.num_gates:,} gates, which simplify to"]),
        f"{counts.core:,} two-input gates (core; inverters are free), at most {counts.depth:,} of them in a row.",
        "Comparators of pixels, sums and the choice of the class come on top.",
    ]


class _Body:
    """Definitions as they are added and, of a pipelined module, registers that carry signals to later stages."""

    def __init__(self, is_pipelined: bool) -> None:
        self.is_pipelined = is_pipelined
        self.lines: list[str] = []
        self.clocked: list[str] = []
        self._num_delays: dict[str, int] = {}  # registers in a row that each signal has

    def wire(self, name: str, expression: str, largest: int, stage: int) -> _Signal:
        """A signal that follows from others of the same stage."""
        signal = _Signal(name, largest, stage)
        self.lines.append(f"wire {_range(signal)}{name} = {expression};")
        return signal

    def result(self, name: str, expression: str, largest: int, stage: int) -> _Signal:
        """As `wire`, but where there are stages it is registered: the next stage has it."""
        if not self.is_pipelined:
            return self.wire(name, expression, largest, stage)
        signal = _Signal(name, largest, stage + 1)
        self._register(signal, expression)
        return signal

    def at(self, signal: _Signal, stage: int) -> str:
        """The net that has the signal in that stage, its own or a later one."""
        name, delay = signal.text, stage - signal.stage
        if not self.is_pipelined or delay == 0 or signal.stage == ALWAYS:
            return name
        present = self._num_delays.get(name, 0)
        for number in range(present + 1, delay + 1):
            source = f"{name}_d{number - 1}" if number > 1 else name
            self._register(signal._replace(text=f"{name}_d{number}"), source)
        self._num_delays[name] = max(present, delay)
        return f"{name}_d{delay}"

    def _register(self, signal: _Signal, expression: str) -> None:
        self.lines.append(f"reg {_range(signal)}{signal.text};")
        self.clocked.append(f"{signal.text} <= {expression};")


def _add_gates(body: _Body, circuit: "Circuit", levels: int) -> list[_Signal]:
    """Comparators in stage 0, gates from stage 1 on, outputs in the stage after the last gate's."""
    first_gate = 1 + circuit.num_inputs
    stages = -(-circuit.node_depths() // levels)
    last = int(stages[circuit.outputs].max()) + 1
    signals = {0: _literal(0)}
    for node in (np.flatnonzero(circuit.is_read[1:first_gate]) + 1).tolist():
        signals[node] = body.wire(f"n{node}", _bit(circuit, node - 1), 1, 0)
    gates = zip(circuit.a.tolist(), circuit.b.tolist(), circuit.gate.tolist(), strict=True)
    for node, (a, b, gate) in enumerate(gates, first_gate):
        stage = int(stages[node])
        expression = GATE_EXPRESSIONS[gate].format(a=body.at(signals[a], stage), b=body.at(signals[b], stage))
        signals[node] = body.wire(f"n{node}", expression, 1, stage)
    outputs = []
    for number, (node, inverted) in enumerate(zip(circuit.outputs.tolist(), circuit.inverted.tolist(), strict=True)):
        if node == 0:
            outputs.append(_literal(int(inverted)))
        elif inverted:  # a net of its own, as the complement of an operand would be as wide as the sum
            outputs.append(body.wire(f"output_{number}", f"~{body.at(signals[node], last)}", 1, last))
        else:
            outputs.append(_Signal(body.at(signals[node], last), 1, last))
    return outputs


def _bit(circuit: "Circuit", index: int) -> str:
    """Of the flattened image."""
    if circuit.thresholds is None:
        return f"bits[{index}]"
    num_pixels = prod(circuit.input_shape[1:])  # of a channel
    plane, pixel = divmod(index, num_pixels)
    channel, threshold = divmod(plane, circuit.thresholds.shape[1])
    lowest = 8 * (channel * num_pixels + pixel)
    return f"pixels[{lowest + 7}:{lowest}] >= 8'd{circuit.thresholds[channel, threshold]}"


def _add_sum(body: _Body, k: int, outputs: list[_Signal]) -> _Signal:
    """The sum of one class by a balanced tree of adders; what is constant is added as one number."""
    operands = [output for output in outputs if output.stage != ALWAYS]
    constant = outputs.count(_literal(1))
    if constant or not operands:
        operands.append(_literal(constant))
    numbers = itertools.count()

    def add(operands: list[_Signal], name: str) -> _Signal:
        """Two halves, and the last operand as the carry that an adder takes in for nothing."""
        if len(operands) == 1:
            return operands[0]
        half = len(operands) // 2
        parts = [part for part in (operands[:half], operands[half:-1], operands[-1:]) if part]
        terms = [add(part, f"sum_{k}_{next(numbers)}") for part in parts]
        stage = max(term.stage for term in terms)
        largest = sum(term.largest for term in terms)
        return body.result(name, " + ".join(body.at(term, stage) for term in terms), largest, stage)

    return add(operands, f"sum_{k}")


def _add_argmax(body: _Body, sums: list[_Signal]) -> _Signal:
    """A knock-out among neighbours. The higher class needs more to win, so that the lowest does of equal ones."""
    players = [(total, _literal(k, len(sums) - 1)) for k, total in enumerate(sums)]
    numbers = itertools.count()
    while len(players) > 1:
        winners = []
        for (low, low_class), (high, high_class) in zip(players[0::2], players[1::2], strict=False):
            number, stage = next(numbers), max(0, low.stage, high.stage)
            choose = f"higher_{number} ? {{}} : {{}}"
            body.wire(f"higher_{number}", f"{body.at(high, stage)} > {body.at(low, stage)}", 1, stage)
            highest = choose.format(body.at(high, stage), body.at(low, stage))
            index = choose.format(body.at(high_class, stage), body.at(low_class, stage))
            winners.append(
                (
                    body.result(f"highest_{number}", highest, max(low.largest, high.largest), stage),
                    body.result(f"class_{number}", index, len(sums) - 1, stage),
                )
            )
        players = winners + players[2 * len(winners) :]
    return players[0][1]


def _literal(value: int, largest: int = 0) -> _Signal:
    """A constant, as wide as the largest of its kind."""
    signal = _Signal("", max(value, largest), ALWAYS)
    return signal._replace(text=f"{signal.width}'d{value}")


def _range(signal: _Signal) -> str:
    return f"[{signal.width - 1}:0] " if signal.width > 1 else ""
