"""Triton kernels of the trigonometric polynomial, `<Z_i> = F1^T C_i F2`, and its derivatives.

A program takes a block of tokens and never writes a product of (1, cos, sin) to global memory. F1
is `lead * base`: `base` holds the products over the last up to three of the first qubits and stays
in registers; `lead`, the product over the qubits before, is one number a token for each chunk of
rows of C. Lengths 3^k are padded to powers of two; the table is zero there, so that what the
padding of F1 and F2 holds does not matter as long as it is finite.

Sizes, all known at compile time:

    N, LEAD, BASE, LAST     qubits: all, and their parts, N = LEAD + BASE + LAST
    WIDTH                   N padded
    UP, VP                  rows and columns of C for a chunk and one i: 3^BASE, 3^LAST padded
    GROUP, STRIDE           expectation values worked on at a time; columns of C in memory
    BLOCK                   tokens of a program, or of one step of it
"""

# ruff: noqa: N803, RUF005  (what is known at compile time is in capitals; no unpacking here)

from typing import no_type_check

import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]


@triton.jit
@no_type_check
def digit(number, place: tl.constexpr):
    """Return a digit of a number in base 3; place 0 is the last."""
    power: tl.constexpr = 3**place
    return (number // power) % 3


@triton.jit
@no_type_check
def multiply(left, right, total, PRECISION: tl.constexpr):
    """Return `total + left @ right`, in the type of `total`."""
    return tl.dot(left, right, total, input_precision=PRECISION, out_dtype=total.dtype)


@triton.jit
@no_type_check
def choose(which, constant, cosine, sine):
    """Return the factor that a digit stands for."""
    return tl.where(which == 0, constant, tl.where(which == 1, cosine, sine))


@triton.jit
@no_type_check
def columns(tile, N: tl.constexpr, WIDTH: tl.constexpr):
    """Return the first `N` columns of a tile `[BLOCK, WIDTH]`, a tuple of `[BLOCK]`."""
    which = tl.arange(0, WIDTH)[None, :]
    result = ()
    for q in tl.static_range(N):
        result = result + (tl.sum(tl.where(which == q, tile, 0.0), 1),)
    return result


@triton.jit
@no_type_check
def load(turns, row, tokens, N: tl.constexpr):
    """Return the cosines and the sines of tokens, tuples of `[BLOCK]`.

    Past the last token the last one is read again: what meets it there is weighted by 0.
    """
    place = turns + tl.minimum(row, tokens - 1) * N
    cosines = ()
    sines = ()
    for q in tl.static_range(N):
        cosines = cosines + (tl.load(place + q),)
        sines = sines + (tl.load(place + tokens * N + q),)
    return cosines, sines


@triton.jit
@no_type_check
def products(cosines, sines, FIRST: tl.constexpr, COUNT: tl.constexpr, WIDTH: tl.constexpr):
    """Return the products over `COUNT` qubits from `FIRST`, `[BLOCK, WIDTH]`."""
    column = tl.arange(0, WIDTH)[None, :]
    result = choose(digit(column, COUNT - 1), 1.0, cosines[FIRST][:, None], sines[FIRST][:, None])
    for k in tl.static_range(1, COUNT):
        cosine, sine = cosines[FIRST + k][:, None], sines[FIRST + k][:, None]
        result *= choose(digit(column, COUNT - 1 - k), 1.0, cosine, sine)
    return result


@triton.jit
@no_type_check
def slope(
    cosines,
    sines,
    FIRST: tl.constexpr,
    COUNT: tl.constexpr,
    WIDTH: tl.constexpr,
    OWN: tl.constexpr,
):
    """Return the derivatives of `products` in the angle of its qubit number `OWN`."""
    column = tl.arange(0, WIDTH)[None, :]
    cosine, sine = cosines[FIRST + OWN][:, None], sines[FIRST + OWN][:, None]
    result = choose(digit(column, COUNT - 1 - OWN), 0.0, -sine, cosine)
    for k in tl.static_range(COUNT):
        if k != OWN:
            cosine, sine = cosines[FIRST + k][:, None], sines[FIRST + k][:, None]
            result *= choose(digit(column, COUNT - 1 - k), 1.0, cosine, sine)
    return result


@triton.jit
@no_type_check
def leading(cosines, sines, chunk, LEAD: tl.constexpr):
    """Return the product over the leading qubits that belongs to a chunk, `[BLOCK]`."""
    result = choose(digit(chunk, LEAD - 1), 1.0, cosines[0], sines[0])
    for k in tl.static_range(1, LEAD):
        result *= choose(digit(chunk, LEAD - 1 - k), 1.0, cosines[k], sines[k])
    return result


@triton.jit
@no_type_check
def leading_slope(cosines, sines, chunk, LEAD: tl.constexpr, OWN: tl.constexpr):
    """Return the derivative of `leading` in the angle of qubit `OWN`."""
    result = choose(digit(chunk, LEAD - 1 - OWN), 0.0, -sines[OWN], cosines[OWN])
    for k in tl.static_range(LEAD):
        if k != OWN:
            result *= choose(digit(chunk, LEAD - 1 - k), 1.0, cosines[k], sines[k])
    return result


@triton.jit(do_not_specialize=("tokens",))
@no_type_check
def forward(
    angles,  # [tokens, N]
    table,  # [3^LEAD * UP, STRIDE]
    values,  # [tokens, N]: <Z_i>
    turns,  # [2, tokens, N]: cosines and sines, written where TRAIN
    slopes,  # [tokens, LAST, N]: derivatives in the last angles, written where TRAIN
    tokens,
    N: tl.constexpr,
    LEAD: tl.constexpr,
    BASE: tl.constexpr,
    LAST: tl.constexpr,
    WIDTH: tl.constexpr,
    UP: tl.constexpr,
    VP: tl.constexpr,
    GROUP: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
    TRAIN: tl.constexpr,
):
    """Work out the <Z_i> of a block of tokens and one group of i."""
    tokens = tokens.to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    group = tl.program_id(1)
    live = row < tokens
    place = row[:, None] * N + tl.arange(0, WIDTH)[None, :]
    inside = live[:, None] & (tl.arange(0, WIDTH)[None, :] < N)
    angle = tl.load(angles + place, mask=inside, other=0.0)
    cosine, sine = tl.cos(angle), tl.sin(angle)
    if TRAIN:  # every group writes the same numbers
        tl.store(turns + place, cosine, mask=inside)
        tl.store(turns + tokens * N + place, sine, mask=inside)
    cosines, sines = columns(cosine, N, WIDTH), columns(sine, N, WIDTH)

    base = products(cosines, sines, LEAD, BASE, UP)
    across = tl.arange(0, GROUP * VP)
    tile = table + group * GROUP * VP + tl.arange(0, UP)[:, None] * STRIDE + across[None, :]
    partial = tl.zeros((BLOCK, GROUP * VP), dtype=angles.dtype.element_ty)
    for chunk in range(3**LEAD):
        f1 = base
        if LEAD > 0:
            f1 = base * leading(cosines, sines, chunk, LEAD)[:, None]
        partial = multiply(f1, tl.load(tile), partial, PRECISION)
        tile += UP * STRIDE

    partial = tl.reshape(partial, (BLOCK, GROUP, VP))
    i = group * GROUP + tl.arange(0, GROUP)[None, :]
    wanted = live[:, None] & (i < N)
    f2 = products(cosines, sines, LEAD + BASE, LAST, VP)
    value = tl.sum(partial * f2[:, None, :], 2)
    tl.store(values + row[:, None] * N + i, value, mask=wanted)
    if TRAIN:
        for k in tl.static_range(LAST):
            f2 = slope(cosines, sines, LEAD + BASE, LAST, VP, k)
            value = tl.sum(partial * f2[:, None, :], 2)
            tl.store(slopes + (row[:, None] * LAST + k) * N + i, value, mask=wanted)


@triton.jit(do_not_specialize=("tokens",))
@no_type_check
def backward_angles(
    turns,  # [2, tokens, N]
    slopes,  # [tokens, LAST, N]
    table,  # [3^LEAD * UP, STRIDE]
    grad,  # [tokens, N]: in <Z_i>
    pulled,  # [tokens, N]: in the angles, written
    tokens,
    N: tl.constexpr,
    LEAD: tl.constexpr,
    BASE: tl.constexpr,
    LAST: tl.constexpr,
    UP: tl.constexpr,
    VP: tl.constexpr,
    GROUP: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Work out the gradient in all angles of a block of tokens."""
    tokens = tokens.to(tl.int64)
    row = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = row < tokens
    cosines, sines = load(turns, row, tokens, N)

    last = products(cosines, sines, LEAD + BASE, LAST, VP)
    base = products(cosines, sines, LEAD, BASE, UP)
    across = tl.arange(0, GROUP * VP)
    down = tl.arange(0, UP)
    own = tl.arange(0, 4)[None, :]  # LEAD is at most 4
    in_base = tl.zeros((BLOCK, UP), dtype=grad.dtype.element_ty)
    in_lead = tl.zeros((BLOCK, 4), dtype=grad.dtype.element_ty)
    for chunk in range(3**LEAD):
        f1_grad = tl.zeros((BLOCK, UP), dtype=grad.dtype.element_ty)
        for group in range(STRIDE // (GROUP * VP)):
            i = group * GROUP + tl.arange(0, GROUP)[None, :]
            weight = tl.load(grad + row[:, None] * N + i, mask=live[:, None] & (i < N), other=0.0)
            outer = tl.reshape(weight[:, :, None] * last[:, None, :], (BLOCK, GROUP * VP))
            tile = table + (chunk * UP + down[None, :]) * STRIDE
            tile = tl.load(tile + group * GROUP * VP + across[:, None])
            f1_grad = multiply(outer, tile, f1_grad, PRECISION)
        if LEAD > 0:
            along = tl.sum(f1_grad * base, 1)
            for k in tl.static_range(LEAD):
                part = along * leading_slope(cosines, sines, chunk, LEAD, k)
                in_lead += tl.where(own == k, part[:, None], 0.0)
            f1_grad *= leading(cosines, sines, chunk, LEAD)[:, None]
        in_base += f1_grad

    for k in tl.static_range(LEAD):
        tl.store(pulled + row * N + k, tl.sum(tl.where(own == k, in_lead, 0.0), 1), mask=live)
    for k in tl.static_range(BASE):
        total = tl.sum(in_base * slope(cosines, sines, LEAD, BASE, UP, k), 1)
        tl.store(pulled + row * N + LEAD + k, total, mask=live)
    for k in tl.static_range(LAST):
        total = tl.zeros((BLOCK,), dtype=grad.dtype.element_ty)
        for i in tl.static_range(N):
            weight = tl.load(grad + row * N + i, mask=live, other=0.0)
            total += weight * tl.load(slopes + (row * LAST + k) * N + i, mask=live, other=0.0)
        tl.store(pulled + row * N + LEAD + BASE + k, total, mask=live)


@triton.jit(do_not_specialize=("tokens", "share"))
@no_type_check
def backward_table(
    turns,  # [2, tokens, N]
    grad,  # [tokens, N]: in <Z_i>
    shares,  # [splits, 3^LEAD * UP, STRIDE]: in the table, written; their sum is the gradient
    tokens,
    share,  # tokens of one split, a multiple of BLOCK
    N: tl.constexpr,
    LEAD: tl.constexpr,
    BASE: tl.constexpr,
    LAST: tl.constexpr,
    UP: tl.constexpr,
    VP: tl.constexpr,
    GROUP: tl.constexpr,
    STRIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Work out the gradient in one tile of the table, for one share of the tokens.

    With leading qubits that is three tiles, one for each factor of the last of them: they share F2
    and most of F1.
    """
    parent = tl.program_id(0)
    group = tl.program_id(1)
    split = tl.program_id(2)
    i = group * GROUP + tl.arange(0, GROUP)[None, :]
    by_one = tl.zeros((UP, GROUP * VP), dtype=grad.dtype.element_ty)
    by_cosine = tl.zeros((UP, GROUP * VP), dtype=grad.dtype.element_ty)
    by_sine = tl.zeros((UP, GROUP * VP), dtype=grad.dtype.element_ty)
    tokens = tokens.to(tl.int64)
    begin = split.to(tl.int64) * share
    for step in range(share // BLOCK):
        row = begin + step * BLOCK + tl.arange(0, BLOCK)
        live = row < tokens
        cosines, sines = load(turns, row, tokens, N)
        weight = tl.load(grad + row[:, None] * N + i, mask=live[:, None] & (i < N), other=0.0)
        f2 = products(cosines, sines, LEAD + BASE, LAST, VP)
        outer = tl.reshape(weight[:, :, None] * f2[:, None, :], (BLOCK, GROUP * VP))
        f1 = products(cosines, sines, LEAD, BASE, UP)
        if LEAD > 1:
            f1 *= leading(cosines, sines, parent, LEAD - 1)[:, None]
        by_one = multiply(tl.trans(f1), outer, by_one, PRECISION)
        if LEAD > 0:
            cosine, sine = cosines[LEAD - 1][:, None], sines[LEAD - 1][:, None]
            by_cosine = multiply(tl.trans(f1 * cosine), outer, by_cosine, PRECISION)
            by_sine = multiply(tl.trans(f1 * sine), outer, by_sine, PRECISION)
    place = shares + split.to(tl.int64) * (3**LEAD * UP * STRIDE) + group * GROUP * VP
    place += tl.arange(0, UP)[:, None] * STRIDE + tl.arange(0, GROUP * VP)[None, :]
    if LEAD > 0:
        place += parent * (3 * UP * STRIDE)
        tl.store(place + UP * STRIDE, by_cosine)
        tl.store(place + 2 * UP * STRIDE, by_sine)
    tl.store(place, by_one)
