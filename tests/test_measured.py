import jax
import numpy as np
import pytest

import references_hardware as references
from haqjax.hardware import available_widths, cost_table, machine, save_table
from haqjax.types import Cost, CostTable
from references_hardware import conv, dense, table

LAYERS = table([conv(3, 2, 3, 8, 8), conv(3, 1, 8, 8, 4, groups=8), dense(8, 4)], other_parameters=10)
BITS = np.arange(1.0, 9.0)


def rising_table():
    """Costs that differ in every entry and rise with both widths."""
    base = BITS[None, :, None] * 10 + BITS[None, None, :] + np.array([100, 200, 300])[:, None, None]
    return CostTable(base * 1e-6, base * 1e-9, base, Cost(*np.zeros(3)))


def write(path, text):
    path.write_text(text)
    return path


def lines(bits=((8, 8),), names=LAYERS.names, cost="1.5"):
    return "".join(f"{name},{w},{a},{cost}\n" for name in names for w, a in bits)


HEADER = "layer,weight_bits,activation_bits,latency_ms\n"


@pytest.mark.parametrize("suffix", [".csv", ".npy", ".parquet"])
def test_a_table_comes_back_as_it_was(suffix, tmp_path):
    path = tmp_path / f"mine{suffix}"
    save_table(path, rising_table(), LAYERS)
    assert machine(path).name == "mine"
    found = cost_table(machine(path), LAYERS)
    np.testing.assert_array_equal(found.latency, rising_table().latency)
    np.testing.assert_array_equal(found.energy, rising_table().energy)
    assert found.fixed.size == 40
    assert found.size[2, 3, 0] == 32 * 4 / 8


@pytest.mark.parametrize("suffix", [".csv", ".npy", ".parquet"])
def test_a_table_without_energy(suffix, tmp_path):
    path = tmp_path / f"mine{suffix}"
    costs = rising_table()
    save_table(path, CostTable(costs.latency, np.full_like(costs.energy, np.nan), costs.size, costs.fixed), LAYERS)
    found = cost_table(machine(path), LAYERS)
    np.testing.assert_array_equal(found.latency, costs.latency)
    assert np.isnan(found.energy).all()


def test_haqs_own_format(tmp_path):
    path = tmp_path / "haq.npy"
    cycles = np.round(rising_table().latency * 2e8).astype(np.int64)
    np.save(path, cycles)
    np.testing.assert_array_equal(cost_table(machine(path), LAYERS).latency, cycles / 2e8)


def test_haqs_released_table_is_the_cloud_machine():
    path = references.REFERENCES / "haq_cloud_mobilenet_v2.npy"
    if not path.exists():
        pytest.skip(f"needs the table that HAQ's authors released, {path}")
    layers = references.mobilenet_v2()
    expected = cost_table(machine("cloud"), layers).latency
    np.testing.assert_allclose(cost_table(machine(path), layers).latency, expected, rtol=1e-12)


@pytest.mark.parametrize(("unit", "factor"), [("s", 1.0), ("ms", 1e-3), ("us", 1e-6), ("ns", 1e-9)])
def test_units(unit, factor, tmp_path):
    header = f"layer,weight_bits,activation_bits,latency_{unit},energy_{unit.replace('s', 'j')}\n"
    path = write(tmp_path / "mine.csv", header + lines(cost="1.5,2.5"))
    found = cost_table(machine(path), LAYERS)
    np.testing.assert_allclose(found.latency[:, 7, 7], 1.5 * factor)
    np.testing.assert_allclose(found.energy[:, 7, 7], 2.5 * factor)


def test_layers_are_matched_by_name(tmp_path):
    path = write(tmp_path / "mine.csv", HEADER + "layer2,8,8,3\nlayer0,8,8,1\nlayer1,8,8,2\n")
    np.testing.assert_allclose(cost_table(machine(path), LAYERS).latency[:, 7, 7], [1e-3, 2e-3, 3e-3])


def test_missing_widths_cost_what_the_next_width_does(tmp_path):
    path = tmp_path / "mine.csv"
    layer_costs = [(w, a) for w in (2, 4) for a in (2, 4, 8)]
    rows = "".join(f"{name},{w},{a},{10 * w + a}\n" for name in LAYERS.names for w, a in layer_costs)
    found = cost_table(machine(write(path, HEADER + rows)), LAYERS).latency[1] * 1e3
    for available in available_widths(machine(path), LAYERS):
        assert (np.flatnonzero(available[0]) + 1).tolist() == [2, 4]
        assert (np.flatnonzero(available[1]) + 1).tolist() == [2, 4, 8]
    for w in range(1, 9):
        for a in range(1, 9):
            up = [10 * x + y for x, y in layer_costs if x >= w and y >= a]
            assert found[w - 1, a - 1] == pytest.approx(min(up, default=np.inf))


FAULTS = [
    ("", "missing column layer, weight_bits, activation_bits, one of latency_s"),
    ("layer,weight_bits,activation_bits,latency\n", "unknown column 'latency'; missing: one of latency_s, latency_ms"),
    ("layer,weight_bits,latency_s\n", "missing column activation_bits"),
    ("layer,weight_bits,activation_bits,latency_s,latency_ms\n", "latency_s, latency_ms say the same thing twice"),
    (HEADER + "a,9,8,1\n", "line 2: weight_bits is '9', expected a whole number from 1 to 8"),
    (HEADER + "a,8,2.5,1\n", "line 2: activation_bits is '2.5', expected a whole number from 1 to 8"),
    (HEADER + "a,8,8,1\na,4,8,zero\n", "line 3: latency_ms is 'zero', expected a finite number above 0"),
    (HEADER + "a,8,8,0\n", "line 2: latency_ms is '0', expected a finite number above 0"),
    (HEADER + "a,8,8,-1\n", "line 2: latency_ms is '-1', expected"),
    (HEADER + "a,8,8,nan\n", "line 2: latency_ms is 'nan', expected"),
    (HEADER + "a,8,8,inf\n", "line 2: latency_ms is 'inf', expected"),
    (HEADER + "a,8,8\n", "line 2: 3 cells, but the header has 4"),
    (HEADER + "a,8,8,1\na,8,8,1\n", "line 3: layer 'a' stands here again"),
    (
        "layer,kernel,weight_bits,activation_bits,latency_s\na,1x1,8,8,1\na,3x3,4,8,1\n",
        "line 3: layer 'a' stands here again",
    ),
    (HEADER + lines(names=("layer0", "layer1")), "the table has no layer 'layer2'"),
    (HEADER + lines(names=("a", "b", "c")), "the table has no layer 'layer0' and 2 more"),
    (HEADER + lines(names=(*LAYERS.names, "head")), "the network has no layer 'head'"),
    (
        HEADER.replace("layer,", "layer,groups,") + lines().replace(",8,8", ",1,8,8"),
        "'layer1' has groups 1 in the table, 8 in",
    ),
]


@pytest.mark.parametrize(("text", "message"), FAULTS)
def test_a_fault_in_a_csv_is_one_clear_line(text, message, tmp_path):
    with pytest.raises(ValueError, match="mine.csv") as error:
        cost_table(machine(write(tmp_path / "mine.csv", text)), LAYERS)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones((3, 8, 7), int), r"shape \(3, 8, 7\), expected \[layers, 8, 8\]"),
        (np.ones((3, 8, 8)), "says no unit"),
        (np.zeros((3, 8, 8), int), r"latency of layer 0 at 1/1 bits \(weights/activations\) is 0"),
        (np.ones((4, 8, 8), int), "the table has 4 layers, the network 3"),
    ],
)
def test_a_fault_in_an_array_is_one_clear_line(values, message, tmp_path):
    path = tmp_path / "mine.npy"
    np.save(path, values)
    with pytest.raises(ValueError, match=message):
        cost_table(machine(path), LAYERS)


@pytest.mark.parametrize("name", ["mine.npy", "mine.csv"])
def test_a_file_of_something_else(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"\x00\xff\xfe rubbish")
    with pytest.raises(ValueError, match=name):
        machine(path)


@pytest.mark.parametrize("what", ["latency", "energy"])
def test_a_cost_that_falls_is_a_warning(what, tmp_path):
    costs = rising_table()
    costs.latency[:, 5] = np.nan  # no entries for 6 weight bits: 7 are compared with 5
    getattr(costs, what)[1, 4, 3] *= 1.2
    path = tmp_path / "mine.csv"
    save_table(path, costs, LAYERS)
    with pytest.warns(UserWarning) as found:
        machine(path)
    messages = [str(each.message) for each in found]
    assert f"{what} falls with more weight bits in 2 places, first in layer 'layer1' at 7/4 bits" in messages[0]
    assert f"{what} falls with more activation bits in 4 places, first in layer 'layer1' at 5/5 bits" in messages[1]


def test_tables_are_not_overwritten(tmp_path):
    path = write(tmp_path / "mine.csv", "mine")
    with pytest.raises(ValueError, match="exists and is never overwritten"):
        save_table(path, rising_table(), LAYERS)
    assert path.read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "layers", "message"),
    [
        ("mine.txt", LAYERS, "is a .csv, .npy or .parquet file"),
        ("mine.csv", table([dense(2, 2)]), "a table of 3 layers"),
    ],
)
def test_what_cannot_be_saved(name, layers, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        save_table(tmp_path / name, rising_table(), layers)
    assert not (tmp_path / name).exists()


def test_a_measured_table_is_a_pytree_of_numbers_like_any_other(tmp_path):
    path = tmp_path / "mine.npy"
    save_table(path, rising_table(), LAYERS)
    found = cost_table(machine(path), LAYERS)
    assert [leaf.dtype for leaf in jax.tree.leaves(found)] == [np.float64] * 9
