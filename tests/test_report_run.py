"""A report is made of what a run folder holds, and says what it lacks."""

import dataclasses
import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import jax.numpy as jnp
import numpy as np
import pytest
import yaml
from PIL import Image
from rich.console import Console

import haqjax.run.commands.report
from haqjax.hardware import machine, save_table, total_cost
from haqjax.report.palette import KINDS
from haqjax.report.run_data import best_reward, find_front, front_resources
from haqjax.run.commands.report import run_report
from haqjax.run.commands.table import find_network
from haqjax.run.config.commands import ReportConfig
from haqjax.run.config.options import with_options
from haqjax.run.folder.run_data import read_run_data
from haqjax.run.rooflines import find_rooflines
from haqjax.tracing.layer_table import layers
from report_world import EPISODES, cost_fields, make_prepared, write_run

ROOT = Path(__file__).parents[1]
PICTURES = {"bits", "costs", "roofline", "search", "policies"}


def report(*folders, out=None):
    return run_report(ReportConfig(run=tuple(map(str, folders)), out=out and str(out)), Console(quiet=True))


def drawn(folder):
    return {path.name for path in (folder / "figures").iterdir()}


@pytest.fixture
def quick(monkeypatch):
    """Figures for paper are not drawn: most of a report's time."""
    monkeypatch.setattr(haqjax.run.commands.report, "as_bytes", lambda figure, ending: b"<svg/>")


@pytest.fixture(scope="module")
def world():
    return make_prepared()


@pytest.fixture(scope="module")
def folder(world, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "first", *world)


@pytest.fixture(scope="module")
def run_data(folder):
    return read_run_data(folder)


def test_costs_of_the_layers_add_up_to_those_of_the_network(world, run_data):
    _, prepared = world
    for policy, after in ((np.full_like(run_data.policy, 8), False), (run_data.policy, True)):
        full = total_cost(prepared.table, jnp.asarray(policy))
        for name, spent in run_data.layer_costs.items():
            assert spent[after].sum() == pytest.approx(float(getattr(full, name)))
    assert list(run_data.layer_costs) == ["latency", "energy"] and not run_data.notes


def test_rows_are_those_of_policy_json(folder, run_data):
    document = json.loads((folder / "policy.json").read_text())
    assert [row.name for row in run_data.rows] == ["8 bits", "uniform 4", "found by ilp", "float"]
    for name, row in zip(("8_bits", "uniform", "policy", "float"), run_data.rows, strict=True):
        assert row.accuracy == document["accuracies"]["report"][name] and row.images == 100
    assert run_data.rows[2].cost.energy == document["costs"]["policy"]["energy_j"]
    assert run_data.budget == {"latency": document["budget"]["latency_s"]}


def test_the_front_is_what_no_other_policy_beats(run_data):
    cost, accuracy = run_data.episodes.cost.latency, run_data.episodes.accuracy
    beaten = [
        any(
            cost[b] <= cost[a] and accuracy[b] >= accuracy[a] and (cost[b] < cost[a] or accuracy[b] > accuracy[a])
            for b in range(EPISODES)
        )
        for a in range(EPISODES)
    ]
    assert sorted(find_front(run_data.episodes, "latency").tolist()) == np.flatnonzero(~np.array(beaten)).tolist()
    assert 0 < sum(beaten) < EPISODES


def test_the_best_reward_is_left_out_where_budgets_change(run_data):
    episodes = run_data.episodes
    assert np.nanmax(best_reward(episodes)) == episodes.reward[episodes.feasible].max()
    falls = episodes._replace(best=np.where(np.arange(EPISODES) < 5, 0.9, 0.5))
    assert np.isnan(best_reward(falls)).all()


@pytest.mark.parametrize("name", ["edge", "cloud", "bitfusion", "roofline", "systolic"])
def test_no_layer_is_above_its_roof(world, name):
    table = world[1].layers
    found = find_rooflines(machine(name), table, np.full((len(table), 2), 2))
    for place, peak in ((found.before, found.peaks[8]), (found.after, found.peaks[2])):
        roof = np.minimum(peak, place.intensity * found.bandwidth)
        assert (place.speed <= roof * (1 + 1e-6)).all()
        assert (place.speed / roof).max() > 0.3  # and the roof is no higher than it must be


def test_roofs_are_the_arithmetic_and_the_ports_of_the_machine():
    apply, params, example, _ = find_network("resnet20", 10, 32)
    table = layers(apply, params, example)
    found = find_rooflines(machine("edge"), table, np.full((len(table), 2), 4))
    at_1_bit = 2 * 8 * 8 * 256 * 200e6  # operations a second of 8 x 8 units of 256 products at 200 MHz
    assert found.peaks == pytest.approx({8: at_1_bit / 64, 4: at_1_bit / 16, 2: at_1_bit / 4})
    assert found.bandwidth == pytest.approx(2 * 64 / 8 * 200e6)  # two ports of 64 bits
    assert find_rooflines(machine("roofline"), table, np.full((len(table), 2), 4)).bandwidth == pytest.approx(8 * 500e6)


def test_everything_is_written_for_paper_as_well(folder):
    page = report(folder)
    assert page == folder / "report.html"
    assert drawn(folder) == {f"{name}.{end}" for name in PICTURES for end in ("png", "svg")}
    for path in (folder / "figures").iterdir():
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert image.width == 2160
        else:
            assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_the_same_run_gives_the_same_page(folder, quick):
    assert report(folder).read_bytes() == report(folder).read_bytes()


def test_several_runs_go_to_the_first_folder_or_to_out(world, folder, tmp_path, quick):
    config, prepared = world
    same = write_run(tmp_path / "first", with_options(config, {"seed": 5}), prepared, seed=5)
    assert report(same, folder) == same / "report.html"
    assert report(folder, same, out=tmp_path / "new" / "place") == tmp_path / "new" / "place" / "report.html"
    names = {f"first-{at}-{name}" for at in (1, 2) for name in PICTURES} | {"runs"}
    assert drawn(tmp_path / "new" / "place") == {f"{name}.{end}" for name in names for end in ("png", "svg")}


def test_a_search_that_was_killed_is_told_to_go_on(folder, tmp_path):
    killed = shutil.copytree(folder, tmp_path / "killed")
    shutil.rmtree(killed / "figures", ignore_errors=True)
    for name in ("policy.json", "report.html"):
        (killed / name).unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r"has not ended: go on with `make search RESUME=.*killed`$"):
        report(folder, killed, out=tmp_path / "out")
    assert not (tmp_path / "out").exists() and not (killed / "report.html").exists()


@pytest.mark.parametrize("runs", [(), ("nowhere",)])
def test_what_is_no_run_is_refused(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="nowhere is not there: give the folder of a run|no run was given"):
        report(*runs)
    assert not list(tmp_path.iterdir())


def test_a_run_without_its_episodes_says_so(folder, tmp_path, quick):
    copy = shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(copy / "figures", ignore_errors=True)
    (copy / "episodes.csv").unlink()
    page = report(copy).read_text()
    assert "There is no episodes.csv" in page and "<h2>Search</h2>" not in page
    assert drawn(copy) == {f"{name}.{end}" for name in ("bits", "costs", "roofline") for end in ("png", "svg")}


def test_episodes_of_something_else_are_an_error_of_one_line(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "episodes.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"episodes.csv is not what a search wrote: .*feasible"):
        read_run_data(copy)


def test_without_its_data_a_run_is_shown_as_far_as_it_goes(folder, tmp_path, quick):
    copy = shutil.copytree(folder, tmp_path / "copy")
    document = yaml.safe_load((copy / "config.yaml").read_text())
    (copy / "config.yaml").write_text(yaml.safe_dump(document | {"data": "npz:gone.npz"}))
    found = read_run_data(copy)
    assert "gone.npz" in found.notes[0] and not found.layer_costs and found.rooflines is None
    assert set(found.layers.names) and len(found.policy) == 28
    assert "neither described nor priced" in report(copy).read_text()


def test_costs_that_have_changed_since_the_run_are_told(world, tmp_path):
    config, prepared = world
    costs = {name: cost_fields(prepared, np.full((28, 2), 8)) for name in ("8_bits", "uniform", "policy")}
    found = read_run_data(write_run(tmp_path / "old", config, prepared, costs=costs))
    assert any("differs from the costs in policy.json" in note for note in found.notes)


def test_a_search_that_was_interrupted_says_so(world, tmp_path):
    found = read_run_data(write_run(tmp_path / "stopped", *world, interrupted=True))
    assert found.notes == (f"The search was interrupted after {EPISODES} policies.",)


def test_a_fine_tuned_run_has_a_row_more(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    (copy / "finetune.json").write_text(json.dumps({"report": {"before": 0.5, "after": 0.75, "images": 100}}))
    rows = {row.name: row.accuracy for row in read_run_data(copy).rows}
    assert rows["found, fine-tuned"] == 0.75


def test_a_size_budget_shows_sizes_and_no_activations(tmp_path, quick):
    found = read_run_data(write_run(tmp_path / "size", *make_prepared(metric="size", budget="0.5", search="random")))
    assert list(found.layer_costs) == ["size"] and front_resources(found) == ["size"] and found.rooflines is None
    assert (found.policy[:, 1] == 32).all()
    (note,) = found.notes
    assert note.startswith("Tensors are left in floating point")
    page = report(tmp_path / "size").read_text()
    assert "weight bits" in page and '"text":"activation bits"' not in page


def test_several_budgets_have_a_front_each(tmp_path):
    found = read_run_data(write_run(tmp_path / "two", *make_prepared(metric="latency,memory", budget="0.6,0.7")))
    assert front_resources(found) == ["latency", "memory"] and list(found.layer_costs) == ["latency", "energy"]


def test_a_measured_table_has_no_roofline_and_perhaps_no_energy(world, tmp_path, quick):
    config, prepared = world
    save_table(
        tmp_path / "board.csv",
        dataclasses.replace(prepared.table, energy=np.full_like(prepared.table.energy, np.nan)),
        prepared.layers,
    )
    board = write_run(tmp_path / "board", *make_prepared(hw=str(tmp_path / "board.csv")))
    found = read_run_data(board)
    assert found.rooflines is None and list(found.layer_costs) == ["latency"]
    assert len(found.notes) == 2 and "measured table" in found.notes[0] and "no energy model" in found.notes[1]
    report(board)
    assert "roofline.png" not in drawn(board)


def test_a_front_is_a_table_of_its_own(folder, run_data, tmp_path, quick):
    copy, document = shutil.copytree(folder, tmp_path / "copy"), json.loads((folder / "policy.json").read_text())
    some = {"costs": document["costs"]["policy"], "accuracies": {"search": 0.5, "report": 0.61}}
    even = {"bits": 4, "costs": document["costs"]["uniform"], "accuracies": {"search": 0.5, "report": 0.52}}
    policies = [some | {"budget": {"fraction": fraction}, "uniform": even} for fraction in (0.5, 0.75)]
    (copy / "front.json").write_text(json.dumps({"policies": policies}))
    rows = [(row.name, row.accuracy) for row in read_run_data(copy).front]
    assert rows[1:3] == [("found within 0.5", 0.61), ("uniform 4, within 0.5", 0.52)] and len(rows) == 5
    assert run_data.front == () and "uniform 4, within 0.75" in report(copy).read_text()


def test_every_kind_of_layer_is_there(run_data):
    assert run_data.layers.depthwise.sum() == 13 and run_data.layers.pointwise.sum() == 13 and len(KINDS) == 3
