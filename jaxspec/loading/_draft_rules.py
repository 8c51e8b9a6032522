"""Rules between published arrays and the parameters of drafts, by kind of network."""

from collections.abc import Callable
from typing import Any

import jax

from jaxspec.drafts.eagle import Eagle
from jaxspec.drafts.eagle3 import Eagle3
from jaxspec.drafts.hydra import Hydra
from jaxspec.drafts.medusa import Medusa
from jaxspec.drafts.modules import ModuleNetwork
from jaxspec.loading._llama import LAYER, LLAMA_WEIGHTS
from jaxspec.loading.rules import Rule, same

#: The leaf that has a rule of its own: the draft's vocabulary.
INDEX = "index"


def leaves_of(network: ModuleNetwork) -> dict[str, Any]:
    """Return the shape of every parameter, by name."""
    shapes = jax.eval_shape(lambda: network.init(jax.random.key(0)))
    return {name_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)}


def name_of(path: tuple) -> str:
    """Return the name of a leaf."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def rule_for(network: ModuleNetwork, leaf: str) -> Rule:
    """Return the rule of a leaf, with the canonical published names."""
    return RULES[type(network)](network, leaf)


def _layer(leaf: str, prefix: str) -> Rule:
    """Return the rule of a leaf ``layers.i.…``: Llama's."""
    _, number, rest = leaf.split(".", 2)
    rule = LLAMA_WEIGHTS[rest]
    own = tuple(name.replace(LAYER, prefix).format(number) for name in rule.names)
    return rule._replace(names=own)


def _eagle3(network: Eagle3, leaf: str) -> Rule:
    if leaf.startswith("layers."):
        return _layer(leaf, "layers.{}.")
    if leaf.startswith("fusion.tap_norms."):
        return same(f"fc_norm.{leaf.split('.')[2]}.weight")
    return same(
        {
            "embedding": "embed_tokens.weight",
            "fusion.matrix": "fc.weight",
            "fusion.input_norm.scale": "input_norm.weight",
            "hidden_norm.scale": "layers.0.hidden_norm.weight",
            "final_norm.scale": "norm.weight",
            "head": "lm_head.weight",
        }[leaf]
    )


def _eagle(network: Eagle, leaf: str) -> Rule:
    if leaf.startswith("layers."):
        return _layer(leaf, "layers.{}.")
    return same(
        {
            "embedding": "embed_tokens.weight",
            "fc": "fc.weight",
            "fc_bias": "fc.bias",
            "embedding_norm.scale": "enorm.weight",
            "hidden_norm.scale": "hnorm.weight",
            "final_norm.scale": "pre_lm_head_layernorm.weight",
            "head": "lm_head.weight",
        }[leaf]
    )


def _medusa(network: Medusa, leaf: str) -> Rule:
    kind, *numbers = leaf.split(".")
    if kind == "heads":
        return same(f"lm_heads.{numbers[0]}.weight")
    return same(f"blocks.{numbers[0]}.layers.{numbers[1]}.{numbers[2]}" if kind == "blocks" else "input_norm.weight")


def _hydra(network: Hydra, leaf: str) -> Rule:
    if leaf.startswith("layers."):
        return _layer(leaf, "prefix_embeding_layer.layers.{}.")
    kind, number, part, *_ = (*leaf.split("."), "", "")
    part = part or {"head_biases": "bias"}.get(kind, "weight")
    return same(
        {
            "embedding": "input_embed_fn.weight",
            "first": f"hydra_mlp.{number}.0.linear.{part}",
            "residual": f"hydra_mlp.{number}.0.res_connection.{part}",
            "inner": f"hydra_mlp.{number}.1.linear.{part}",
            "heads": f"hydra_lm_head.{number}.{part}",
            "head_biases": f"hydra_lm_head.{number}.{part}",
            "final_norm": "prefix_embeding_layer.norm.weight",
            "fusion": "input_norm.weight",
        }[kind]
    )


#: From a kind of network and a leaf to its rule.
RULES: dict[type, Callable[[Any, str], Rule]] = {Eagle3: _eagle3, Eagle: _eagle, Medusa: _medusa, Hydra: _hydra}
