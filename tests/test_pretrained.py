"""Weights of others, against logits and shapes that PyTorch's libraries gave."""

import json
import os
import shlex
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from haqjax.data import PREPROCESSING
from haqjax.models import MODELS, is_pretrained_source, load_pretrained, outline
from haqjax.models.layouts import LAYOUTS, Tensor
from haqjax.training import load_params, save_params
from references_torch import (
    CLASSES,
    REFERENCES,
    SHAPES,
    STORED,
    TENSORFLOW_CLASSES,
    digest,
    draw,
    draw_state,
    images,
    run,
    shapes_of,
)

TOLD = json.loads(STORED.read_text())
NAMES = {f"{layout.model}, {layout.name}": layout for layout in LAYOUTS}


def file_shapes(layout, classes=CLASSES, width=1.0):
    """Names and shapes that a layout expects in a file."""
    params = outline(layout.model, classes=classes, width=width).params
    leaves, sources = jax.tree_util.tree_leaves_with_path(params), layout.sources()
    parts = {".".join(str(entry.key) for entry in path): leaf.shape for path, leaf in leaves}
    assert parts.keys() == sources.keys()
    return {part.name: part.shape(parts[at]) for at, part in sources.items() if isinstance(part, Tensor)}


def file_classes(layout):
    return TENSORFLOW_CLASSES if layout.background else CLASSES


@pytest.fixture(scope="module")
def state():
    """A state dict of ResNet-20."""
    return draw_state(file_shapes(NAMES["resnet20, CIFAR ResNet"]))


@pytest.fixture
def save(tmp_path):
    def save(tensors, name="weights.safetensors"):
        save_file(tensors, tmp_path / name)
        return str(tmp_path / name)

    return save


def test_every_layout_has_stored_logits_and_a_preprocessing():
    assert NAMES.keys() == TOLD["logits"].keys() == {f"{model}, {name}" for name, model in REFERENCES}
    assert {layout.model for layout in LAYOUTS} == MODELS.keys()
    assert {layout.preprocessing for layout in LAYOUTS} <= PREPROCESSING.keys()


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_pytorch(name, save):
    layout = NAMES[name]
    tensors = draw_state(file_shapes(layout, file_classes(layout)))
    if not layout.folded:
        norms = [key.removesuffix("running_var") for key in tensors if key.endswith("running_var")]
        tensors |= {f"{norm}num_batches_tracked": np.array(7) for norm in norms}
    network, _ = load_pretrained(save(tensors), layout.model)
    assert network.classes == CLASSES or layout.background and network.classes == TENSORFLOW_CLASSES - 1
    logits = np.asarray(jax.jit(network.apply)(network.params, images()))[:, :CLASSES]
    expected = np.array(TOLD["logits"][name])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", NAMES)
def test_tensors_are_those_of_the_library(name):
    layout = NAMES[name]
    names = [part.name for part in layout.sources().values() if isinstance(part, Tensor)]
    assert len(names) == len(set(names))
    assert digest(file_shapes(layout, file_classes(layout))) == TOLD["digests"][name]


@pytest.mark.parametrize(
    ("told", "name", "width"),
    [
        ("timm resnet50", "resnet50, torchvision", 1.0),
        ("timm mobilenetv1_125", "mobilenet_v1, timm", 1.25),
        ("timm mobilenetv2_050", "mobilenet_v2, timm", 0.5),
        ("timm mobilenetv2_140", "mobilenet_v2, timm", 1.4),
    ],
)
def test_tensors_of_other_widths_are_those_of_timm(told, name, width):
    assert digest(file_shapes(NAMES[name], width=width)) == TOLD["digests"][told]


@pytest.mark.parametrize("reference", REFERENCES)
def test_stored_logits_are_what_pytorch_gives(reference):
    name, model = reference
    pytest.importorskip("torch", reason="PyTorch is not installed: its stored logits are tested")
    if name in ("torchvision", "timm", "transformers"):
        pytest.importorskip(name, reason=f"{name} is not installed: its stored logits are tested", exc_type=ImportError)
    network = REFERENCES[reference]()
    found, expected = run(network, draw_state(shapes_of(network))), np.array(TOLD["logits"][f"{model}, {name}"])
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_every_number_of_a_file_is_used_once(state, save):
    network, _ = load_pretrained(save(state), "resnet20")
    found = np.sort(np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(network.params)]))
    assert np.array_equal(found, np.sort(np.concatenate([array.ravel() for array in state.values()])))


def test_networks_of_one_layout_share_their_functions(state, save):
    """So that what was compiled for one serves the other."""
    first, second = (load_pretrained(save(state), "resnet20").network for _ in range(2))
    assert first.apply is second.apply


@pytest.mark.parametrize("dtype", [np.float16, np.float64, jnp.bfloat16])
def test_other_precisions_become_float32(state, save, dtype):
    network, _ = load_pretrained(save({name: array.astype(dtype) for name, array in state.items()}), "resnet20")
    assert {leaf.dtype for leaf in jax.tree.leaves(network.params)} == {jnp.dtype(jnp.float32)}
    bias = state["linear.bias"].astype(dtype).astype(np.float32)
    assert np.array_equal(network.params["classifier"]["bias"], bias)


def test_the_prefix_of_data_parallel_is_dropped(state, save):
    network, _ = load_pretrained(save({f"module.{name}": array for name, array in state.items()}), "resnet20")
    assert np.array_equal(network.params["classifier"]["bias"], state["linear.bias"])


def test_size_and_preprocessing_come_from_the_layout(state, save):
    network, preprocessing = load_pretrained(save(state), "resnet20")
    assert (network.image_size, network.classes, preprocessing) == (32, 10, "cifar")
    assert load_pretrained(save(state), "resnet20", image_size=48).network.image_size == 48


def without(state, *names):
    return {name: array for name, array in state.items() if name not in names}


WRONG = {
    "one missing": (lambda s: without(s, "bn1.bias"), r"names\): it lacks 'bn1.bias' \(16,\)$"),
    "one too many": (
        lambda s: s | {"aux.weight": np.zeros((2, 3), np.float32)},
        r"names\): it has no place for 'aux.weight' \(2, 3\)$",
    ),
    "another shape": (
        lambda s: s | {"layer2.0.conv1.weight": np.zeros((32, 16, 1, 1), np.float32)},
        r"names\): it has 'layer2.0.conv1.weight' \(32, 16, 1, 1\), expected \(32, 16, 3, 3\)$",
    ),
    "another rank": (
        lambda s: s | {"conv1.weight": np.zeros((16, 27), np.float32)},
        r"names\): it has 'conv1.weight' \(16, 27\), expected \(16, 3, 3, 3\)$",
    ),
    "whole numbers": (
        lambda s: s | {"bn1.bias": np.zeros(16, np.int8)},
        r"names\): it has 'bn1.bias' of int8, expected floating-point numbers$",
    ),
    "a swapped name": (
        lambda s: without(s, "bn1.bias") | {"bn1.beta": s["bn1.bias"]},
        r"it lacks 'bn1.bias' \(16,\); it has no place for 'bn1.beta' \(16,\)$",
    ),
    "many": (lambda s: {"bn1.bias": s["bn1.bias"], "linear.bias": s["linear.bias"]}, r"it lacks .* and 92 more$"),
    "no classifier": (
        lambda s: without(s, "linear.weight", "linear.bias"),
        r"has no classifier \('linear.bias', 'linear.weight'\): a backbone alone$",
    ),
    "other names": (
        lambda s: {f"encoder.{name}": array for name, array in s.items()},
        r"as no resnet20 does that is known here \(CIFAR ResNet\): they are 'encoder.bn1.bias', .* and 94 more$",
    ),
    "nothing": (lambda s: {}, r"as no resnet20 does that is known here"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_tensor_that_does_not_fit_is_named_with_its_shape(state, save, case):
    change, message = WRONG[case]
    with pytest.raises(ValueError, match=message) as caught:
        load_pretrained(save(change(state)), "resnet20")
    assert "\n" not in str(caught.value)


def test_another_network_is_told_by_its_names(state, save):
    with pytest.raises(
        ValueError, match=r"does not fit resnet56 .* it lacks 'layer1.3.*; its names are those of resnet20$"
    ):
        load_pretrained(save(state), "resnet56")


def test_another_number_of_classes_is_refused(state, save):
    with pytest.raises(ValueError, match=r"it has 'linear.bias' \(10,\), expected \(7,\), 'linear.weight' \(10, 64\)"):
        load_pretrained(save(state), "resnet20", classes=7)


def test_unknown_network_is_refused_before_anything_is_read():
    with pytest.raises(ValueError, match="unknown network 'vgg16'; there are mobilenet_v1, "):
        load_pretrained("nothing.safetensors", "vgg16")


@pytest.mark.parametrize("name", ["nothing.safetensors", "folder.safetensors", "weights.txt"])
def test_no_weights_there_is_one_line(tmp_path, name):
    (tmp_path / "folder.safetensors").mkdir()
    (tmp_path / "weights.txt").touch()
    with pytest.raises(ValueError, match=r"there are no weights at '.*': give a .safetensors file, timm:NAME or hf:"):
        load_pretrained(str(tmp_path / name), "resnet20")


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"\xff" * 64])
def test_a_damaged_file_is_one_line(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot read '.*a.safetensors' as safetensors: ") as caught:
        load_pretrained(str(tmp_path / "a.safetensors"), "resnet20")
    assert "\n" not in str(caught.value)


def test_a_file_cut_short_is_one_line(state, save, tmp_path):
    content = Path(save(state)).read_bytes()
    (tmp_path / "a.safetensors").write_bytes(content[:-8])
    with pytest.raises(ValueError, match="as safetensors: "):
        load_pretrained(str(tmp_path / "a.safetensors"), "resnet20")


@pytest.mark.parametrize("suffix", ["pth", "pt", "bin"])
def test_a_pickle_is_refused_with_the_way_to_convert_it(suffix):
    with pytest.raises(ValueError, match=f"'a.{suffix}' is a pickle, .*: convert it once with python -c "):
        load_pretrained(f"a.{suffix}", "resnet20")


def convert(file, monkeypatch):
    """Does what the message says, as a shell takes it."""
    with pytest.raises(ValueError) as caught:
        load_pretrained(str(file), "resnet20")
    _, _, program, *words = shlex.split(str(caught.value).split(" once with ")[1])
    monkeypatch.setattr(sys, "argv", ["-c", *words])
    exec(program, {})


@pytest.mark.parametrize(
    "name", ["a'b.pt", "$(touch harm).pt", "`id`.pth", 'a"b c.bin', "-x.pt", "a\nb.pt", "x" * 200 + ".pt"]
)
def test_the_way_to_convert_a_pickle_is_safe_for_a_shell(name):
    with pytest.raises(ValueError) as caught:
        load_pretrained(name, "resnet20")
    said = str(caught.value)
    assert said.isprintable() and len(said) < 500
    words = shlex.split(said.split(" once with ")[1])
    plain = name.isprintable() and len(name) < 100
    assert words[:2] == ["python", "-c"] and words[3] == (name if plain else "FILE.pt")
    compile(words[2], "converter", "exec")


@pytest.mark.parametrize("nested", [False, True])
def test_the_way_to_convert_a_pickle_works(state, tmp_path, nested, monkeypatch):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    file = tmp_path / "a.pth"
    tensors = {name: torch.from_numpy(array) for name, array in state.items()}
    torch.save({"epoch": 3, "state_dict": tensors} if nested else tensors, file)
    convert(file, monkeypatch)
    network, _ = load_pretrained(str(tmp_path / "a.safetensors"), "resnet20")
    assert np.array_equal(network.params["classifier"]["bias"], state["linear.bias"])


@pytest.mark.parametrize(
    ("source", "repository", "file"),
    [
        ("timm:resnet50.tv_in1k", "timm/resnet50.tv_in1k", "model.safetensors"),
        ("timm:mobilenetv1_100", "timm/mobilenetv1_100.ra4_e3600_r224_in1k", "model.safetensors"),
        ("hf:someone/resnet", "someone/resnet", "model.safetensors"),
        ("hf:someone/resnet/deep/er.safetensors", "someone/resnet", "deep/er.safetensors"),
    ],
)
def test_hub_sources_are_fetched(state, save, monkeypatch, source, repository, file):
    asked = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *where: asked.append(where) or save(state))
    network, _ = load_pretrained(source, "resnet20")
    assert asked == [(repository, file)]
    assert np.array_equal(network.params["classifier"]["bias"], state["linear.bias"])


@pytest.mark.parametrize(
    ("source", "preprocessing"),
    [("timm:resnet50", "timm"), ("hf:timm/resnet50.a1_in1k", "timm"), (None, "torchvision")],
)
def test_timm_s_resnet50_has_torchvision_s_names_and_its_own_preprocessing(save, monkeypatch, source, preprocessing):
    path = save({n: np.zeros(s, np.float32) for n, s in file_shapes(NAMES["resnet50, torchvision"], 2, 0.1).items()})
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *where: path)
    assert load_pretrained(source or path, "resnet50", width=0.1).preprocessing == preprocessing


@pytest.mark.parametrize("source", ["timm:", "hf:", "hf:someone", "hf:someone/", "hf:/resnet"])
def test_a_hub_source_without_a_name_is_refused(source):
    with pytest.raises(ValueError, match=f"'{source}' names no weights: write timm:NAME, hf:OWNER/REPOSITORY"):
        load_pretrained(source, "resnet20")


def test_a_failed_download_is_one_line(monkeypatch):
    def fail(*where):
        raise OSError("Name or service not known\nand a page of HTML")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(ValueError) as caught:
        load_pretrained("timm:resnet50", "resnet50")
    assert str(caught.value) == (
        "cannot fetch 'model.safetensors' of 'timm/resnet50.a1_in1k' from the Hugging Face hub: OSError: Name or "
        "service not known; fetch it elsewhere and give the file's path"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("timm:resnet50", True),
        ("hf:a/b", True),
        ("a/b.safetensors", True),
        ("b.pth", True),  # which is refused with the way to convert it
        ("weights/resnet20-digits-seed0", False),
        ("weights/v1.0", False),
        ("c:/weights", False),
    ],
)
def test_sources_are_told_from_folders_of_our_own(text, expected):
    assert is_pretrained_source(text) == expected


def test_a_folder_of_our_own_may_end_like_a_file(tmp_path):
    (tmp_path / "mine.safetensors").mkdir()
    assert not is_pretrained_source(str(tmp_path / "mine.safetensors"))


VARIANCE, KERNEL = "bn1.running_var", "layer1.0.conv2.weight"


def changed(state, name, value):
    array = state[name].copy()
    array.flat[0] = value
    return state | {name: array}


@pytest.mark.parametrize(
    ("name", "value", "fault"),
    [
        (name, value, "1 of [0-9]+ numbers that are not finite")
        for name in (VARIANCE, KERNEL, "linear.bias", "bn1.weight")
        for value in (np.nan, np.inf, -np.inf)
    ]
    + [(VARIANCE, -1e-30, "1 of 16 variances below zero")],
)
def test_numbers_that_are_none_are_refused_by_name(state, save, name, value, fault):
    with pytest.raises(ValueError, match=f"^'.*' cannot be computed with: '{name}' has {fault}; ") as caught:
        load_pretrained(save(changed(state, name, value)), "resnet20")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 500


def test_all_numbers_that_are_none_are_counted(state, save):
    wrong = {name: -np.ones_like(array) for name, array in state.items() if name.endswith("running_var")}
    with pytest.raises(ValueError, match=r"has 16 of 16 variances below zero, .* and 16 more tensors; take weights"):
        load_pretrained(save(state | wrong), "resnet20")


def test_a_number_beyond_float32_is_refused(state, save):
    with pytest.raises(ValueError, match="'linear.bias' has 1 of"):
        load_pretrained(
            save(changed({**state, "linear.bias": state["linear.bias"].astype(np.float64)}, "linear.bias", 1e300)),
            "resnet20",
        )
    load_pretrained(save(changed(state, VARIANCE, -0.0)), "resnet20")


def test_a_folder_of_our_own_is_checked_too(tmp_path):
    params = {
        "norm": {"mean": jnp.zeros(2), "var": jnp.array([1.0, -1.0])},
        "kernel": jnp.array([jnp.nan, 1.0, jnp.inf]),
    }
    save_params(tmp_path / "weights", params)
    with pytest.raises(
        ValueError, match="'kernel' has 2 of 3 numbers that are not finite, 'norm.var' has 1 of 2 variances"
    ):
        load_params(tmp_path / "weights", params)


ENTRY = '"a\\u001b": {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}'
HEADERS = {
    "no object": "[]",
    "deep": "[" * 5000,
    "a type unknown": {"a": {"dtype": "F8_E4M3", "shape": [1], "data_offsets": [0, 1]}},
    "a type that is a list": {"a": {"dtype": [1], "shape": [1], "data_offsets": [0, 1]}},
    "no type": {"a": 3},
    "overlap": {name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"},
    "a gap": {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}},
    "another size": {"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}},
    "a shape below zero": {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}},
    "a huge shape": {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 8]}},
    "beyond the end": {"a": {"dtype": "F32", "shape": [2**30], "data_offsets": [0, 2**32]}},
    "twice": "{" + ENTRY + "," + ENTRY + "}",
    "strange names": {"\x1b[2J" + "x" * 10000: {"dtype": "U8", "shape": [8], "data_offsets": [0, 8]}},
    "many axes": {"linear.bias": {"dtype": "U8", "shape": [1] * 500 + [8], "data_offsets": [0, 8]}},
}  # fmt: skip


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_that_is_none_is_one_line(tmp_path, kind):
    header = HEADERS[kind] if isinstance(HEADERS[kind], str) else json.dumps(HEADERS[kind])
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(8))
    with pytest.raises(ValueError) as caught:
        load_pretrained(str(tmp_path / "a.safetensors"), "resnet20")
    assert "a.safetensors" in str(caught.value) and str(caught.value).isprintable() and len(str(caught.value)) <= 500


@pytest.mark.parametrize("size", [2**40, 2**63, 9, 1])
def test_a_header_of_another_length_is_one_line(tmp_path, size):
    (tmp_path / "a.safetensors").write_bytes(size.to_bytes(8, "little") + b"{}")
    with pytest.raises(ValueError, match=f"as safetensors: its header is of {size} bytes, in a file of 10"):
        load_pretrained(str(tmp_path / "a.safetensors"), "resnet20")


def test_a_pipe_is_no_file_of_weights(tmp_path):
    os.mkfifo(tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="a.safetensors is no regular file"):
        load_pretrained(str(tmp_path / "a.safetensors"), "resnet20")


def test_draws_depend_on_name_and_shape():
    """Else the stored logits would bind neither."""
    assert not np.array_equal(draw("a.weight", (8,)), draw("b.weight", (8,)))
    assert not np.array_equal(draw("a.weight", (2, 8)).ravel(), draw("a.weight", (8, 2)).ravel())
    assert set(SHAPES) <= TOLD["digests"].keys()
