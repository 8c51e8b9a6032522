"""Where programs run: meshes, shardings, two processes, and the channel between target and draft."""

from jaxspec.devices.sharding import Placement, default_placement, mesh_of

__all__ = ["Placement", "default_placement", "mesh_of"]
