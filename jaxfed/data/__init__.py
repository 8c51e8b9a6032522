"""Federated data: natural clients, and the flat arrays that rounds draw their batches from."""

from jaxfed.data.batches import ClientData, Epochs, Steps, client_data

__all__ = ["ClientData", "Epochs", "Steps", "client_data"]
