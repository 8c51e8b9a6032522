"""Where clients' rows lie between the rounds they are drawn in."""

from jaxfed.stores.device import DeviceStore, Store

__all__ = ["DeviceStore", "Store"]
