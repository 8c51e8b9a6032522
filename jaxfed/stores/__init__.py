"""Where clients' rows lie between the rounds they are drawn in: on the mesh, in host memory or on disk."""

from jaxfed.stores.device import DeviceStore
from jaxfed.stores.population import DiskStore, HostStore, Population

__all__ = ["DeviceStore", "DiskStore", "HostStore", "Population"]
