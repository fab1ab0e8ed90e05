"""Observables carried back through noiseless layers, with a gradient that keeps none of them.

Rotations are orthogonal on Pauli strings and CNOTs permute them. So what the observables were at
any layer is worked out again from what they became, beside the gradient that goes back the same
way, and memory does not grow with depth.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from medqua.core.quantum.exact.pauli import GROUP, Permutation, apply_each, kron


def sweep(
    observables: Float[Tensor, "m strings"],
    maps: Float[Tensor, "layers n 4 4"],
    permutation: Permutation,
) -> Float[Tensor, "m strings"]:
    """Carry observables from after some layers to before them.

    Args:
        observables: Coefficients of Pauli strings.
        maps: For each layer, in the order of the circuit, the orthogonal matrix on each qubit's
            coefficients that its rotations are.
        permutation: The CNOTs that follow the rotations of each layer.
    """
    if not len(maps):
        return observables
    carried: Tensor = _Sweep.apply(observables, maps, permutation)  # type: ignore[no-untyped-call]
    return carried


class _Sweep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, observables: Tensor, maps: Tensor, permutation: Permutation) -> Tensor:
        for layer in maps.flip(0):
            observables = apply_each(layer, permutation(observables))
        ctx.permutation = permutation
        ctx.save_for_backward(observables, maps)
        return observables

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        observables, maps = ctx.saved_tensors
        m = len(grad)
        both = torch.cat((observables, grad))
        gradients: list[Tensor] = []
        for layer in maps:
            own: list[Tensor] = []
            for first in reversed(range(0, len(layer), GROUP)):
                with torch.enable_grad():
                    group = layer[first : first + GROUP].detach().requires_grad_()
                    matrix = kron(group.unbind())
                after = both.view(2 * m, -1, len(matrix))  # as `apply_each` left it
                before = torch.bmm(matrix.detach().mT.expand(2 * m, -1, -1), after.mT)
                outer = torch.bmm(after[m:].mT, before[:m].mT).sum(0)
                own = [*torch.autograd.grad(matrix, group, outer), *own]
                both = before
            gradients += own
            both = ctx.permutation.back(both.view(2 * m, -1))
        return both[m:], torch.cat(gradients).view_as(maps), None
