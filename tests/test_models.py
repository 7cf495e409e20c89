"""The networks against the published counts, and against counts made by plain arithmetic from the papers' tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from haqjax.models import MODELS, build, count_learned, outline
from haqjax.tracing.layer_table import layers
from haqjax.tracing.names import is_statistic

# (kernel, input channels, output channels, groups, output map, batch norm) of one layer
Row = tuple[int, int, int, int, int, bool]


def rows_v1(size: int) -> list[Row]:
    """Table 1 of Howard et al. 2017."""
    size //= 2
    rows = [(3, 3, 32, 1, size, True)]
    channels = [32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024]
    for i, (c_in, c_out) in enumerate(zip(channels, channels[1:], strict=False)):
        size //= 2 if i in (1, 3, 5, 11) else 1
        rows += [(3, c_in, c_in, c_in, size, True), (1, c_in, c_out, 1, size, True)]
    return [*rows, (1, 1024, 1000, 1, 1, False)]


def rows_v2(size: int) -> list[Row]:
    """Table 2 of Sandler et al. 2018."""
    size //= 2
    rows, c_in = [(3, 3, 32, 1, size, True)], 32
    outputs = [16] + [24] * 2 + [32] * 3 + [64] * 4 + [96] * 3 + [160] * 3 + [320]
    for i, c_out in enumerate(outputs):
        hidden = c_in if i == 0 else 6 * c_in
        if i > 0:
            rows.append((1, c_in, hidden, 1, size, True))
        size //= 2 if i in (1, 3, 6, 13) else 1
        rows += [(3, hidden, hidden, hidden, size, True), (1, hidden, c_out, 1, size, True)]
        c_in = c_out
    return [*rows, (1, 320, 1280, 1, size, True), (1, 1280, 1000, 1, 1, False)]


def rows_resnet50(size: int) -> list[Row]:
    """Table 1 of He et al. 2016, the stride on the 3x3 convolutions."""
    rows, c_in, size = [(7, 3, 64, 1, size // 2, True)], 64, size // 4
    for stage, (inner, count) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for i in range(count):
            small = size // 2 if stage > 0 and i == 0 else size
            rows.append((1, c_in, inner, 1, size, True))
            rows += [(3, inner, inner, 1, small, True), (1, inner, 4 * inner, 1, small, True)]
            if i == 0:
                rows.append((1, c_in, 4 * inner, 1, small, True))
            c_in, size = 4 * inner, small
    return [*rows, (1, 2048, 1000, 1, 1, False)]


def rows_cifar(count: int, size: int) -> list[Row]:
    """Section 4.2 of He et al. 2016, shortcuts of option A."""
    rows, c_in = [(3, 3, 16, 1, size, True)], 16
    for stage, c_out in enumerate((16, 32, 64)):
        size //= 2 if stage > 0 else 1
        for _ in range(count):
            rows += [(3, c_in, c_out, 1, size, True), (3, c_out, c_out, 1, size, True)]
            c_in = c_out
    return [*rows, (1, 64, 10, 1, 1, False)]


# name: classes, image size, rows, layers, parameters, multiply-accumulates as published (None: by arithmetic only)
PUBLISHED = {
    "mobilenet_v1": (1000, 224, rows_v1(224), 28, 4_231_976, 569e6),
    "mobilenet_v2": (1000, 224, rows_v2(224), 53, 3_504_872, 300e6),
    "resnet50": (1000, 224, rows_resnet50(224), 54, 25_557_032, 4.09e9),
    "resnet20": (10, 32, rows_cifar(3, 32), 20, 269_722, 40.6e6),
    "resnet56": (10, 32, rows_cifar(9, 32), 56, 853_018, 125.5e6),
}


@pytest.fixture(scope="module", params=PUBLISHED)
def published(request):
    classes, image_size, *truth = PUBLISHED[request.param]
    network = outline(request.param, classes=classes, image_size=image_size)
    return network, layers(network.apply, network.params, network.example), truth


def test_parameters_are_the_published_number(published):
    network, _, (rows, _, parameters, _) = published
    by_hand = sum(
        k * k * (c_in // groups) * c_out + (2 * c_out if norm else c_out) for k, c_in, c_out, groups, _, norm in rows
    )
    assert count_learned(network.params) == parameters == by_hand


def test_layers_are_the_published_ones_in_order_of_execution(published):
    _, layers, (rows, count, _, _) = published
    found = zip(
        layers.kernel[:, 0], layers.in_channels, layers.out_channels, layers.groups, layers.out_size[:, 0], strict=True
    )
    assert len(layers) == count
    assert [tuple(int(n) for n in row) for row in found] == [row[:5] for row in rows]


def test_multiply_accumulates_are_the_published_number(published):
    _, layers, (rows, _, _, macs) = published
    by_hand = [k * k * (c_in // groups) * c_out * size**2 for k, c_in, c_out, groups, size, _ in rows]
    assert layers.macs.tolist() == by_hand
    assert layers.macs.sum() == pytest.approx(macs, rel=5e-3)


def test_every_layer_has_its_own_kernel(published):
    network, layers, _ = published
    kernels = [path for path, _ in jax.tree_util.tree_leaves_with_path(network.params) if path[-1].key == "kernel"]
    names = {".".join(str(entry.key) for entry in path[:-1]) for path in kernels}
    assert {name.removesuffix(".kernel") for name in layers.names} == names
    assert len(kernels) == len(layers)


def test_names_say_where_a_layer_is():
    names = layers(*_parts(outline("mobilenet_v2", image_size=32))).names
    assert [name.removesuffix(".kernel") for name in (*names[:4], *names[-2:])] == [
        "stem",
        "blocks.0.depthwise",
        "blocks.0.project",
        "blocks.1.expand",
        "head",
        "classifier",
    ]


def test_resnet50_strides_on_the_3x3():
    table = layers(*_parts(outline("resnet50")))
    strided = [
        (name.split(".")[2], int(kernel))
        for name, (kernel, _), (stride, _) in zip(table.names, table.kernel, table.stride, strict=True)
        if stride == 2 and name.startswith("blocks")
    ]
    assert strided == [("spatial", 3), ("shortcut", 1)] * 3


@pytest.mark.parametrize(
    ("name", "width", "first", "last"),
    [
        ("mobilenet_v1", 0.25, 8, 256),
        ("mobilenet_v2", 0.5, 16, 1280),  # the head keeps its width
        ("mobilenet_v2", 1.4, 48, 1792),  # 44.8 and 1,792: multiples of 8
        ("resnet50", 0.25, 16, 512),
        ("resnet20", 0.25, 4, 16),
    ],
)
def test_width_scales_the_channels(name, width, first, last):
    network = outline(name, classes=7, image_size=32, width=width)
    assert network.params["stem"]["kernel"].shape[-1] == first
    assert network.params["classifier"]["kernel"].shape == (last, 7)


@pytest.fixture(scope="module", params=sorted(MODELS.keys() - {"resnet56"}))
def narrow(request):
    network = build(request.param, classes=5, image_size=20, width=0.25, key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (4, 20, 20, 3))
    return network, x, jax.jit(network.apply_train)(network.params, x)[1]


def test_fresh_network_gives_finite_logits_that_depend_on_the_image(narrow):
    network, x, _ = narrow
    logits = jax.jit(network.apply)(network.params, x)
    assert logits.shape == (4, 5)
    assert jnp.isfinite(logits).all()
    assert (logits.std(axis=0) > 0).all()


def test_residual_branches_together_start_like_one(narrow):
    network, _, _ = narrow
    last, expected = {"resnet50": ("expand", 1 / 4), "resnet20": ("second", 1 / 3)}.get(network.name, ("", 1))
    for block in network.params["blocks"].values():
        for where, layer in block.items():
            np.testing.assert_allclose(layer["norm"]["scale"], expected if where == last else 1, rtol=1e-6)


def test_training_form_moves_the_statistics_only(narrow):
    network, _, moved = narrow
    assert jax.tree.structure(moved) == jax.tree.structure(network.params)
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(network.params), jax.tree.leaves(moved), strict=True
    ):
        assert np.array_equal(old, new) != is_statistic(path), path


def test_statistics_move_a_tenth_of_the_way_to_the_batch(narrow):
    network, x, moved = narrow
    kernel = network.params["stem"]["kernel"]
    padding = "SAME" if network.name == "mobilenet_v1" else ((kernel.shape[0] // 2,) * 2,) * 2
    stride = 1 if network.name == "resnet20" else 2
    y = jax.lax.conv_general_dilated(x, kernel, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    y = np.asarray(y, np.float64)
    norm = moved["stem"]["norm"]
    np.testing.assert_allclose(norm["mean"], 0.1 * y.mean((0, 1, 2)), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(norm["var"], 0.9 + 0.1 * y.var((0, 1, 2)), rtol=1e-3)


def test_both_forms_agree_where_the_running_statistics_are_the_batch_s():
    network = build("resnet20", classes=5, image_size=16, width=0.25, key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (8, 16, 16, 3))
    logits, moved = jax.jit(network.apply_train)(network.params, x)
    params = jax.tree_util.tree_map_with_path(
        lambda path, old, new: (new - 0.9 * old) / 0.1 if is_statistic(path) else old, network.params, moved
    )
    np.testing.assert_allclose(jax.jit(network.apply)(params, x), logits, rtol=1e-3, atol=1e-4)


def test_key_decides_the_draw():
    first, again, other = (
        build("resnet20", classes=5, width=0.25, key=jax.random.key(seed)).params["stem"]["kernel"]
        for seed in (0, 0, 1)
    )
    assert np.array_equal(first, again)
    assert not np.isin(other, first).any()


def test_kernels_are_drawn_with_variance_two_over_fan_in():
    blocks = build("resnet20", key=jax.random.key(0)).params["blocks"]
    for kernel in (blocks[6]["first"]["kernel"], blocks[8]["second"]["kernel"]):
        assert kernel.var() * np.prod(kernel.shape[:-1]) == pytest.approx(2, rel=0.05)


def test_option_a_shortcut_keeps_every_second_pixel_between_zeros():
    """A block whose convolutions are zero is its shortcut, since the input is not negative."""
    network = build("resnet20", classes=2, image_size=8, width=0.25, key=jax.random.key(0))
    params = jax.tree.map(jnp.zeros_like, network.params)
    params["stem"] = network.params["stem"]
    params["classifier"]["kernel"] = jnp.eye(16)[:, 6:8]  # channels 6 and 7 of 16: the stem's channels 0 and 1
    x = jax.random.normal(jax.random.key(1), (1, 8, 8, 3))
    y = jax.lax.conv_general_dilated(
        x, params["stem"]["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    expected = jax.nn.relu(y)[:, ::4, ::4, :2].mean((1, 2))
    np.testing.assert_allclose(jax.jit(network.apply)(params, x), expected, rtol=1e-4)


def test_unknown_name_lists_what_exists():
    with pytest.raises(ValueError, match=r"'vgg16'.*mobilenet_v1, mobilenet_v2, resnet20, resnet50, resnet56"):
        build("vgg16", key=jax.random.key(0))


@pytest.mark.parametrize(
    "wrong", [{"classes": 0}, {"image_size": -1}, {"width": 0.0}, {"width": float("nan")}, {"epsilon": 0.0}]
)
def test_numbers_must_be_positive(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be positive"):
        outline("resnet20", **wrong)


def test_unknown_padding_lists_what_exists():
    with pytest.raises(ValueError, match="unknown padding 'valid'; there are symmetric, same"):
        outline("resnet20", padding="valid")


@pytest.mark.parametrize("padding", ["symmetric", "same"])
@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2", "resnet50", "resnet20"])
def test_every_window_is_padded_as_its_convention_has_it(name, padding):
    """TensorFlow's rule: as little as gives `ceil(size / stride)`, the odd one after."""
    network = outline(name, image_size=36, padding=padding)
    windows = list(_windows(jax.make_jaxpr(network.apply)(network.params, network.example)))
    assert len(windows) == {"mobilenet_v1": 27, "mobilenet_v2": 52, "resnet50": 54, "resnet20": 19}[name]
    assert any(size % 2 for size, *_ in windows) and any(not size % 2 for size, *_ in windows)
    for size, kernel, stride, found in windows:
        missing = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        expected = (missing // 2, missing - missing // 2) if padding == "same" else (kernel // 2, kernel // 2)
        assert found == (expected, expected), (size, kernel, stride)


def _windows(jaxpr):
    """Size of the map, of the kernel, stride and padding of each convolution and each pooling over a map."""
    for equation in jaxpr.eqns:
        shape, params = equation.invars[0].aval.shape if equation.invars else (), equation.params
        if equation.primitive.name == "conv_general_dilated":
            yield shape[1], equation.invars[1].aval.shape[0], params["window_strides"][0], params["padding"]
        elif equation.primitive.name == "reduce_window_max":
            yield shape[1], params["window_dimensions"][1], params["window_strides"][1], params["padding"][1:3]


def test_padding_and_epsilon_reach_the_network():
    network = outline("mobilenet_v1", padding="symmetric", epsilon=1e-3)
    assert (network.padding, network.epsilon) == ("symmetric", 1e-3)
    assert outline("mobilenet_v1").padding == "same" and outline("mobilenet_v2").padding == "symmetric"


def test_epsilon_is_added_to_the_variance():
    """A network of one channel's worth of signal: with variance 0, the stem divides by the root of epsilon alone."""
    logits = []
    for epsilon in (1e-4, 4e-4):
        network = build("resnet20", classes=2, image_size=4, width=0.25, epsilon=epsilon, key=jax.random.key(0))
        params = jax.tree_util.tree_map_with_path(
            lambda path, leaf: jnp.zeros_like(leaf) if is_statistic(path) or "blocks" in str(path) else leaf,
            network.params,
        )
        logits.append(jax.jit(network.apply)(params, jax.random.normal(jax.random.key(1), (1, 4, 4, 3))))
    np.testing.assert_allclose(logits[0], 2 * logits[1], rtol=1e-5)


def _parts(network):
    return network.apply, network.params, network.example
