"""The embedded pair with two of the target's layers: for tests of commands that do not depend on the text."""

from dataclasses import replace
from functools import cache

from jaxspec import Model, zoo
from jaxspec.models import network

LAYERS, EXIT = 2, 1


@cache
def pair() -> zoo.Pair:
    whole = zoo.load()
    config = replace(whole.target.network.config, num_layers=LAYERS)
    params = {**whole.target.params, "layers": whole.target.params["layers"][:LAYERS]}
    return whole._replace(target=Model(network(config), params, whole.target.text), exit_layer=EXIT)
