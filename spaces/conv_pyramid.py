"""The family of Petersen et al. 2024: logic conv blocks of ever more channels, then dense layers that halve.

Block i has k * multipliers[i] kernels of 2**tree_depth leaves and 2x2 OR-pooling. Blocks are padded to keep the image's
size, the first one only where the family says so.
Dense widths halve down to num_classes * outputs_per_class, widened where the first could not read all its inputs.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from convlogic_core import ConvSpec, DenseSpec, ModelSpec

from .candidate import Candidate, DataSpec, TrainSpec
from .space import Choice, InputInfo, Parameter, Range, Value


@dataclass(frozen=True)
class ConvPyramid:
    """What distinguishes one such family from another.

    Args:
        multipliers: channels of each block in units of k, for the deepest network.
        num_blocks: choices, rising; the last is len(multipliers).
        kernels: choices of every block's kernel size.
        pads_first: the first block is padded too.
    """

    multipliers: tuple[int, ...]
    num_blocks: tuple[int, ...]
    kernels: tuple[int, ...]
    pads_first: bool

    def parameters(
        self,
        k: Range,
        outputs_per_class: Range,
        batch_sizes: tuple[int, ...],
        estimators: tuple[str, ...],
        shifts: tuple[int, ...] = (),
    ) -> tuple[Parameter, ...]:
        """The family's parameters; rates lie where each parametrization was seen to learn. There may be no shifts."""
        not_hard_already = tuple(estimator for estimator in estimators if estimator != "ste")
        return (
            Parameter("k", k),
            Parameter("num_blocks", Choice(self.num_blocks)),
            *(self._kernel(number) for number in range(1, len(self.multipliers) + 1)),
            Parameter("tree_depth", Choice((2, 3))),
            Parameter("num_dense", Range(1, 3)),
            Parameter("outputs_per_class", outputs_per_class),
            Parameter("dense_residual", Choice((True, False))),
            Parameter("tau_c", Range(0.2, 2.0, log=True)),
            Parameter("parametrization", Choice(("softmax", "iwp"))),
            Parameter("lr", Range(0.005, 0.05, log=True), when=("parametrization", ("softmax",))),
            Parameter("lr_iwp", Range(0.02, 0.3, log=True), when=("parametrization", ("iwp",))),
            Parameter("weight_decay", Choice((0.0, 0.0005, 0.002))),
            Parameter("batch_size", Choice(batch_sizes)),
            Parameter("decay_fraction", Choice((0.0, 0.4))),
            Parameter("estimator", Choice(estimators)),
            # of the full budget, so that all rungs before it compare like with like
            Parameter("hard_finish", Choice((0.0, 0.2, 0.5)), when=("estimator", not_hard_already)),
            *((Parameter("shift", Choice(shifts)),) if shifts else ()),
        )

    def _kernel(self, number: int) -> Parameter:
        deep_enough = tuple(n for n in self.num_blocks if n >= number)
        when = None if deep_enough == self.num_blocks else ("num_blocks", deep_enough)
        return Parameter(f"kernel_{number}", Choice(self.kernels), when)

    def build(self, params: Mapping[str, Value], data: DataSpec, info: InputInfo, epochs: int) -> Candidate:
        """The candidate of one set of parameters.

        Raises:
            ValueError: the image is too small for the blocks.
        """

        def number(name: str) -> float:
            return float(params[name])

        def integer(name: str) -> int:
            return int(params[name])

        channels, rows, columns = info.image_shape
        k, tree_depth = integer("k"), integer("tree_depth")
        conv = tuple(
            ConvSpec(
                out_channels=k * self.multipliers[i],
                kernel=integer(f"kernel_{i + 1}"),
                padding=integer(f"kernel_{i + 1}") // 2 if i > 0 or self.pads_first else 0,
                tree_depth=tree_depth,
            )
            for i in range(integer("num_blocks"))
        )
        input_shape = (channels * data.num_thresholds, rows, columns)
        flat = ModelSpec(input_shape, conv, (), num_classes=1, tau=1.0).flat_features
        num_dense = integer("num_dense")
        # the first has outputs_per_class * 2**(num_dense - 1) gates a class and must read all `flat` features
        narrowest = math.ceil(flat / (2**num_dense * info.num_classes))
        outputs_per_class = max(integer("outputs_per_class"), narrowest)
        residual = bool(params["dense_residual"])
        dense = tuple(
            DenseSpec(info.num_classes * outputs_per_class * 2**i, residual_init=residual)
            for i in reversed(range(num_dense))
        )
        parametrization = str(params["parametrization"])
        model = ModelSpec(
            input_shape=input_shape,
            conv=conv,
            dense=dense,
            num_classes=info.num_classes,
            tau=round(number("tau_c") * math.sqrt(outputs_per_class), 6),
            parametrization=parametrization,
        )
        train = TrainSpec(
            lr=number("lr" if parametrization == "softmax" else "lr_iwp"),
            batch_size=integer("batch_size"),
            epochs=epochs,
            weight_decay=number("weight_decay"),
            decay_fraction=number("decay_fraction"),
            estimator=str(params["estimator"]),
            hard_finish=float(params.get("hard_finish", 0.0)),
            shift=int(params.get("shift", 0)),
        )
        return Candidate(data, model, train)
