"""Engines play rounds: with the rows on the mesh, or fetched a round ahead from host memory or disk."""

from jaxfed.engines.base import Draw, Engine, Start
from jaxfed.engines.mesh import MeshEngine
from jaxfed.engines.staged import StagedEngine
from jaxfed.stores import DeviceStore, DiskStore, HostStore

AnyStore = DeviceStore | HostStore | DiskStore


def engine(store: AnyStore, start: Start, longest_block: int) -> Engine:
    """The engine for a store; one that plays many rounds as one program takes at most `longest_block` of them."""
    if isinstance(store, DeviceStore):
        return MeshEngine(store, start, longest_block)
    return StagedEngine(store, start)


__all__ = ["AnyStore", "Draw", "Engine", "MeshEngine", "StagedEngine", "Start", "engine"]
