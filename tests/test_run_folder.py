"""What a run folder says is checked, field by field; what a search writes is read back."""

import json
import os
import shutil

import pytest
import yaml

from haqjax.run import SearchConfig
from haqjax.run.config.options import to_options
from haqjax.run.folder.documents import read_episodes, read_front, read_policy, read_run_config, read_tuned
from haqjax.run.folder.run_data import read_run_data
from report_world import EPISODES, make_prepared, write_run


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "run", *make_prepared())


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "run")


def change(document, place, value):
    """Replaces the value at `a.b.0` of a document."""
    *way, last = [int(key) if key.isdigit() else key for key in place.split(".")]
    for key in way:
        document = document[key]
    document[last] = value


def refuse(read):
    """Returns the one line that a reading is refused with."""
    with pytest.raises(ValueError) as refused:
        read()
    said = str(refused.value)
    assert said.isprintable() and len(said) <= 500
    return said


WIDTHS = "expected 1 to 8, or 32 for what is left in floating point"
POLICY = [
    ("layers.3.weight_bits", 99, f"layers[3].weight_bits is 99, {WIDTHS}"),
    ("layers.3.weight_bits", 0, f"layers[3].weight_bits is 0, {WIDTHS}"),
    ("layers.3.activation_bits", -1, f"layers[3].activation_bits is -1, {WIDTHS}"),
    ("layers.3.weight_bits", 1, "layers[3].weight_bits is 1, expected 2 to 8, or 32"),
    ("layers.3.activation_bits", 1, "layers[3].activation_bits is 1, expected 2 to 8, or 32"),
    ("layers.3.weight_bits", True, "layers[3].weight_bits is True, expected int, got bool"),
    ("layers.3.weight_bits", None, "layers[3].weight_bits is None, expected int, got null"),
    ("layers.3.weight_bits", 8.0, "layers[3].weight_bits is 8.0, expected int, got float"),
    ("layers.3.name", "stem", "layers[3].name is 'stem', as of a layer before it"),
    ("layers.3.name", "x" * 2000, "layers[3].name is 'xxx"),
    ("layers", 5, "layers is 5, expected array, got int"),
    ("layers", [], "layers is [], expected array of length >= 1"),
    ("costs", None, "costs is None, expected object, got null"),
    ("costs.policy.latency_s", -1.0, "costs.policy.latency_s is -1.0, expected float >= 0.0"),
    ("costs.policy.energy_j", float("nan"), "is no JSON file: NaN is no number of JSON"),
    ("costs.8_bits", {"latency_s": "x"}, "costs.8_bits.latency_s is 'x', expected float | null, got str"),
    ("accuracies.report.images", 0, "accuracies.report.images is 0, expected int >= 1"),
    ("accuracies.report.policy", 5.0, "accuracies.report.policy is 5.0, expected float <= 1"),
    ("accuracies.search", {}, "lacks float in accuracies.search"),
    ("best_episode", EPISODES, f"best_episode is {EPISODES}, expected less than episodes, {EPISODES}"),
    ("episodes", "many", "episodes is 'many', expected int, got str"),
    ("episodes", 2**70, f"episodes is {2**70}, expected int <= {2**53}"),
    ("seed", -1, "seed is -1, expected int >= 0"),
    ("interrupted", "no", "interrupted is 'no', expected bool, got str"),
    ("budget.latency_s", [1], "budget.latency_s is [1], expected float | null, got array"),
    ("uniform_bits", 9, f"uniform_bits is 9, {WIDTHS}"),
    ("hardware", None, "hardware is None, expected str, got null"),
]


@pytest.mark.parametrize("place, value, message", POLICY, ids=[f"{p}={str(v)[:9]}" for p, v, _ in POLICY])
def test_a_field_of_policy_json_that_no_search_wrote_is_named(place, value, message, folder):
    document = json.loads((folder / "policy.json").read_text())
    change(document, place, value)
    (folder / "policy.json").write_text(json.dumps(document))
    said = refuse(lambda: read_run_data(folder))
    assert said.startswith(f"{folder / 'policy.json'}") and message in said


@pytest.mark.parametrize("missing", ["layers", "costs", "accuracies", "budget", "best_episode", "weights"])
def test_a_field_that_is_missing_is_named(missing, folder):
    document = json.loads((folder / "policy.json").read_text())
    del document[missing]
    (folder / "policy.json").write_text(json.dumps(document))
    said = refuse(lambda: read_run_data(folder))
    assert said == f"{folder / 'policy.json'} lacks {missing}: it is not what a search wrote"


def test_widths_are_held_against_the_kind_of_quantiser(folder):
    document = json.loads((folder / "policy.json").read_text())
    for layer in document["layers"]:
        layer |= {"weight_bits": 1, "activation_bits": 32}
    (folder / "policy.json").write_text(json.dumps(document))
    size = SearchConfig.of(metric="size", search="random")
    assert {layer.weight_bits for layer in read_policy(folder, size).layers} == {1}
    assert "expected 2 to 8" in refuse(lambda: read_policy(folder, SearchConfig()))


CONFIG = [
    ("episodes", "many", "episodes is 'many', expected int"),
    ("episodes", None, "episodes is None, expected int"),
    ("episodes", 10**30, f"episodes is {10**30}: give a whole number from 1 to 10000000"),
    ("seed", 1.5, "seed is 1.5, expected int"),
    ("seed", True, "seed is True, expected int"),
    ("search", ["ilp"], "search is ('ilp',), expected str"),
    ("model", None, "model is None, expected str"),
    ("model", {"a": 1}, "model is {'a': 1}, expected str"),
    ("splits", [1, 2], "splits is (1, 2), expected str"),
    ("splits", "train", "splits is 'train', expected array"),
    ("max_drop", "1", "max_drop is '1', expected float | null"),
    ("max_drop", float("nan"), "max_drop is nan"),
    ("race", float("inf"), "race is inf"),
    ("budget", [0.6], "budget is (0.6,), expected"),
    ("out", "x" * 5000, "of 5000 characters: at most 4096 are read"),
    ("image_size", 100000, "image_size is 100000: give a whole number from 1 to 4096; larger ones fill the memory"),
    ("parallel", 0, "parallel is 0: give a whole number from 1"),
    ("wings", 2, "has 'wings', which is no option of a search: take it out"),
    ("versions", [1], "versions is [1], expected object | null, got array"),
    ("device", 1, "device is 1, expected str | null, got int"),
]


@pytest.mark.parametrize("name, value, message", CONFIG, ids=[f"{n}={str(v)[:9]}" for n, v, _ in CONFIG])
def test_an_option_of_config_yaml_that_is_none_is_named(name, value, message, folder):
    document = yaml.safe_load((folder / "config.yaml").read_text()) | {name: value}
    (folder / "config.yaml").write_text(yaml.safe_dump(document))
    said = refuse(lambda: read_run_config(folder))
    assert said.startswith(f"{folder / 'config.yaml'}") and message in said


@pytest.mark.parametrize(
    "text, message",
    [
        ("[1, 2]", "is [1, 2], expected options by name"),
        ("hw: edge\n", "lacks model"),
        ("model: resnet20\nhw: edge\n1: 2\n", "expected options by name"),
        ("model: &a resnet20\nhw: *a\n", "line 2 has an alias"),
        ("model: !!python/name:os.system x\n", "is no YAML file"),
    ],
)
def test_a_config_yaml_of_another_kind_is_refused(text, message, folder):
    (folder / "config.yaml").write_text(text)
    assert message in refuse(lambda: read_run_config(folder))


def test_options_that_the_command_line_writes_are_read_back(folder):
    config = SearchConfig.of(splits=("a", "b"), race=0.1, search="random", budget=0.5, data="npz:x")
    written = {name: list(value) if isinstance(value, tuple) else value for name, value in to_options(config).items()}
    (folder / "config.yaml").write_text(yaml.safe_dump(written | {"versions": {"jax": "0.10"}, "device": "cpu x 1"}))
    found = read_run_config(folder)
    assert found.config == config and found.versions == {"jax": "0.10"} and found.device == "cpu x 1"


CELLS = [
    (3, "accuracy", "1.5", "line 5: accuracy is '1.5', expected float <= 1"),
    (3, "accuracy", "nan", "line 5: accuracy is 'nan', expected float >= 0"),
    (3, "latency_s", "1,5", "line 5: 13 cells for"),
    (3, "latency_s", "-1", "line 5: latency_s is '-1', expected float >= 0"),
    (3, "feasible", "perhaps", "line 5: feasible is 'perhaps', expected bool"),
    (3, "episode", "7", "line 5: episode is 7, expected 3"),
    (3, "episode", "", "line 5: episode is None, expected int"),
    (3, "reward", "x" * 200_000, "line 5: field larger than field limit"),
    (3, "reward", '"x', "line"),
]


@pytest.mark.parametrize("row, column, text, message", CELLS, ids=[f"{c}={t[:9]}" for _, c, t, _ in CELLS])
def test_a_cell_of_episodes_csv_that_no_search_wrote_is_named(row, column, text, message, folder):
    lines = (folder / "episodes.csv").read_text().splitlines()
    cells = lines[row + 1].split(",")
    cells[lines[0].split(",").index(column)] = text
    lines[row + 1] = ",".join(cells)
    (folder / "episodes.csv").write_text("\n".join(lines) + "\n")
    said = refuse(lambda: read_episodes(folder))
    message = message.replace("13 cells", f"{len(cells) + 1} cells")
    assert said.startswith(f"{folder / 'episodes.csv'}") and message in said


@pytest.mark.parametrize(
    "header, message",
    [
        ("episode,accuracy", "it has no column reward, feasible, best_accuracy"),
        ("episode,accuracy,reward,feasible,best_accuracy,mood", "column 'mood'"),
        ("episode,accuracy,reward,feasible,best_accuracy,bops,bops", "column 'bops'"),
    ],
)
def test_columns_of_episodes_csv_are_those_of_a_search(header, message, folder):
    (folder / "episodes.csv").write_text(header + "\n")
    assert message in refuse(lambda: read_episodes(folder))


def test_an_episodes_csv_that_is_behind_is_told(folder):
    lines = (folder / "episodes.csv").read_text().splitlines()
    (folder / "episodes.csv").write_text("\n".join(lines[:-1]) + "\n")
    found = read_run_data(folder)
    assert f"episodes.csv has {EPISODES - 1} policies, policy.json is of {EPISODES}: the search goes on." in found.notes


def write_front(folder, **changes):
    document = json.loads((folder / "policy.json").read_text())
    some = {"costs": document["costs"]["policy"], "accuracies": {"search": 0.5, "report": 0.61}}
    point = some | {"budget": {"fraction": 0.5}, "uniform": some | {"bits": 4}, "episode": 3}
    front = {"policies": [point | {"layers": document["layers"]}], "named": 0, "episodes": EPISODES}
    for place, value in changes.items():
        change(front, place.replace("__", "."), value)
    (folder / "front.json").write_text(json.dumps(front))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"policies": {}}, "policies is {}, expected array, got object"),
        ({"named": 1}, "named is 1, expected less than the number of policies, 1"),
        ({"policies__0__episode": 9}, "policies[0].episode is 9, expected less than episodes, 9"),
        ({"policies__0__budget__fraction": None}, "policies[0].budget.fraction is None, expected float, got null"),
        ({"policies__0__uniform__bits": "4"}, "policies[0].uniform.bits is '4', expected int, got str"),
        ({"policies__0__accuracies__report": -0.1}, "policies[0].accuracies.report is -0.1, expected float >= 0"),
        ({"policies__0__layers__1__name": "other"}, "policies[0].layers are of another network than policy.json"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_front_json_that_no_search_wrote_is_refused(changes, message, folder):
    write_front(folder)
    policy = read_policy(folder, SearchConfig())
    assert read_front(folder, policy).policies[0].uniform.bits == 4
    write_front(folder, **changes)
    assert message in refuse(lambda: read_front(folder, policy))


@pytest.mark.parametrize(
    "report, message",
    [
        (None, "report is None, expected object, got null"),
        ({"before": 0.5, "images": 9}, "lacks after in report"),
        ({"before": 0.5, "after": 50, "images": 9}, "report.after is 50, expected float <= 1"),
        ({"before": 0.5, "after": 0.5, "images": 0}, "report.images is 0, expected int >= 1"),
    ],
)
def test_a_finetune_json_that_no_fine_tuning_wrote_is_refused(report, message, folder):
    (folder / "finetune.json").write_text(json.dumps({"epochs": 3, "report": report}))
    assert message in refuse(lambda: read_tuned(folder))


@pytest.mark.parametrize("name", ["policy.json", "config.yaml", "episodes.csv", "front.json", "finetune.json"])
def test_a_named_pipe_or_a_folder_in_place_of_a_file_is_told_and_not_waited_for(name, folder):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    assert f"{folder / name} is no regular file" in refuse(lambda: read_run_data(folder))
    (folder / name).unlink()
    (folder / name).mkdir()
    assert f"{folder / name} is a folder" in refuse(lambda: read_run_data(folder))


@pytest.mark.parametrize(
    "text, message", [("[" * 100_000, "nested too deep"), ("9" * 5000, "is no JSON file: Exceeds the limit")]
)
def test_values_that_are_too_deep_or_too_long_are_told(text, message, folder):
    (folder / "policy.json").write_text('{"episodes": ' + text)
    assert message in refuse(lambda: read_run_data(folder))
