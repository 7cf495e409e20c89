import jax
import numpy as np
import pytest

from haqjax.hardware import cost_table, find_limits, machine
from haqjax.hardware.gemm import Gemm
from haqjax.hardware.roofline import Fetched, estimate, estimate_layer
from haqjax.hardware.usage import LIMITS
from references_hardware import ceil_div, conv, dense, mobilenet_v2, table

ROOFLINE, SYSTOLIC = machine("roofline").spec, machine("systolic").spec
LAYERS = {
    "plain": (conv(3, 2, 5, 40, 9), (25, 40, 45), 1),  # vectors, outputs, summands of a product; products an image
    "depthwise": (conv(3, 1, 6, 6, 5, groups=6), (25, 1, 9), 6),
    "grouped": (conv(1, 1, 70, 70, 4, groups=2), (16, 35, 35), 2),
    "dense": (dense(100, 33, rows=7), (7, 33, 100), 1),
}


def play_output_stationary(vectors, outputs, length, rows, columns):
    """Cycles of one load of the array: the k-th pair reaches cell (i, j) after i + j hops."""
    return max(k + i + j for i in range(rows) for j in range(columns) for k in range(length)) + 1


def play_weight_stationary(vectors, outputs, length, rows, columns):
    """Cycles of one load of the array: weights go in row by row, then each vector moves down and right."""
    return rows + max(v + i + j for i in range(rows) for j in range(columns) for v in range(vectors)) + 1


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("output_stationary", [True, False])
def test_systolic_cycles_are_those_of_the_wavefront(name, batch, output_stationary):
    row, (vectors, outputs, length), jobs = LAYERS[name]
    rows, columns = 4, 6
    if name == "dense":
        vectors *= batch
    else:
        jobs *= batch
    if output_stationary:
        loads = ceil_div(vectors, rows) * ceil_div(outputs, columns)
        expected = jobs * (loads * play_output_stationary(vectors, outputs, length, rows, columns) - 1)
    else:
        loads = ceil_div(length, rows) * ceil_div(outputs, columns)
        expected = jobs * (loads * play_weight_stationary(vectors, outputs, length, rows, columns) - 1)
    spec = SYSTOLIC._replace(rows=rows, columns=columns, batch=batch, output_stationary=output_stationary)
    np.testing.assert_allclose(estimate(spec, table([row])).compute * 5e8, expected, rtol=1e-12)


def test_scale_sim_closed_forms_on_a_layer():
    # ResNet-50's 3x3 convolution of 64 channels at 56x56 on 32 x 32 cells: M = 3136, N = 64, K = 576.
    layers = table([conv(3, 1, 64, 64, 56)])
    for output_stationary, cycles in [(True, 98 * 2 * (576 + 62) - 1), (False, 18 * 2 * (3136 + 94) - 1)]:
        found = estimate(SYSTOLIC._replace(output_stationary=output_stationary), layers).compute
        np.testing.assert_allclose(found * 5e8, cycles, rtol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("steps", [(1, 1), (2, 4), (8, 8)])
def test_padded_tiles_times_passes(name, steps):
    row, (vectors, outputs, length), jobs = LAYERS[name]
    spec = ROOFLINE._replace(rows=4, columns=6, depth=8, weight_step=steps[0], activation_step=steps[1])
    found = estimate(spec, table([row]))
    tiles = jobs * ceil_div(vectors, 4) * ceil_div(outputs, 6) * ceil_div(length, 8)
    for w, a in [(1, 1), (3, 5), (8, 8)]:
        passes = ceil_div(w, steps[0]) * ceil_div(a, steps[1])
        macs = jobs * vectors * outputs * length
        assert found.compute[0, w - 1, a - 1] * 5e8 == pytest.approx(tiles * passes, rel=1e-12)
        assert found.ideal[0, w - 1, a - 1] * 5e8 == pytest.approx(macs * passes / (4 * 6 * 8), rel=1e-12)
        mac_energy = 0.031e-12 + 0.0027e-12 * passes * steps[0] * steps[1]
        assert found.energy.array[0, w - 1, a - 1] == pytest.approx(macs * mac_energy, rel=1e-12)


@pytest.mark.parametrize("spec", [ROOFLINE, SYSTOLIC])
def test_everything_moves_once(spec):
    spec = spec._replace(batch=3, dram_bits=10, leakage_power=0.5, overhead=1e-6)
    layers = table([conv(3, 2, 6, 40, 9, groups=2), dense(100, 33, rows=7)])
    found = estimate(spec, layers)
    for w, a in [(2, 7), (8, 8)]:
        for i, (weights, inputs, outputs) in enumerate([(9 * 3 * 40, 81 * 6, 25 * 40), (3300, 700, 231)]):
            at = (i, w - 1, a - 1)
            moved = [weights * w, 3 * inputs * a, 3 * outputs * 8]
            assert [bits[at] for bits in found.moved] == moved
            seconds = [bits / 10 / 5e8 for bits in moved]
            np.testing.assert_allclose([t[at] for t in found.transfers], seconds, rtol=1e-12)
            assert found.latency[at] == pytest.approx(max(sum(seconds), found.compute[at]) + 1e-6, rel=1e-12)
            assert found.energy.dram[at] == pytest.approx(sum(moved) * 20.3e-12, rel=1e-12)
            assert found.energy.leakage[at] == 0.5 * found.latency[at]


def test_buffers_are_read_once_a_tile():
    found = estimate(ROOFLINE._replace(rows=4, columns=6, batch=2), table([dense(100, 33, rows=7)]))
    w, a = 3, 5
    read = 100 * (33 * w * ceil_div(14, 4) + 14 * a * ceil_div(33, 6)) + 14 * 33 * 8
    assert found.energy.buffers[0, w - 1, a - 1] == pytest.approx(read * 0.3125e-12, rel=1e-12)


@pytest.mark.parametrize(
    ("row", "changes", "limit"),
    [
        (dense(512, 512, rows=512), {}, "compute"),
        (dense(512, 512, rows=1), {}, "weights"),
        (dense(4096, 8, rows=4096), {"dram_bits": 8}, "activations"),
        (dense(8, 4096, rows=4096), {"dram_bits": 8, "output_bits": 32}, "outputs"),
    ],
)
def test_what_limits_a_layer(row, changes, limit):
    mine = machine("roofline")
    mine = type(mine)("mine", "roofline", mine.spec._replace(**changes))
    found = find_limits(mine, table([row]))
    assert LIMITS[found.limit[0, 7, 7]] == limit


def test_intensity_and_utilisation_by_hand():
    found = find_limits(machine("roofline"), table([dense(16, 16, rows=16), dense(17, 16, rows=16)]))
    # 2 x 16^3 operations; 16 x 16 weights, inputs and outputs of a byte.
    assert found.intensity[0, 7, 7] == pytest.approx(2 * 16**3 / (3 * 256), rel=1e-12)
    assert found.intensity[0, 3, 7] == pytest.approx(2 * 16**3 / (2.5 * 256), rel=1e-12)
    # 16 passes of a cycle against 768 x 8 bits at 64 a cycle.
    assert found.utilisation[0, 7, 7] == pytest.approx(16 / 96, rel=1e-12)


@pytest.mark.parametrize("name", ["edge", "cloud", "roofline", "systolic"])
def test_no_machine_beats_its_peak(name):
    found = find_limits(machine(name), mobilenet_v2())
    assert (found.utilisation > 0).all()
    assert (found.utilisation <= 1 + 1e-12).all()
    assert np.isfinite(found.intensity).all()


@pytest.mark.parametrize("name", ["roofline", "systolic"])
def test_costs_never_fall_with_bits(name):
    found = cost_table(machine(name), mobilenet_v2())
    for values in (found.latency, found.energy):
        for axis in (1, 2):
            assert (np.diff(values, axis=axis) >= 0).all()


def test_large_layers_do_not_overflow():
    found = estimate(SYSTOLIC._replace(batch=16, output_stationary=False), table([dense(4096, 4096, rows=4096)]))
    assert found.compute[0, 0, 0] * 5e8 == pytest.approx(128 * 128 * (65536 + 94) - 1, rel=1e-12)


def test_one_layer_on_a_family_of_machines():
    rows = np.array([4.0, 8.0, 16.0])
    family = ROOFLINE._replace(rows=rows)
    axes = type(family)(*(0 if name == "rows" else None for name in family._fields))
    layer, fetched = Gemm(64.0, 16.0, 16.0, 1.0), Fetched(256.0, 1024.0)
    each = jax.vmap(lambda spec: estimate_layer(spec, layer, fetched, 8, 8), (axes,))
    np.testing.assert_allclose(each(family).compute * 5e8, 16 * 64 / rows, rtol=1e-6)


def test_a_measured_table_knows_no_bounds(tmp_path):
    path = tmp_path / "mine.npy"
    np.save(path, np.ones((1, 8, 8), int))
    with pytest.raises(ValueError, match="mine is a measured table"):
        find_limits(machine(path), table([dense(2, 2)]))
