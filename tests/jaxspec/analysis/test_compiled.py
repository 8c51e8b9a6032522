"""What is counted in compiled programs: bytes by hand, loops, branches, updates in place, collectives, padding."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxspec.analysis._hlo import arrays_of
from jaxspec.analysis.compiled import count
from jaxspec.devices.sharding import mesh_of
from jaxspec.models.attention import write

ROWS, WIDTH = 512, 1024
MATRIX = 4 * ROWS * WIDTH

WRITTEN = """
HloModule written, is_scheduled=true

%inside (part.1: f32[1000,4], at.1: s32[]) -> f32[10,4] {
  %part.1 = f32[1000,4]{1,0:T(8,128)} parameter(0)
  %at.1 = s32[] parameter(1)
  %zero.1 = s32[] constant(0)
  ROOT %cut.1 = f32[10,4]{1,0:T(8,128)} dynamic-slice(%part.1, %at.1, %zero.1), dynamic_slice_sizes={10,4}
}

%body (state.1: (s32[], f32[10,4])) -> (s32[], f32[10,4]) {
  %state.1 = (s32[], f32[10,4]{1,0:T(8,128)}) parameter(0)
  %number = s32[] get-tuple-element(%state.1), index=0
  %value = f32[10,4]{1,0:T(8,128)} get-tuple-element(%state.1), index=1
  %twice = f32[10,4]{1,0:T(8,128)} add(%value, %value), backend_config={"estimated_cycles":"100"}
  ROOT %next = (s32[], f32[10,4]{1,0:T(8,128)}) tuple(%number, %twice)
}

%condition (state.2: (s32[], f32[10,4])) -> pred[] {
  %state.2 = (s32[], f32[10,4]{1,0:T(8,128)}) parameter(0)
  %reached = s32[] get-tuple-element(%state.2), index=0
  %end = s32[] constant(7)
  ROOT %less = pred[] compare(%reached, %end), direction=LT
}

%small (one: f32[8,128]) -> f32[8,128] {
  ROOT %one = f32[8,128]{1,0:T(8,128)} parameter(0)
}

%large (two: f32[8,128]) -> f32[8,128] {
  %two = f32[8,128]{1,0:T(8,128)} parameter(0)
  ROOT %copied = f32[8,128]{1,0:T(8,128)} copy(%two)
}

ENTRY %main (all: f32[1000,4], at: s32[], which: s32[], tile: f32[8,128]) -> f32[8,128] {
  %all = f32[1000,4]{1,0:T(8,128)} parameter(0)
  %at = s32[] parameter(1)
  %which = s32[] parameter(2)
  %tile = f32[8,128]{1,0:T(8,128)} parameter(3)
  %prefetched = (f32[8,128]{1,0:T(8,128)S(1)}, f32[8,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%tile)
  %fetched = f32[8,128]{1,0:T(8,128)S(1)} copy-done(%prefetched)
  %fused = f32[10,4]{1,0:T(8,128)} fusion(%all, %at), kind=kLoop, calls=%inside
  %both = (s32[], f32[10,4]{1,0:T(8,128)}) tuple(%at, %fused)
  %loop = (s32[], f32[10,4]{1,0:T(8,128)}) while(%both), condition=%condition, body=%body
  %multiply_reduce = f32[8,128]{1,0:T(8,128)S(1)} multiply(%fetched, %tile)
  ROOT %chosen = f32[8,128]{1,0:T(8,128)} conditional(%which, %tile, %tile), branch_computations={%small, %large}
}
"""


EXCHANGE = """
HloModule exchange, is_scheduled=true

ENTRY %main (kept: f32[64,8,128], new: f32[2,8,128], at: s32[16]) -> f32[64,8,128] {
  %kept = f32[64,8,128]{2,1,0:T(8,128)} parameter(0)
  %new = f32[2,8,128]{2,1,0:T(8,128)} parameter(1)
  %at = s32[16]{0:T(128)} parameter(2)
  %got = f32[2,8,128]{2,1,0:T(8,128)} ragged-all-to-all(%kept, %new, %at, %at, %at, %at), channel_id=1
  %after = token[] after-all()
  %sent = (s32[2,64]{1,0:T(2,128)}, u32[], token[]) send(%at, %after), channel_id=2, is_host_transfer=true
  %done = token[] send-done(%sent), channel_id=2
  ROOT %put = f32[64,8,128]{2,1,0:T(8,128)} ragged-all-to-all(%got, %kept, %at, %at, %at, %at), channel_id=3
}
"""


def count_of(function, *arguments, **options):
    return count(jax.jit(function, **options).lower(*arguments).compile())


def filled(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_a_written_program_by_hand():
    """An array of ten rows of four takes two tiles of 8 × 128; a prefetch is read once and written on the chip."""
    tile, rows = 4 * 8 * 128, 2 * 4 * 8 * 128
    scalars = 4
    counted = count(WRITTEN)
    least = tile + 2 * rows + scalars + 7 * 3 * rows + tile
    assert counted.hbm_bytes == least + 2 * tile
    assert count(WRITTEN, min).hbm_bytes == least
    assert counted.cycles == 700
    assert count(WRITTEN.replace('"100"', f'"{2**64 - 1}"')).cycles == 0  # not known
    assert counted.loops == 1
    assert counted.matrix_vector_bytes == tile
    assert [(copy.array, copy.bytes) for copy in counted.copies] == [("f32[8, 128]", tile)]
    assert counted.copied(tile + 1) == []


def test_arrays_are_padded_to_their_tiles():
    padded, packed, scalar = arrays_of("(bf16[3,200]{1,0:T(8,128)(2,1)S(1)}, s4[5]{0}, pred[])")
    assert (padded.bytes, padded.space, packed.bytes, scalar.bytes) == (2 * 8 * 256, 1, 3, 1)
    assert arrays_of("bf16[3,200]{0,1:T(8,128)}")[0].bytes == 2 * 128 * 200


def test_a_product_moves_its_matrices_once():
    counted = count_of(lambda matrix, x: matrix @ x, filled(ROWS, WIDTH), filled(WIDTH, 8))
    expected = MATRIX + 4 * 8 * (WIDTH + ROWS)
    assert expected <= counted.hbm_bytes <= 1.1 * expected


def test_loops_count_as_often_as_they_run():
    def run(times, matrix, x):
        return jax.lax.scan(lambda x, _: (jnp.tanh(matrix @ x), None), x, None, length=times)[0]

    few, many = (count_of(partial(run, times), filled(WIDTH, WIDTH), filled(WIDTH, 4)) for times in (2, 20))
    assert few.loops == many.loops == 1
    assert 18 * 4 * WIDTH**2 <= many.hbm_bytes - few.hbm_bytes <= 1.2 * 18 * 4 * WIDTH**2


def test_an_update_in_place_moves_the_update_alone():
    def update(rows, new, at):
        return jax.lax.dynamic_update_slice(rows, new, (at, 0))

    arguments = filled(ROWS, WIDTH), filled(2, WIDTH), jax.ShapeDtypeStruct((), jnp.int32)
    inside = count_of(update, *arguments, donate_argnums=0)
    assert inside.hbm_bytes < 0.05 * MATRIX
    assert count_of(update, *arguments).hbm_bytes >= 2 * MATRIX


def test_collectives_and_their_bytes():
    mesh = mesh_of(jax.devices())
    over = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))  # noqa: E731
    matrix = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.float32, sharding=over(None, "model"))
    x = jax.ShapeDtypeStruct((WIDTH, 8), jnp.float32, sharding=over("model"))
    counted = count(jax.jit(jnp.matmul, out_shardings=over()).lower(matrix, x).compile())
    assert [(each.kind, each.bytes, each.times) for each in counted.collectives] == [("all-reduce", 4 * ROWS * 8, 1)]


def test_an_exchange_of_rows_sends_the_smaller_array():
    """Two rows out of 64 are fetched and put back; a message leaves the slice through the hosts."""
    rows, message = 4 * 2 * 8 * 128, 4 * 2 * 128
    sent = [(each.kind, each.bytes) for each in count(EXCHANGE).collectives]
    assert sent == [("ragged-all-to-all", rows), ("send", message), ("ragged-all-to-all", rows)]
    assert count(EXCHANGE).hbm_bytes == 4 * rows + message


def test_text_that_is_no_program():
    with pytest.raises(ValueError, match="expected the text of a compiled program"):
        count("ten bytes")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_are_written_without_collectives(dtype):
    """Sequences over ``data``, heads over ``model``: every device writes its own rows of the cache."""
    mesh = mesh_of(jax.devices(), data=4)
    over = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))  # noqa: E731
    shape = lambda spec, *sizes, of=dtype: jax.ShapeDtypeStruct(sizes, np.dtype(of), sharding=spec)  # noqa: E731
    rows, new = (shape(over("data", "model"), 8, 2, size, 16, of=jnp.dtype(dtype)) for size in (256, 4))
    counted = count(jax.jit(write, donate_argnums=0).lower(rows, new, shape(over("data"), 8, of="int32")).compile())
    assert counted.collectives == ()
