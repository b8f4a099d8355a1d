"""Independent programs that read what the exports write, and circuits to write."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from convlogic_core import ConvSpec, DenseSpec, ModelSpec, build_model
from convlogic_core.circuit import Circuit
from convlogic_core.circuit.unroll import Layer
from convlogic_core.encoding import thermometer_encode


def tool(*names: str) -> str:
    """The first of these programs that is installed. Without any the test is skipped, under CI it fails."""
    for name in names:
        found = shutil.which(name)
        if found:
            return found
    missing = f"{' or '.join(names)} is not installed"
    if os.environ.get("CI") == "true":
        pytest.fail(missing)
    pytest.skip(missing)


def run_silently(folder: Path, *command: str | Path) -> None:
    """Run a program that must succeed and have nothing to warn of."""
    done = subprocess.run(list(map(str, command)), cwd=folder, capture_output=True, text=True, timeout=120)
    printed = done.stdout + done.stderr
    assert done.returncode == 0 and not printed, printed


def abc(commands: str) -> str:
    """What abc prints."""
    done = subprocess.run(
        [tool("yosys-abc", "berkeley-abc", "abc"), "-q", commands], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def yosys(folder: Path, script: str) -> None:
    """Run a script in a folder; every warning is an error."""
    run_silently(folder, tool("yosys"), "-q", "-e", ".", "-p", script)


def random_circuit(
    seed: int,
    input_shape: tuple[int, ...],
    num_gates: int,
    outputs_a_class: int,
    num_classes: int,
    thresholds: list[list[int]] | None = None,
) -> Circuit:
    """Gates of all kinds on any nodes before them; outputs that are gates, plain inputs and constants."""
    rng = np.random.default_rng(seed)
    first = 1 + int(np.prod(input_shape))
    gate = rng.integers(0, 16, num_gates, dtype=np.uint8)
    a, b = (rng.integers(0, first + np.arange(num_gates), dtype=np.int32) for _ in range(2))
    outputs = rng.integers(0, first + num_gates, outputs_a_class * num_classes, dtype=np.int32)
    inverted = rng.integers(0, 2, len(outputs)).astype(np.bool_)
    if len(outputs) > 3:
        outputs[:3] = 0, 0, 1
        inverted[:2] = True, False
    layer = Layer("dense_1", num_gates, tuple(np.bincount(gate, minlength=16).tolist()))
    levels = None if thresholds is None else np.array(thresholds, np.uint8)
    return Circuit(input_shape, a, b, gate, outputs, inverted, num_classes, 1.0, (layer,), levels)


def bits_of(circuit: Circuit, images: Tensor) -> Tensor:
    """What the circuit makes of bytes; bits stay as they are."""
    if circuit.thresholds is None:
        return images
    return thermometer_encode(images, torch.from_numpy(circuit.thresholds.copy()))


def digits_network() -> tuple[nn.Sequential, Circuit]:
    """The discrete model of random gates on 8x8 digits, and its circuit: sums of few outputs, which often tie."""
    spec = ModelSpec(
        (3, 8, 8),
        (ConvSpec(6, kernel=3, padding=1, tree_depth=2, residual_init=False),),
        (DenseSpec(160, residual_init=False), DenseSpec(120, residual_init=False)),
        num_classes=10,
        tau=3.0,
    )
    model = build_model(spec, 5).eval()
    return model, Circuit.from_model(model, spec.input_shape, torch.tensor([[64, 128, 192]], dtype=torch.uint8))


def digits_images(num: int) -> Tensor:
    """scikit-learn's digits as (num, 1, 8, 8) bytes."""
    from sklearn.datasets import load_digits

    pixels = torch.from_numpy(load_digits(return_X_y=True)[0][:num])
    return (pixels * 255 / 16).to(torch.uint8).view(-1, 1, 8, 8)


def random_images(circuit: Circuit, num: int, seed: int = 0) -> Tensor:
    """Of bytes that are often at a threshold or just below it, or of bits."""
    generator = torch.Generator().manual_seed(seed)
    if circuit.thresholds is None:
        return torch.randint(0, 2, (num, *circuit.input_shape), dtype=torch.uint8, generator=generator)
    channels = len(circuit.thresholds)
    images = torch.randint(0, 256, (num, channels, *circuit.input_shape[1:]), generator=generator)
    levels = torch.from_numpy(circuit.thresholds.astype(np.int64))
    for channel in range(channels):
        at = torch.randint(0, levels.shape[1], images[:, channel].shape, generator=generator)
        near = levels[channel][at] - torch.randint(0, 2, at.shape, generator=generator)
        images[:, channel] = torch.where(torch.rand(at.shape, generator=generator) < 0.5, near, images[:, channel])
    return images.clamp(0, 255).to(torch.uint8)


def simulate(folder: Path, text: str, images: Tensor, num_classes: int) -> tuple[list[int], list[list[int]]]:
    """Class and sums of every image as Icarus Verilog finds them.

    Pipelined modules get an image before every rising edge and are sampled at the edge that is LATENCY later.
    """
    (module,) = re.findall(r"^module (\w+) \($", text, re.MULTILINE)
    found = re.findall(r"^    (?:in|out)put \[(\d+):0\] (\w+)", text, re.MULTILINE)
    widths = {name: int(high) + 1 for high, name in found}
    (input_name,) = widths.keys() - {"class_index", "sums"}
    is_bits = input_name == "bits"
    values = [sum(v << (1 if is_bits else 8) * i for i, v in enumerate(row)) for row in images.flatten(1).tolist()]
    (folder / "images.hex").write_text("".join(f"{value:x}\n" for value in values))
    is_clocked = "input clk" in text
    sample = f"""
        repeat (dut.LATENCY + {len(values)}) begin
            image = memory[i < {len(values)} ? i : 0];
            #1 if (i >= dut.LATENCY) $display("%h %h", class_index, sums);
            clk = 1;
            #1 clk = 0;
            i = i + 1;
        end"""
    settle = f"""
        repeat ({len(values)}) begin
            image = memory[i];
            #1 $display("%h %h", class_index, sums);
            i = i + 1;
        end"""
    (folder / "testbench.v").write_text(f"""
module testbench;
    reg [{widths[input_name] - 1}:0] memory [0:{len(values) - 1}];
    reg [{widths[input_name] - 1}:0] image;
    reg clk;
    wire [{widths["class_index"] - 1}:0] class_index;
    wire [{widths["sums"] - 1}:0] sums;
    integer i;
    {module} dut ({".clk(clk), " if is_clocked else ""}.{input_name}(image), .class_index(class_index), .sums(sums));
    initial begin
        $readmemh("images.hex", memory);
        i = 0;
        clk = 0;
        {sample if is_clocked else settle}
    end
endmodule
""")
    (folder / "module.v").write_text(text)
    run_silently(folder, tool("iverilog"), "-Wall", "-g2001", "-o", "program.vvp", "testbench.v", "module.v")
    vvp = [tool("vvp"), "-n", "program.vvp"]
    done = subprocess.run(vvp, cwd=folder, capture_output=True, text=True, timeout=120, check=True)
    lines = [[int(word, 16) for word in line.split()] for line in done.stdout.splitlines()]
    width = widths["sums"] // num_classes
    return (
        [index for index, _ in lines],
        [[packed >> width * k & (1 << width) - 1 for k in range(num_classes)] for _, packed in lines],
    )
