"""Which slot of a table holds which client's row, and which slots a checkpoint still needs."""

import numpy as np


class Slots:
    """A map id → slot that hands out slots on first use and never overwrites what a checkpoint refers to.

    A slot that a kept checkpoint refers to is locked: the client's next row goes to another slot, and the old one is
    free again once no kept checkpoint refers to it. So a resumed run reads the rows of its checkpoint.

    Attributes:
        of_client: slot of every client, int32 [N]; −1 for a client that was never written.
        size: slots that exist, used or free.
    """

    def __init__(self, num_clients: int) -> None:
        self.of_client = np.full(num_clients, -1, np.int32)
        self.size = 0
        self._free: list[int] = []
        self._kept: dict[int, np.ndarray] = {}
        self._locked: set[int] = set()

    def assign(self, ids: np.ndarray) -> np.ndarray:
        """Return slots [n] for new rows of clients `ids` [n], all different."""
        slots = self.of_client[ids]
        for at in np.flatnonzero([slot < 0 or slot in self._locked for slot in slots.tolist()]):
            slots[at] = self._take()
        self.of_client[ids] = slots
        return slots

    def _take(self) -> int:
        if self._free:
            return self._free.pop()
        self.size += 1
        return self.size - 1

    def keep(self, step: int, of_client: np.ndarray | None = None) -> None:
        """Lock the slots of checkpoint `step`: those in use now, or those of its map `of_client`."""
        held = self.of_client if of_client is None else of_client
        self._kept[step] = held[held >= 0]
        self.size = max(self.size, int(self._kept[step].max(initial=-1)) + 1)
        self._refresh()

    def release(self, oldest: int) -> None:
        """Unlock the slots of checkpoints before step `oldest`."""
        self._kept = {step: slots for step, slots in self._kept.items() if step >= oldest}
        self._refresh()

    def restore(self, of_client: np.ndarray) -> None:
        """Continue with a checkpoint's map."""
        self.of_client = np.array(of_client, np.int32)
        self.size = max(self.size, int(self.of_client.max(initial=-1)) + 1)
        self._refresh()

    def _refresh(self) -> None:
        self._locked = {slot for slots in self._kept.values() for slot in slots.tolist()}
        used = self._locked.union(self.of_client[self.of_client >= 0].tolist())
        self._free = [slot for slot in range(self.size - 1, -1, -1) if slot not in used]
