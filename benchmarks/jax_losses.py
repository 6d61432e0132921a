"""The outer step of one task in JAX: a scalar whose gradient is the hypergradient."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from grid import Cell
from jax import Array, lax
from jax_network import Parameters, features, logits
from ours import CG_STEPS, LAM, MULTIPLIER, RHO, STEP_SIZE, prox

Task = tuple[Array, Array, Array, Array]
"""Support images and labels, query images and labels."""
Loss = Callable[[Parameters], Array]


class Losses(NamedTuple):
    """G and F of one task, as functions of what adapts, and where that starts."""

    inner: Loss
    outer: Loss
    start: Parameters


def objective(cell: Cell, parameters: Parameters, task: Task) -> Array:
    """A scalar whose gradient over the parameters is the hypergradient of the cell's method.

    Args:
        cell: the configuration.
        parameters: all outer variables.
        task: one task.
    """
    losses = _losses(cell, parameters, task)
    if cell.method in ("second", "first"):
        gradient = jax.grad(losses.inner)
        if cell.method == "first":
            gradient = _stopped(gradient)
        return losses.outer(_adapt(gradient, losses.start, cell.steps))
    constant = _losses(cell, lax.stop_gradient(parameters), task)
    if cell.method == "implicit":
        v = _adapt(jax.grad(constant.inner), constant.start, cell.steps)
        return _implicit(losses, constant, v)
    gradient = jax.grad(partial(_penalised, constant, lam=LAM))
    v = _adapt(gradient, constant.start, cell.steps)
    return _penalised(losses, v, lam=0.0)


def _losses(cell: Cell, parameters: Parameters, task: Task) -> Losses:
    """Where the head alone adapts, the features are computed here, once."""
    support_x, support_y, query_x, query_y = task
    start = parameters
    if cell.adapted == "head":
        start = {name: p for name, p in parameters.items() if name.startswith("head.")}
        support_x, query_x = (features(cell, parameters, x) for x in (support_x, query_x))
        scale = support_x.shape[1] ** -0.5
        support_x, query_x = scale * support_x, scale * query_x

    def loss(v: Parameters, x: Array, y: Array) -> Array:
        x = features(cell, v, x) if cell.adapted == "all" else x
        chosen = jnp.take_along_axis(jax.nn.log_softmax(logits(cell, v, x)), y[:, None], axis=1)
        return -chosen.mean()

    def inner(v: Parameters) -> Array:
        distance = jax.tree.map(jnp.subtract, v, start)
        return loss(v, support_x, support_y) + 0.5 * prox(cell) * _dot(distance, distance)

    return Losses(inner, lambda v: loss(v, query_x, query_y), start)


def _adapt(gradient: Callable[[Parameters], Parameters], v: Parameters, steps: int) -> Parameters:
    def step(v: Parameters, _: None) -> tuple[Parameters, None]:
        return jax.tree.map(lambda p, g: p - STEP_SIZE * g, v, gradient(v)), None

    found: Parameters = lax.scan(step, v, None, length=steps)[0]
    return found


def _stopped(
    gradient: Callable[[Parameters], Parameters],
) -> Callable[[Parameters], Parameters]:
    return lambda v: lax.stop_gradient(gradient(lax.stop_gradient(v)))


def _penalised(losses: Losses, v: Parameters, *, lam: float) -> Array:
    """``F + <ν, G_v> + ρ/2 |G_v|² + λ G``."""
    g, g_v = jax.value_and_grad(losses.inner)(v)
    linear = sum(p.sum() for p in jax.tree.leaves(g_v))
    return losses.outer(v) + MULTIPLIER * linear + 0.5 * RHO * _dot(g_v, g_v) + lam * g


def _implicit(losses: Losses, constant: Losses, v: Parameters) -> Array:
    """A scalar whose gradient over the outer variables is ``F_u - G_uv G_vv^-1 F_v``."""

    def hessian_product(w: Parameters) -> Parameters:
        found: Parameters = jax.jvp(jax.grad(constant.inner), (v,), (w,))[1]
        return found

    q = _conjugate_gradient(hessian_product, jax.grad(constant.outer)(v))
    return losses.outer(v) - _dot(q, jax.grad(losses.inner)(v))


def _conjugate_gradient(product: Callable[[Parameters], Parameters], b: Parameters) -> Parameters:
    """As many steps as the other contenders take; none after a direction without curvature."""

    def step(
        _: int, state: tuple[Parameters, Parameters, Parameters, Array, Array]
    ) -> tuple[Parameters, Parameters, Parameters, Array, Array]:
        q, residual, direction, squared, active = state
        moved = product(direction)
        curvature = _dot(direction, moved)
        active = active & (curvature > 0)
        length = jnp.where(active, squared / jnp.where(active, curvature, 1.0), 0.0)
        q = jax.tree.map(lambda p, d: p + length * d, q, direction)
        residual = jax.tree.map(lambda r, m: r - length * m, residual, moved)
        new_squared = _dot(residual, residual)
        ratio = new_squared / squared
        direction = jax.tree.map(lambda r, d: r + ratio * d, residual, direction)
        return q, residual, direction, new_squared, active

    start = jax.tree.map(jnp.zeros_like, b), b, b, _dot(b, b), jnp.array(True)
    found: Parameters = lax.fori_loop(0, CG_STEPS, step, start)[0]
    return found


def _dot(a: Parameters, b: Parameters) -> Array:
    """Inner product of two trees."""
    return sum(jax.tree.leaves(jax.tree.map(lambda p, q: (p * q).sum(), a, b)))
