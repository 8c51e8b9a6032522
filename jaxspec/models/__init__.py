"""Networks: one decoder, defined in Flax, used as pure functions."""
