"""INT8 weights that every instruction set multiplies exactly, and the rotation that spreads outliers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ROTATED_TOGETHER = 16


def quantize_columns(weights: NDArray[Any]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Integers and one scale per column, by which unsigned bytes times these weights are exact everywhere.

    AVX2 multiplies bytes in neighbouring pairs of rows (0 and 1, 2 and 3, …) and keeps the sum of the two products in 16 bits, saturated.
    A pair of one sign must therefore not weigh more than 128: 255 × 128 < 2^15. The scale is chosen for the heaviest pair, with 1 left for
    rounding; pairs of unlike signs are never too heavy. That costs less than a whole bit, as a halved range would.

    Args:
        weights: float [k, n].

    Returns:
        int8 [k, n] and float32 [n]; their product is the weights, off by at most half a scale.

    Source: instruction VPMADDUBSW; onnxruntime/core/mlas/lib/x86_64/QgemmU8X8KernelAvx2.S and QgemvU8S8KernelAvx2.S, which interleave
    rows in this order.
    """
    import numpy as np

    padded = np.asarray(weights, np.float64)
    if len(padded) % 2:
        padded = np.concatenate([padded, np.zeros_like(padded[:1])])
    pairs = padded.reshape(-1, 2, padded.shape[1])
    heaviest = np.maximum(pairs.clip(min=0).sum(axis=1), -pairs.clip(max=0).sum(axis=1)).max(axis=0)
    scale = (np.where(heaviest > 0, heaviest, 1) / 127).astype(np.float32)
    return np.rint(weights / scale.astype(np.float64)).astype(np.int8), scale


def rotation(size: int) -> NDArray[np.float32]:
    """A matrix of +1 and -1 by which each number of a row is spread evenly over the whole row; its transpose / size is its inverse.

    A few channels of a transformer's hidden state are far larger than the rest and would take the scale for themselves. Multiplied by this
    matrix, in groups, no number stands out; with the inverse in the weights the product stays the same.

    Args:
        size: a power of two.

    Returns:
        float32 [size, size].

    Source: Sylvester's construction of Hadamard matrices; Ashkboos et al., QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs, 2024.
    """
    import numpy as np

    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def unrotated(weights: NDArray[Any], size: int) -> NDArray[np.float64]:
    """The weights for activations that were rotated in groups of `size`: float [k, n], k a multiple of the size."""
    import numpy as np

    # Sums of numbers of 24 bits in 53: the same in whatever order a library adds them, so that builds don't depend on threads.
    groups = np.asarray(weights, np.float64).reshape(-1, size, weights.shape[1])
    result: NDArray[np.float64] = (rotation(size).T.astype(np.float64) @ groups / size).reshape(weights.shape)
    return result
