"""Damaged run folders are read, or refused in one line: 300 seeded damages of each file."""

import json
import shutil

import pytest
import yaml

from haqjax.hardware import machine
from haqjax.report.catalogue import PICTURES
from haqjax.report.page import make_page
from haqjax.run import SearchConfig
from haqjax.run.commands.search import find_folder
from haqjax.run.finished import match_policy
from haqjax.run.folder import run_data
from haqjax.run.folder.documents import open_folder, read_policy
from mutations import CSV_WAYS, JSON_WAYS, YAML_WAYS, damage, read_or_refuse
from report_world import EPISODES, make_prepared, write_run

COUNT, PAGES, SEED = 300, 2, 0
WAYS = {
    "policy.json": JSON_WAYS,
    "config.yaml": YAML_WAYS,
    "episodes.csv": CSV_WAYS,
    "front.json": JSON_WAYS,
    "finetune.json": JSON_WAYS,
}


@pytest.fixture(scope="module")
def world():
    return make_prepared()


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """A run folder with all of the files, the options of a search that was started by command line among them."""
    folder = write_run(tmp_path_factory.mktemp("runs") / "run", *world)
    document = json.loads((folder / "policy.json").read_text())
    some = {"costs": document["costs"]["policy"], "accuracies": {"search": 0.5, "report": 0.61}}
    point = some | {"budget": document["budget"] | {"fraction": 0.5}, "uniform": some | {"bits": 4}, "episode": 3}
    front = {"resource": "latency", "named": 0, "episodes": EPISODES}
    front["policies"] = [point | {"layers": document["layers"]}, point]
    (folder / "front.json").write_text(json.dumps(front, indent=2))
    tuned = {"run": "runs/x", "epochs": 3, "report": {"before": 0.5, "after": 0.75, "images": 100}}
    (folder / "finetune.json").write_text(json.dumps(tuned))
    options = yaml.safe_load((folder / "config.yaml").read_text()) | {"splits": ["a", "b"], "max_drop": None}
    (folder / "config.yaml").write_text(yaml.safe_dump(options))
    return folder


@pytest.fixture
def prepared(world, monkeypatch):
    """The network is priced once; the damaged options are read all the same."""

    def prepare(config):
        machine(config.target.hw)
        return world[1]

    monkeypatch.setattr(run_data, "prepare", prepare)
    return world[1]


def read_as_commands_do(folder, names):
    """What report, evaluate and RESUME read of a run folder, without what they compute."""
    config = open_folder(folder)
    find_folder(SearchConfig.of(resume=str(folder)))
    match_policy(folder / "policy.json", read_policy(folder, config), names)
    return run_data.read_run_data(folder)


@pytest.mark.parametrize("name", WAYS)
def test_a_damaged_run_is_read_or_refused_in_one_line(name, whole, prepared, tmp_path):
    folder = shutil.copytree(whole, tmp_path / "run")
    assert read_as_commands_do(folder, prepared.layers.names) is not None
    refused, pages = 0, 0
    for damaged in damage((whole / name).read_bytes(), COUNT, SEED, WAYS[name]):
        (folder / name).write_bytes(damaged)
        found = read_or_refuse(lambda: read_as_commands_do(folder, prepared.layers.names), damaged)
        refused += found is None
        if found is not None and damaged != (whole / name).read_bytes() and pages < PAGES:  # what was read can be shown
            make_page([found], {key: [None] for key in PICTURES})
            pages += 1
    assert COUNT / 3 < refused < COUNT
