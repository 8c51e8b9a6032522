"""Flax modules as pure functions: parameters are plain pytrees of dictionaries and lists."""

from collections.abc import Callable
from typing import Any

from flax import nnx

from jaxspec.models.base import Params


def structure(make: Callable[[nnx.Rngs], Any]) -> Any:
    """Return what a module is made of besides its parameters; no array is made."""
    return nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))[0]


def bound(graph: Any, params: Params) -> Any:
    """Return the module of a ``structure`` with parameters."""
    return nnx.merge(graph, _numbered(params))


def params_of(module: Any) -> Params:
    """Return the parameters of a module."""
    return _listed(nnx.to_pure_dict(nnx.split(module)[1]))


def _numbered(params: Params) -> Params:
    if isinstance(params, list):
        params = dict(enumerate(params))
    return {name: _numbered(part) for name, part in params.items()} if isinstance(params, dict) else params


def _listed(params: Params) -> Params:
    if not isinstance(params, dict):
        return params
    parts = {name: _listed(part) for name, part in params.items()}
    is_list = parts and all(isinstance(key, int) for key in parts)
    return [parts[index] for index in range(len(parts))] if is_list else parts
