"""The best approximation of a matrix by two thin ones, from a randomised decomposition.

N. Halko, P.-G. Martinsson, J. A. Tropp, "Finding Structure with Randomness", 2011,
arXiv:0909.4061, algorithms 4.4 and 5.1: a few random directions are sharpened by multiplying with
the matrix and its transpose, and the small matrix seen in them is decomposed exactly.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from loci.errors import ParameterError

OVERSAMPLE, SHARPENINGS = 8, 2  # directions beside those asked for, and passes over the matrix

# Shapes: N rows, K columns, r rank, q directions.


def low_rank(
    matrix_NK: Tensor, rank: int, *, generator: Generator | None = None, exact: bool = False
) -> tuple[Tensor, Tensor]:
    """Return (left [N, r], right [r, K]) whose product is close to the matrix.

    The singular values are shared evenly, a root to each side. The same generator state gives the
    same factors; None draws as a generator with seed 0 does.

    Args:
        exact: decompose the whole matrix instead; slow for large ones.

    Raises:
        ParameterError: if the rank is not between 1 and the smaller side.
    """
    rows, columns = matrix_NK.shape
    if not 1 <= rank <= min(rows, columns):
        raise ParameterError(
            f"the rank does not fit a matrix {rows} x {columns}",
            value=rank,
            allowed=f"1 to {min(rows, columns)}",
        )
    count = min(rank + OVERSAMPLE, rows, columns)
    if exact or 2 * count >= min(rows, columns):
        u_NN, values, v_KK = torch.linalg.svd(matrix_NK, full_matrices=False)
    else:
        if generator is None:
            generator = Generator().manual_seed(0)
        seen_Nq = matrix_NK @ torch.randn(columns, count, generator=generator)
        basis_Nq = torch.linalg.qr(seen_Nq)[0]
        for _ in range(SHARPENINGS):
            basis_Kq = torch.linalg.qr(matrix_NK.t() @ basis_Nq)[0]
            basis_Nq = torch.linalg.qr(matrix_NK @ basis_Kq)[0]
        small_qq, values, v_KK = torch.linalg.svd(basis_Nq.t() @ matrix_NK, full_matrices=False)
        u_NN = basis_Nq @ small_qq
    roots_r = values[:rank].sqrt()
    return u_NN[:, :rank] * roots_r, roots_r.unsqueeze(-1) * v_KK[:rank]
