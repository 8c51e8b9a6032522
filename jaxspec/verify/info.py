"""What one step reports to the host, packed into one array: every array that the host reads costs it time."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxspec.devices.channel import pack
from jaxspec.models.base import Array
from jaxspec.verify.sampling import INVALID
from jaxspec.verify.verdict import Verdict


class Choices(NamedTuple):
    """The target's own tokens after the last committed one and each of the window, and their log-probabilities."""

    tokens: Array
    log_probabilities: Array


class StepRecord(NamedTuple):
    """The fields of a packed record, in order; each of 32 bits.

    Attributes:
        tokens: [B, γ+1] int32.
        log_probabilities: [B, γ+1] float32.
        num_emitted: [B] int32.
        num_verified: [B] int32.
        num_invalid: [B] int32.
        invalid_exit: [B] int32, a flag.
    """

    tokens: Array
    log_probabilities: Array
    num_emitted: Array
    num_verified: Array
    num_invalid: Array
    invalid_exit: Array


#: Type of every field, and whether it has an axis of positions.
TEMPLATE = StepRecord((np.int32, True), (np.float32, True), *[(np.int32, False)] * 4)  # type: ignore[arg-type]


def step_record(
    choices: Choices, window: Array, verdict: Verdict, num_emitted: Array, sent: Array | None = None
) -> Array:
    """Pack the record of a step with this window; ``sent`` is the exit's packed message, if there was one."""
    invalid = jnp.sum(window == INVALID, axis=1, dtype=jnp.int32)
    exits = jnp.zeros_like(invalid)
    if sent is not None:  # token ids below 2³¹ − 2²³, read as floats, are numbers: a NaN is that of a score
        exits = jnp.any(jnp.isnan(jax.lax.bitcast_convert_type(sent, jnp.float32)), axis=1)
    return pack(StepRecord(*choices, num_emitted, verdict.num_accepted, invalid, exits))


def unpack_record(packed: np.ndarray) -> StepRecord:
    """Unpack the fields of a record, on the host."""
    wide = [has_positions for _, has_positions in TEMPLATE]
    positions = (packed.shape[1] - wide.count(False)) // wide.count(True)
    cuts = np.cumsum([positions if has_positions else 1 for has_positions in wide])[:-1]
    parts = zip(np.split(packed, cuts, axis=1), TEMPLATE, strict=True)
    fields = [(np.ascontiguousarray(part).view(dtype), is_wide) for part, (dtype, is_wide) in parts]
    return StepRecord(*(field if is_wide else field[:, 0] for field, is_wide in fields))


class StepInfo(NamedTuple):
    """What one step did, per sequence.

    Attributes:
        packed: a packed ``StepRecord``, which the properties read: [B, n] int32.
        reused: whether the next window was rolled out before the verdict was known: [B] bool; None for methods that
            roll out nothing.
    """

    packed: Array
    reused: Array | None = None

    def read(self) -> "StepInfo":
        """Return it on the host; wait for the step."""
        return StepInfo(np.asarray(self.packed), None if self.reused is None else np.asarray(self.reused))  # type: ignore[arg-type]

    @property
    def tokens(self) -> np.ndarray:
        """The target's own tokens; the first ``num_emitted`` of a row are new text: [B, γ+1]."""
        return self._record.tokens  # type: ignore[return-value]

    @property
    def log_probabilities(self) -> np.ndarray:
        """Of ``tokens`` under the target's own distribution, unfiltered, at temperature 1: [B, γ+1].

        A log-probability is finite exactly if all logits at its position are numbers (single ones may be −∞).
        """
        return self._record.log_probabilities  # type: ignore[return-value]

    @property
    def num_emitted(self) -> np.ndarray:
        """Tokens added, 0 once a sequence has reached its limit: [B]."""
        return self._record.num_emitted  # type: ignore[return-value]

    @property
    def num_accepted(self) -> np.ndarray:
        """Of the ``num_emitted`` tokens, those that were drafted: [B]."""
        return np.minimum(self.num_verified, self.num_emitted)

    @property
    def num_verified(self) -> np.ndarray:
        """Drafted tokens that the target confirmed, A, those behind a sequence's limit included: [B]."""
        return self._record.num_verified  # type: ignore[return-value]

    @property
    def num_invalid(self) -> np.ndarray:
        """Tokens of the window that were not drafted since the draft's logits were not numbers: [B]."""
        return self._record.num_invalid  # type: ignore[return-value]

    @property
    def invalid_exit(self) -> np.ndarray:
        """Whether the exit's logits were not numbers: [B] bool."""
        return self._record.invalid_exit > 0  # type: ignore[return-value]

    @property
    def _record(self) -> StepRecord:
        return unpack_record(np.asarray(self.packed))
