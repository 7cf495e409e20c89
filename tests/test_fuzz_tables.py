"""Damaged machines and tables: each is read to costs that are numbers above 0, or refused in one short line."""

import csv
import dataclasses
import io
import warnings

import numpy as np
import pytest

from haqjax.hardware import cost_table, machine, save_table
from haqjax.hardware.machines import FOLDER, Machine
from haqjax.types import Cost, CostTable
from mutations import CSV_WAYS, LONGEST, NPY_WAYS, PARQUET_WAYS, YAML_WAYS, damage, read_or_refuse
from references_hardware import conv, dense, table

LAYERS = dataclasses.replace(table([conv(3, 1, 4, 4, 5, groups=4), dense(100, 3)]), names=("depth.wise", "head"))
COUNT, SEED = 300, 0


def count_costs(path):
    """Prices the network; nothing that is not known or not possible is below or at 0."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = cost_table(machine(path), LAYERS)
    lines = [str(one.message) for one in told]
    assert all(line.isprintable() and len(line) <= LONGEST for line in lines), lines
    measured = path.suffix != ".yaml"
    for values in (found.latency, found.energy):
        known = values[~np.isnan(values)]
        assert (known > 0).all() and (np.isfinite(known).all() or measured)
    assert not np.isnan(found.latency).any() and (measured or np.isfinite(found.latency).all())
    return found


def check_as_written(path, found):
    """Reads a CSV table line by line, by Python's own reader: what is not refused is what stands there."""
    header, *rows = [row for row in csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")) if row]
    header = [name.strip() for name in header]
    (unit,) = [name for name in header if name.startswith("latency_")]
    for row in rows:
        cells = dict(zip(header, (cell.strip() for cell in row), strict=True))
        w, a = (int(float(cells[f"{name}_bits"])) - 1 for name in ("weight", "activation"))
        layer = LAYERS.names.index(cells["layer"].replace("\0", ""))
        expected = float(cells[unit]) * {"s": 1, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}[unit.removeprefix("latency_")]
        assert found.latency[layer, w, a] == pytest.approx(expected, rel=1e-12)


def try_all(path, data, ways, seed=SEED, count=COUNT):
    """Reads as many damaged copies of a file; some must come through, as many damages leave a file valid."""
    path.write_bytes(data)
    assert count_costs(path) is not None
    read = 0
    for damaged in damage(data, count, seed, ways):
        path.write_bytes(damaged)
        found = read_or_refuse(lambda: count_costs(path), damaged)
        read += found is not None
        if found is not None and path.suffix == ".csv":
            check_as_written(path, found)
    assert 0 < read < count


def warm_up():
    """Compiles what BitFusion needs of any machine below, so that the time of a reading is its own."""
    found = machine("bitfusion")
    for batch in (16, 2**31):
        cost_table(Machine("mine", found.model, found.spec._replace(batch=batch)), LAYERS)


def saved(ending, folder):
    """What `save_table` writes for three widths, as bytes."""
    bits = np.arange(1.0, 9.0)
    costs = np.where(np.isin(bits, (2, 4, 8)), bits, np.nan)
    values = (costs[None, :, None] * 10 + costs[None, None, :] + np.array([100, 200])[:, None, None]) * 1e-6
    path = folder / f"whole{ending}"
    save_table(path, CostTable(values, 2 * values, values, Cost(*np.zeros(3))), LAYERS, 1)
    return path.read_bytes()


def as_haq():
    out = io.BytesIO()
    np.save(out, np.arange(1, 129).reshape(2, 8, 8) * 100)
    return out.getvalue()


@pytest.mark.parametrize("name", ["bismo_edge", "bitfusion", "roofline", "systolic"])
def test_machines(name, tmp_path):
    if name == "bitfusion":
        warm_up()
    try_all(tmp_path / "mine.yaml", (FOLDER / f"{name}.yaml").read_bytes(), YAML_WAYS, count=COUNT // 4)


def test_csv_tables(tmp_path):
    try_all(tmp_path / "mine.csv", saved(".csv", tmp_path), CSV_WAYS)


@pytest.mark.parametrize("kind", ["named", "plain"])
def test_npy_tables(kind, tmp_path):
    data = saved(".npy", tmp_path) if kind == "named" else as_haq()
    try_all(tmp_path / "mine.npy", data, NPY_WAYS, count=COUNT // 2)


def test_parquet_tables(tmp_path):
    try_all(tmp_path / "mine.parquet", saved(".parquet", tmp_path), PARQUET_WAYS)
