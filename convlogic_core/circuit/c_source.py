"""A circuit as self-contained C99 that computes 64 to 512 images at a time, one to a bit of a word.

`c_program` puts the gates in order, `runtime.c` holds what is the same for every circuit: packing bytes into bits, the
highest sum, the public functions.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from ..gates import GATE_EXPRESSIONS
from .c_program import Program, schedule
from .names import safe_name

if TYPE_CHECKING:
    from .netlist import Circuit

RUNTIME: Final = Path(__file__).with_name("runtime.c")
MAX_CLASSES: Final = 2**16
PACKED_BYTES: Final = 4096  # at a time, as runtime.c says

DESCRIPTION: Final = """\
/* {name}: a logic network of {num_gates} gates, {num_inputs} input bits and {num_classes} classes.
 *
 *     int {name}_sums(const uint8_t *pixels, size_t num_images, int32_t *sums);
 *     int {name}_classify(const uint8_t *pixels, size_t num_images, uint16_t *classes);
 *
 * pixels: {image_bytes} bytes an image, image after image, {meaning}.
 * Build: cc -std=c99 -O2, or -O3 -march=native for this machine's widest words. */"""


def c_source(circuit: "Circuit", name: str = "circuit") -> str:
    """C99 with the functions NAME_sums and NAME_classify; see the header of what it returns.

    Args:
        circuit: is simplified first.
        name: of the functions' beginning, made safe for C.

    Raises:
        ValueError: more classes than a 16-bit number tells apart.
    """
    if circuit.num_classes > MAX_CLASSES:
        raise ValueError(
            f"C has room for {MAX_CLASSES:,} classes in a uint16_t, the circuit has {circuit.num_classes:,}"
        )
    circuit = circuit.simplify()
    name = safe_name(name)
    program = schedule(circuit)
    packing, inputs = _packing(circuit, program.num_places)
    places = {**inputs, **program.places}
    state_words = program.num_places + len(inputs)
    thresholds = circuit.thresholds
    num_bytes = circuit.num_inputs // (1 if thresholds is None else thresholds.shape[1])
    text = RUNTIME.read_text(encoding="utf-8")
    for mark, content in (
        (
            "description",
            DESCRIPTION.format(
                name=name,
                num_gates=circuit.num_gates,
                num_inputs=circuit.num_inputs,
                num_classes=circuit.num_classes,
                image_bytes=num_bytes,
                meaning="each 0 or 1" if thresholds is None else "channel after channel, row after row",
            ),
        ),
        (
            "constants",
            f"#define PUBLIC(function) {name}_##function\n#define IMAGE_BYTES ((size_t){num_bytes})\n"
            f"#define NUM_CLASSES {circuit.num_classes}\n"
            f"#define CLASS_BITS {max(1, (circuit.num_classes - 1).bit_length())}\n"
            f"#define SUM_BITS {program.sum_bits}\n#define STATE_WORDS {state_words} /* the sums' bits come first */",
        ),
        ("circuit", "\n".join([packing, *_parts(program, places)])),
    ):
        text = text.replace(f"/* <{mark}> */", content)
    return text


def _packing(circuit: "Circuit", next_place: int) -> tuple[str, dict[int, int]]:
    """The function that packs the input bits, and the place of each, from `next_place` on.

    Of each channel and threshold it packs the bytes from the first to the last that the circuit reads.
    """
    thresholds = np.array([[1]], np.uint8) if circuit.thresholds is None else circuit.thresholds
    planes = circuit.is_read[1 : 1 + circuit.num_inputs].reshape(thresholds.size, -1)
    calls: list[str] = []
    inputs: dict[int, int] = {}
    for plane, (threshold, bytes_read) in enumerate(zip(thresholds.reshape(-1).tolist(), planes, strict=True)):
        read = np.flatnonzero(bytes_read)
        if len(read):
            first, num = int(read[0]), int(read[-1] - read[0]) + 1
            channel = plane // thresholds.shape[1]
            start = channel * planes.shape[1] + first
            calls += [
                f"    pack(images, {start + done}, {min(PACKED_BYTES, num - done)}, {threshold}, "
                f"bits + (size_t){next_place + done} * LANES);"
                for done in range(0, num, PACKED_BYTES)
            ]
            node = 1 + plane * planes.shape[1] + first
            inputs.update((node + i, next_place + i) for i in range(num))
            next_place += num
    calls = calls or ["    (void)images, (void)bits;"]
    return "\n".join(
        ["static void pack_inputs(const uint8_t *const *images, uint64_t *bits) {", *calls, "}", ""]
    ), inputs


def _parts(program: Program, places: dict[int, int]) -> list[str]:
    """A function for each part, and the table of all."""
    lines: list[str] = []
    start = 0
    for part, end in enumerate(program.part_ends):
        lines.append(f"static NOT_INLINED void part_{part}(word *restrict s) {{")
        own = program.operations[start:end]
        names: dict[int, str] = {}
        read_here = {node for _, _, *read in own for node in read}
        if 0 in read_here:
            lines.append("    const word zero = {0};")
            names[0] = "zero"
        for number, (node, gate, a, b) in enumerate(own):
            value = GATE_EXPRESSIONS[gate].format(
                a=names.get(a) or f"s[{places[a]}]", b=names.get(b) or f"s[{places[b]}]"
            )
            if node in read_here:
                lines.append(f"    const word t{number} = {value};")
                value = names[node] = f"t{number}"
            if node in places:
                lines.append(f"    s[{places[node]}] = {value};")
        lines.append("}\n")
        start = end
    table = ", ".join(f"part_{part}" for part in range(len(program.part_ends)))
    return [*lines, f"static void (*const PARTS[])(word *) = {{{table}}};"]
