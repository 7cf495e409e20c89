import csv

import jax
import numpy as np
import pytest

import references_hardware as references
from haqjax.hardware import bitfusion, cost_table, machine
from haqjax.hardware.bitfusion_tile import Shape
from haqjax.hardware.bitfusion_tiling import NEVER, count_layer_work, energies, list_loop_orders
from references_hardware import conv, dense, table

pytestmark = pytest.mark.optimised

PUBLISHED = machine("bitfusion").spec


def simulator_rows():
    path = references.REFERENCES / "bitfusion_rows.csv"
    if not path.exists():
        pytest.skip(f"needs the output of the authors' simulator, {path}")
    with path.open() as file:
        return list(csv.DictReader(file))


def column(rows, name, kind=np.int64):
    return np.array([kind(row[name]) for row in rows])


def test_every_row_of_the_authors_simulator():
    rows = simulator_rows()
    assert len(rows) == 305
    names = {"outputs": "M", "inputs": "N", "dram_bits": "dram_bits_per_cycle", "batch": "B"}
    names |= {"weight_buffer": "wbuf_B", "input_buffer": "ibuf_B", "output_buffer": "obuf_B"}
    family = [PUBLISHED._replace(**{field: int(row[name]) for field, name in names.items()}) for row in rows]
    spec = jax.tree.map(lambda *leaves: np.array(leaves), *family)
    square = {field: np.stack([column(rows, name)] * 2, 1) for field, name in zip(Shape._fields, "KSO", strict=False)}
    shape = Shape(
        **square,
        in_channels=column(rows, "IC"),
        out_channels=column(rows, "OC"),
        images=column(rows, "B"),
        jobs=np.ones(len(rows), np.int64),
        unrolled=column(rows, "im2col"),
    )
    orders = list_loop_orders(square=True)
    with jax.enable_x64(True):
        powers = [np.zeros((0, 4))] * len(rows)
        for config in sorted({row["config"] for row in rows}):
            here = [i for i, row in enumerate(rows) if row["config"] == config]
            tiles = bitfusion._candidates(family[here[0]], jax.tree.map(lambda field, at=here: field[at], shape))
            for i, each in zip(here, tiles, strict=True):
                powers[i] = each
        most = max(map(len, powers))
        padded = np.stack([np.pad(each, ((0, most - len(each)), (0, 0)), mode="edge") for each in powers])
        given = (spec, shape, padded, column(rows, "wbits"), column(rows, "abits"))
        each = jax.jit(lambda given: jax.lax.map(lambda one: count_layer_work(*one[:3], orders, *one[3:]), given))
        found = jax.tree.map(np.asarray, each(given))
    results = column(
        rows, "dram_wr_bits"
    )  # the simulator counts them among the reads and the writes of the output buffer
    expected = {
        "cycles": found.cycles,
        "compute_cycles": found.busy,
        "mem_stall_cycles": found.cycles - found.busy,
        "wbuf_wr_bits": found.moved.weights,
        "wbuf_rd_bits": found.read.weights,
        "ibuf_wr_bits": found.moved.inputs,
        "ibuf_rd_bits": found.read.inputs,
        "obuf_rd_bits": found.read.outputs + results,
        "obuf_wr_bits": found.read.outputs + results,
        "dram_rd_bits": found.dram_read,
        "dram_wr_bits": found.dram_write,
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(values, column(rows, name), err_msg=name)
    core, buffers, dram = energies(spec, found)
    parts = {"e_core_nJ": core, "e_sram_nJ": buffers, "e_dram_nJ": dram, "e_total_nJ": core + buffers + dram}
    for name, values in parts.items():
        np.testing.assert_allclose(values * 1e9, column(rows, name, float), rtol=1e-9, err_msg=name)


def test_a_whole_network_of_the_authors_simulator():
    rows = [row for row in simulator_rows() if row["config"] == "bf_e_192" and row["net"] == "CIFAR10"]
    sizes = [[int(row[name]) for name in ("K", "S", "IC", "OC", "I")] for row in rows]
    kinds = [row["type"] for row in rows]
    layers = table(
        [dense(*each[2:4]) if kind == "fc" else conv(*each) for kind, each in zip(kinds, sizes, strict=True)]
    )
    costs = cost_table(machine("bitfusion"), layers)
    at = (np.arange(len(rows)), column(rows, "wbits") - 1, column(rows, "abits") - 1)
    np.testing.assert_allclose(costs.latency[at], column(rows, "cycles") / 5e8, rtol=1e-12)
    np.testing.assert_allclose(costs.energy[at], column(rows, "e_total_nJ", float) * 1e-9, rtol=1e-9)


def tiny(**changes):
    sizes = {"inputs": 2, "outputs": 4, "weight_buffer": 200, "input_buffer": 160, "output_buffer": 128}
    return PUBLISHED._replace(**{**sizes, "dram_bits": 24, "batch": 3, **changes})


LAYERS = {
    "first": conv(3, 2, 3, 5, 7),
    "plain": conv(3, 1, 6, 10, 5),
    "strided": conv(1, 2, 9, 6, 6),
    "depthwise": conv(3, 1, 4, 4, 4, groups=4),
    "grouped": conv(3, 1, 8, 12, 3, groups=2),
    "dense": dense(20, 10, rows=3),
}
SWITCHES = [{}, {"reread_outputs": False}, {"share_bricks": True}, {"merge_depthwise": True}, {"unroll_first": False}]


@pytest.mark.parametrize("switch", SWITCHES, ids=str)
def test_the_best_of_all_tiles_and_orders(switch):
    spec = tiny(**switch)
    counts = bitfusion.count_work(spec, table(list(LAYERS.values())))
    energy = sum(energies(spec, counts))
    for i, (name, (k, stride, c_in, c_out, groups, _, size, is_dense)) in enumerate(LAYERS.items()):
        jobs = 1 if name == "depthwise" and spec.merge_depthwise else groups
        shape = ((k, k), (stride, stride), (1, 1) if is_dense else (size, size), c_in // jobs, c_out // groups)
        images, unrolled = 3 * size if is_dense else 3, name == "first" and spec.unroll_first
        for w, a in [(1, 2), (3, 5), (6, 3), (8, 8)]:
            at = (i, w - 1, a - 1)
            cycles, joules, busy, read, written = references.search_tiles(spec, *shape, images, unrolled, w, a)
            assert counts.cycles[at] == jobs * cycles, (name, w, a)
            assert energy[at] == pytest.approx(jobs * joules, rel=1e-12), (name, w, a)
            found = (counts.busy[at], counts.dram_read[at], counts.dram_write[at])
            assert found == (jobs * busy, jobs * read, jobs * written), (name, w, a)


def test_maps_and_kernels_need_not_be_square():
    layers = table([conv(3, 1, 3, 4, 6), conv(3, 1, 4, 8, 6)])
    layers.kernel[1], layers.stride[1], layers.out_size[1] = (1, 5), (1, 2), (6, 3)
    counts = bitfusion.count_work(tiny(), layers)
    expected = references.search_tiles(tiny(), (1, 5), (1, 2), (6, 3), 4, 8, 3, False, 4, 7)
    assert (counts.cycles[1, 3, 6], counts.busy[1, 3, 6], counts.dram_read[1, 3, 6]) == (expected[0], *expected[2:4])


def test_a_layer_too_large_for_the_buffers_is_named():
    with pytest.raises(ValueError, match="layer 'layer1': its smallest tile exceeds half a buffer"):
        bitfusion.count_work(tiny(), table([conv(1, 1, 4, 4, 2), conv(31, 1, 4, 4, 2)]))


def test_three_bits_compute_like_four_and_five_like_eight():
    busy = bitfusion.count_work(tiny(), table([dense(64, 16)])).busy[0]
    np.testing.assert_array_equal(busy[[2, 4, 5, 6]], busy[[3, 7, 7, 7]])
    np.testing.assert_array_equal(busy[0], busy[1])
    assert busy[7, 7] == 2 * busy[3, 7] == 4 * busy[3, 3] == 16 * busy[1, 1]


def test_usage_adds_up():
    layers, spec = table([conv(3, 1, 8, 12, 3), dense(64, 16)]), tiny(leakage_power=0.25)
    counts, usage = bitfusion.count_work(spec, layers), bitfusion.estimate(spec, layers)
    np.testing.assert_allclose(sum(usage.energy), sum(energies(spec, counts)) + 0.25 * usage.latency, rtol=1e-12)
    np.testing.assert_array_equal(sum(usage.moved), counts.dram_read + counts.dram_write)
    np.testing.assert_allclose(sum(usage.transfers) * 24 * 5e8, sum(usage.moved), rtol=1e-12)
    # 3 images of 64 x 16 on 2 x 4 units of 1, 2 and 4 products at 8/8, 4/8 and 3/1 bits.
    macs = 3 * 64 * 16 / 8 / 5e8
    found = [usage.ideal[1, w, a] for w, a in [(7, 7), (3, 7), (2, 0)]]
    np.testing.assert_allclose(found, [macs, macs / 2, macs / 8], rtol=1e-12)
    assert (usage.ideal <= usage.compute).all()


def test_resnet50_cycles_rise_with_bits_but_for_a_thousandth():
    # The tiles are powers of two, so that a width may have luckier ones than the width below.
    counts = bitfusion.count_work(PUBLISHED, references.resnet50())
    for axis in (1, 2):
        step = np.diff(counts.cycles, axis=axis) / np.delete(counts.cycles, -1, axis)
        assert step.min() > -1e-3
    assert (counts.cycles < NEVER).all()


def test_counts_pass_32_bits():
    counts = bitfusion.count_work(PUBLISHED, table([dense(4096, 4096, rows=4096)]))
    assert counts.busy[0, 7, 7] == 16 * 4096 * (4096 // 32) * (4096 // 16) == 2**31
    assert counts.read.weights[0, 7, 7] > 2**37
    assert counts.cycles[0, 7, 7] >= counts.busy[0, 7, 7]
    assert np.isfinite(sum(energies(PUBLISHED, counts))).all()


def test_another_machine_compiles_nothing():
    layers = table([conv(1, 1, 4, 4, 2), dense(8, 8)])
    bitfusion.count_work(tiny(), layers)
    traces = bitfusion._count_network._cache_size()
    bitfusion.count_work(tiny(dram_bits=7, share_bricks=True), layers)
    assert bitfusion._count_network._cache_size() == traces
