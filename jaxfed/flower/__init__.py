"""Real clients through Flower: any algorithm as a ClientApp and a ServerApp, with the results of `jaxfed.simulate`.

Needs the extra "flower". `client_app` is what every SuperNode runs, `server_app` (or `serve` inside a ServerApp of your
own) what the SuperLink runs. A client's row never leaves its disk; the server keeps running sums and, for every client,
the last round in which its reply was counted.
"""

try:
    import flwr  # noqa: F401
except ImportError as missing:
    raise ImportError('expected flwr for jaxfed.flower; pip install "jaxfed-jaxspec[flower]"') from missing

from jaxfed.flower._client import client_app
from jaxfed.flower._deployment import Replies
from jaxfed.flower._records import RefusedError, pack, unpack
from jaxfed.flower._server import serve, server_app

__all__ = ["RefusedError", "Replies", "client_app", "pack", "serve", "server_app", "unpack"]
