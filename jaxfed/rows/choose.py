"""Engines play rounds: with the rows on the mesh, or fetched a round ahead from host memory or disk."""

from jaxfed.rows import DeviceStore, DiskStore, HostStore
from jaxfed.rows.engine import Draw, Engine, Start
from jaxfed.rows.mesh_engine import MeshEngine
from jaxfed.rows.staged_engine import StagedEngine

AnyStore = DeviceStore | HostStore | DiskStore


def engine(store: AnyStore, start: Start, longest_block: int) -> Engine:
    """The engine for a store; one that plays many rounds as one program takes at most `longest_block` of them."""
    if isinstance(store, DeviceStore):
        return MeshEngine(store, start, longest_block)
    return StagedEngine(store, start)


__all__ = ["AnyStore", "Draw", "Engine", "MeshEngine", "StagedEngine", "Start", "engine"]
