import dataclasses
import io
import os
from datetime import timedelta
from decimal import Decimal

import jax
import numpy as np
import pyarrow
import pyarrow.parquet
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
    (HEADER + "a,8,8,1,5\n", "line 2: 5 cells, but the header has 4: decimals take a point"),
    (HEADER + "\n\na,8,8,1\nb,8,8\n", "line 5: 3 cells, but the header has 4"),
    (HEADER + 'a,8,8,"1,5"\n', "line 2: latency_ms is '1,5', expected a finite number above 0 with a decimal point"),
    (HEADER + "a,8,8,1e400\n", "line 2: latency_ms is '1e400', expected"),
    (HEADER + "a,8,8,1e-400\n", "line 2: latency_ms is '1e-400', expected"),
    (HEADER + "a,8,8,1e-28\n", "line 2: latency_ms is '1e-28', expected"),  # 0 in the 32 bits that costs are added in
    (HEADER + "a,8,8,1_0\n", "line 2: latency_ms is '1_0', expected"),  # 10 to Python
    (HEADER + "a,8,8,0x10\n", "line 2: latency_ms is '0x10', expected"),
    (HEADER + "a,8,8,\u0661\n", "line 2: latency_ms is '\u0661', expected"),  # 1 to Python
    (HEADER + "a,8,8,\x1b[2J\n", r"line 2: latency_ms is '\x1b[2J', expected"),
    (HEADER + "a,8,8," + "9" * 400 + "\n", "line 2: latency_ms is '999"),
    (HEADER + "a,8,8," + "9" * 200_000 + "\n", "line 2: latency_ms is '999"),  # beyond the limit of Python's reader
    (HEADER + 'a,8,8,"1\n', "line 2: no CSV (unexpected end of data)"),
    (HEADER + '"a\nb",8,8,1\n"c\nd",8,8,0\n', "line 4: latency_ms is '0'"),
    (HEADER + "a,8,8,\0001\n", r"line 2: latency_ms is '\x001', expected"),
    (HEADER + ",,,\n", "line 2: weight_bits is '', expected"),
    (HEADER, "has 0 layers, expected 1 to 262144"),
    (
        HEADER.replace("latency_ms", "latency_mss") + "a,8,8,1\n",
        "unknown column 'latency_mss'; missing: one of latency_s",
    ),
    (
        HEADER.replace("layer", "layer,images") + "a,4,8,8,1\n",
        "unknown column 'images'; a table has layer, weight_bits",
    ),
    (HEADER.replace("layer", "layer,layer") + "a,a,8,8,1\n", "column 'layer' stands there twice"),
    ("," + HEADER + "0,a,8,8,1\n", "unknown column '' without a name (pandas writes its index so"),
    (HEADER.replace(",", ";") + "a;8;8;1,5\n", "columns are parted by commas"),
    (HEADER.replace("layer", "layer,batch") + "a,,8,8,1\n", "line 2: batch is '', expected a whole number from 1"),
    (HEADER.replace("layer", "layer,batch") + "a,0,8,8,1\n", "line 2: batch is '0', expected a whole number from 1"),
    (
        HEADER.replace("layer", "layer,batch") + "a,4,8,8,1\nb,2,8,8,1\n",
        "line 3: batch is 2, but 4 in the first row: a table is of one batch size",
    ),
    (HEADER.replace("\n", ",energy_mj\n") + "a,8,8,1,inf\n", "line 2: energy_mj is 'inf', expected"),
    (HEADER + "a,8,8,1\na\0,8,8,2\n", r"cannot tell the layers 'a' and 'a\x00' apart"),
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


def read_one(path, text, **options):
    path.write_text(text, **options)
    return cost_table(machine(path), table([dense(2, 2)])).latency[0, 7, 7]


@pytest.mark.parametrize(
    "text",
    [
        HEADER + "layer0,8,8,1.5\n",
        HEADER + "layer0,8.0,8.,1.5\n",  # as pandas writes a column with a gap
        HEADER + " layer0 , 8 ,8\t,  1.5  \n",
        HEADER.replace(",", " , ") + "layer0,8,8,+1.50e0\n",
        HEADER.replace("\n", "\r\n") + "layer0,8,8,1.5\r\n\r\n",
        HEADER.replace("\n", "\r") + "layer0,8,8,1.5",
        HEADER.replace("layer", '"layer"') + '"layer0","8","8","1.5"\n',
        HEADER.replace("layer,", "layer,in_channels,kernel,") + "layer0,2.0,1x1,8,8,1.5\n",
        HEADER.replace("layer,", "layer,batch,") + "layer0,1.0,8,8,1.5\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_what_spreadsheets_write_is_read_as_it_says(text, encoding, tmp_path):
    assert read_one(tmp_path / "mine.csv", text, encoding=encoding, newline="") == pytest.approx(1.5e-3, rel=1e-12)


@pytest.mark.parametrize("data", [HEADER.encode() + b"a\xff,8,8,1\n", HEADER.encode("utf-16")])
def test_a_table_that_is_no_utf_8_is_told_with_its_line(data, tmp_path):
    (tmp_path / "mine.csv").write_bytes(data)
    with pytest.raises(ValueError, match=r"mine.csv, line [12]: no UTF-8 text"):
        machine(tmp_path / "mine.csv")


@pytest.mark.parametrize("suffix", [".csv", ".npy", ".parquet"])
def test_a_table_of_another_batch_is_told(suffix, tmp_path):
    path = tmp_path / f"mine{suffix}"
    save_table(path, rising_table(), LAYERS, 16)
    with pytest.warns(UserWarning, match="latency and energy are of batches of 16 images"):
        found = machine(path)
    assert found.batch == 16
    np.testing.assert_array_equal(cost_table(found, LAYERS).latency, rising_table().latency)
    assert machine("cloud").batch == 16 and machine("edge").batch == 1


def test_an_energy_that_is_there_for_some_rows_only_is_told_and_not_used(tmp_path):
    path = write(tmp_path / "mine.csv", HEADER.replace("\n", ",energy_mj\n") + "layer0,8,8,1,2\nlayer1,8,8,1,\n")
    with pytest.warns(UserWarning, match="line 3: energy_mj is missing"):
        found = machine(path)
    assert np.isnan(cost_table(found, table([dense(2, 2), dense(2, 2)])).energy).all()


def header_of(text, version=1):
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2, "little") + text.encode()


def shaped(shape, dtype="<i8"):
    return header_of(f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n")


def npz():
    out = io.BytesIO()
    np.savez(out, table=np.ones((3, 8, 8), int))
    return out.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (npz(), "an archive of arrays"),
        (
            shaped((10**11, 8, 8)) + bytes(64),
            "its header says (100000000000, 8, 8) entries of 8 bytes, but 64 bytes follow",
        ),
        (shaped((1, 8, 8)) + bytes(511), "its header says (1, 8, 8) entries of 8 bytes, but 511 bytes follow"),
        (shaped((-1, -8, 8)) + bytes(512), "not a .npy file of numbers"),
        (shaped((1, 8, 8), "V0"), "not a .npy file of numbers"),
        (header_of("(" * 3000), "not a .npy file of numbers"),
        (header_of("[" * 9000), "not a .npy file of numbers"),
        (header_of("{'descr': '<i8'"), "not a .npy file of numbers"),
        (header_of("x" * 20_000), "not a .npy file of numbers"),
        (header_of("{}", version=9), "not a .npy file of numbers"),
        (b"", "not a .npy file of numbers"),
    ],
)
def test_a_header_is_believed_only_as_far_as_the_file_goes(data, message, tmp_path):
    (tmp_path / "mine.npy").write_bytes(data)
    with pytest.raises(ValueError, match="mine.npy") as error:
        machine(tmp_path / "mine.npy")
    assert message in str(error.value) and str(error.value).isprintable()


NAMED = {"layer": "U3", "weight_bits": "i1", "activation_bits": "i1", "latency_s": "f8"}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones((3, 8, 8), "m8[s]"), "has timedelta64[s], which says no unit"),
        (np.ones((3, 8, 8), bool), "has bool, which says no unit"),
        (np.array(5), "has shape (), expected"),
        (np.zeros((0, 8, 8), int), "has shape (0, 8, 8), expected"),
        (np.full((3, 8, 8), -1), "is -5e-09; it must be finite and above 0"),
        (np.zeros((2, 2), list(NAMED.items())), "has the shape (2, 2), expected a row"),
        (np.zeros((), list(NAMED.items())), "has the shape (), expected a row"),
        (np.zeros(2, list((NAMED | {"latency_s": "m8[s]"}).items())), "column 'latency_s' holds timedelta64[s]"),
        (np.zeros(2, list((NAMED | {"latency_s": "?"}).items())), "column 'latency_s' holds bool"),
        (np.zeros(2, list((NAMED | {"layer": "S3"}).items())), "column 'layer' holds |S3"),
        (np.zeros(2, list((NAMED | {"layer": "O"}).items())), "not a .npy file of numbers"),
        (np.zeros(2, [*NAMED.items(), ("kernel", "i4", (2,))]), "column 'kernel' holds arrays of the shape (2,)"),
        (np.zeros(2, list(NAMED.items())), "row 1: weight_bits is 0.0, expected a whole number from 1 to 8"),
    ],
)
def test_an_array_of_another_kind_is_named(values, message, tmp_path):
    np.save(tmp_path / "mine.npy", values)
    with pytest.raises(ValueError, match="mine.npy") as error:
        machine(tmp_path / "mine.npy")
    assert message in str(error.value) and str(error.value).isprintable()


def test_letters_that_no_text_has_are_told(tmp_path):
    values = np.array([("abc", 8, 8, 1.0)], list(NAMED.items()))
    np.save(tmp_path / "mine.npy", values)
    data = (tmp_path / "mine.npy").read_bytes()
    (tmp_path / "mine.npy").write_bytes(data.replace(b"b\0\0\0c", b"b\xff\xff\xffc"))
    with pytest.raises(ValueError, match="column 'layer' holds no text"):
        machine(tmp_path / "mine.npy")


COLUMNS = {"layer": ["a", "b"], "weight_bits": [8, 8], "activation_bits": [8, 8], "latency_s": [1.0, 2.0]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": ["a", None]}, "row 2: layer is missing"),
        ({"layer": [b"a", b"b"]}, "column 'layer' holds binary, expected text or numbers"),
        ({"layer": [[1], [2]]}, "column 'layer' holds list<"),
        ({"latency_s": [{"a": 1}, {"a": 2}]}, "column 'latency_s' holds struct<"),
        ({"latency_s": [timedelta(1), timedelta(2)]}, "column 'latency_s' holds duration[us]"),
        ({"latency_s": [1.0, None]}, "row 2: latency_s is missing, expected"),
        ({"latency_s": ["1", "x"]}, "row 2: latency_s is 'x', expected"),
        ({"weight_bits": [8.0, 8.5]}, "row 2: weight_bits is 8.5, expected a whole number from 1 to 8"),
        ({"weight_bits": [True, True]}, "column 'weight_bits' holds bool"),
        ({"x\n" * 100: [1, 2]}, r"unknown column 'x\nx\n"),
        ({"kernel": ["1x1", None]}, "row 2: kernel is missing"),
    ],
)
def test_a_fault_in_a_parquet_file_is_one_clear_line(change, message, tmp_path):
    pyarrow.parquet.write_table(pyarrow.table(COLUMNS | change), tmp_path / "mine.parquet")
    with pytest.raises(ValueError, match="mine.parquet") as error:
        machine(tmp_path / "mine.parquet")
    assert message in str(error.value)
    assert str(error.value).isprintable() and len(str(error.value)) <= 500


@pytest.mark.parametrize(
    "change",
    [
        {"weight_bits": ["8", "8.0"]},
        {"weight_bits": pyarrow.array([8, 8], pyarrow.uint8())},
        {"layer": pyarrow.array(["a", "b"]).dictionary_encode()},
        {"layer": pyarrow.array(["a", " b"], pyarrow.large_string())},
        {"latency_s": [Decimal("1.0"), Decimal("2.0")]},
        {"latency_s": pyarrow.array([1, 2], pyarrow.float16())},
        {"energy_j": pyarrow.nulls(2)},
        {"in_channels": [2.0, 2.0]},
    ],
)
def test_parquet_files_of_others_are_read(change, tmp_path):
    pyarrow.parquet.write_table(pyarrow.table(COLUMNS | change), tmp_path / "mine.parquet")
    layers = dataclasses.replace(table([dense(2, 2), dense(2, 2)]), names=("a", "b"))
    assert cost_table(machine(tmp_path / "mine.parquet"), layers).latency[:, 7, 7].tolist() == [1.0, 2.0]


def test_a_parquet_file_of_more_rows_than_fit_is_not_unpacked(tmp_path):
    rows = pyarrow.table({"layer": pyarrow.DictionaryArray.from_arrays(np.zeros(3_000_000, np.int8), ["a"])})
    pyarrow.parquet.write_table(rows, tmp_path / "mine.parquet")
    with pytest.raises(ValueError, match="has 3000000 rows, more than the 2097152 that are read"):
        machine(tmp_path / "mine.parquet")


@pytest.mark.parametrize("suffix", [".csv", ".npy", ".parquet", ".yaml"])
def test_what_is_no_file_is_named_and_never_waited_for(suffix, tmp_path):
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (tmp_path / f"folder{suffix}").mkdir()
    (tmp_path / f"loop{suffix}").symlink_to(tmp_path / f"loop{suffix}")
    for name, message in {"pipe": "no regular file", "folder": "a folder", "loop": "symbolic links"}.items():
        with pytest.raises(ValueError, match=rf"{name}{suffix} .*{message}"):
            machine(tmp_path / f"{name}{suffix}")


def test_a_large_table_is_read_as_a_small_one(tmp_path):
    """30,000 layers, which took minutes; benchmarks/tables.py has the time of 200,000."""
    text = "".join(f"l{at},{w},8,{at % 7 + w}\n" for at in range(15_000) for w in (4, 8))
    found = machine(write(tmp_path / "mine.csv", HEADER + text)).spec
    assert len(found.names) == 15_000 and found.names[14_999] == "l14999"
    latency = found.lay_out(found.latency, np.arange(15_000)[::-1])
    np.testing.assert_allclose(latency[::-1, 3, 7] * 1e3, np.arange(15_000) % 7 + 4)
    assert found.energy is None and np.count_nonzero(~np.isnan(latency)) == 30_000


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
        ("no/such/mine.csv", LAYERS, "no/such/mine.csv cannot be written: .*no/such is no folder"),
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
