"""Parameters cast to the type of the matrix products once per step, where a network would cast them at every use.

A weight that a step uses twice (two passes of one encoder, a module that meets every view) is cast twice then, and its two
gradients are converted and reduced over the devices one by one: the compiler cannot add them up before. Cast once outside, there
is one reduction. The masters stay float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core

Array = jax.Array


def cast_alone(function: Callable[[dict[str, Array]], Any], arguments: dict[str, Array], dtype: Any) -> frozenset[str]:
    """Names of those arrays of ``arguments`` of which ``function(arguments)`` reads nothing but their values in ``dtype``.

    It is read off the traced program, inside jitted, rematerialised and repeated functions too; an array is left out where that
    cannot be told. Handed over in ``dtype``, these arrays give the same results bit for bit. Their gradients have that type, in
    which those of several uses are added.
    """
    jaxpr = jax.make_jaxpr(function)(arguments).jaxpr
    read = read_as_they_are(jaxpr, dtype)
    return frozenset(name for place, name in enumerate(sorted(arguments)) if place not in read)


def read_as_they_are(jaxpr: core.Jaxpr, dtype: Any) -> set[int]:
    """Numbers of the inputs of ``jaxpr`` that something else than a cast to ``dtype`` reads, or that are among its results."""
    found = list(jaxpr.outvars)
    for equation in jaxpr.eqns:
        if equation.primitive.name == "convert_element_type" and equation.params["new_dtype"] == dtype:
            continue
        inner, inputs = list(inner_programs(equation)), equation.invars
        if inner and all(len(each.invars) == len(inputs) for each in inner):
            found += [inputs[place] for each in inner for place in read_as_they_are(each, dtype)]
        else:
            found += inputs
    found = {variable for variable in found if isinstance(variable, core.Var)}
    return {place for place, variable in enumerate(jaxpr.invars) if variable in found}


def inner_programs(equation: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    """The programs that an equation calls."""
    for value in equation.params.values():
        for each in value if isinstance(value, tuple | list) else (value,):
            if isinstance(each, core.ClosedJaxpr | core.Jaxpr):
                yield each.jaxpr if isinstance(each, core.ClosedJaxpr) else each


def cast(arguments: dict[str, Array], names: frozenset[str], dtype: Any) -> dict[str, Array]:
    """``arguments`` with the named ones in ``dtype``."""
    return {name: value.astype(dtype) if name in names else value for name, value in arguments.items()}
