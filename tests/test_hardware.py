import dataclasses
import re
from typing import get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

import references_hardware as references
import references_search
from haqjax.hardware import bismo, cost_table, find_limits, machine, total_cost
from haqjax.hardware.machines import FOLDER, MODELS, SHORT_NAMES, Machine
from haqjax.hardware.spec import Count
from haqjax.models import outline
from haqjax.policies.cost import exact_cost
from haqjax.tracing.layer_table import layers
from haqjax.types import Cost, CostTable, Lifetimes
from references_hardware import conv, dense, table

pytestmark = pytest.mark.optimised

MACHINES = sorted(path.stem for path in FOLDER.glob("*.yaml"))


def random_table(layers, seed=0):
    rng = np.random.default_rng(seed)
    latency, energy, size, bops = rng.uniform(1, 2, (4, layers, 8, 8))
    lifetimes = Lifetimes(rng.uniform(1, 2, 5), rng.random((4, 5)) < 0.6, rng.random((5, layers)) < 0.5)
    return CostTable(latency, energy, size, Cost(*np.array([0.5, 0.25, 100.0, 3.0, 4.0])), bops, lifetimes)


def slow_cost(values, fixed, policy):
    return fixed + sum(values[layer, w - 1, a - 1] for layer, (w, a) in enumerate(policy))


# Machines


def test_short_names_stand_for_machines():
    for short, name in SHORT_NAMES.items():
        assert machine(short) == machine(name)


@pytest.mark.parametrize("name", MACHINES)
def test_a_copy_of_a_file_is_the_same_machine(name, tmp_path):
    copy = tmp_path / "mine.yaml"
    copy.write_text((FOLDER / f"{name}.yaml").read_text())
    assert machine(copy) == Machine("mine", machine(name).model, machine(name).spec)


@pytest.mark.parametrize("name", MACHINES)
def test_every_number_has_a_comment(name):
    lines = (FOLDER / f"{name}.yaml").read_text().splitlines()
    assert all("#" in line for line in lines if line and not line.startswith("model:"))


@pytest.mark.parametrize("name", ["tpu_v9", "missing.yaml", "", "."])
def test_an_unknown_machine_lists_what_there_is(name):
    with pytest.raises(ValueError, match=r"unknown machine .*; there are .*bismo_cloud.*bismo_edge.*edge") as error:
        machine(name)
    assert "\n" not in str(error.value)


FAULTS = [
    ({"clock": None}, "missing key clock"),
    ({"warp": 3}, "unknown key warp; the keys are array, dot_bits"),
    ({"array": 0}, "array is 0, expected a whole number of at least 1"),
    ({"array": 2.5}, "array is 2.5, expected a whole number of at least 1"),
    ({"batch": True}, "batch is True, expected a whole number"),
    ({"clock": -2e8}, "clock is -200000000.0, expected a finite number above 0"),
    ({"clock": float("inf")}, "clock is inf, expected a finite number above 0"),
    ({"clock": "fast"}, "clock is 'fast', expected a finite number above 0"),
    ({"dram_energy": float("nan")}, "dram_energy is nan, expected a finite number of at least 0"),
    ({"leakage_power": -1}, "leakage_power is -1, expected a finite number of at least 0"),
    ({"model": "quantum"}, "model is 'quantum'; the models are bismo"),
    ({"model": None}, "model is None; the models are bismo"),
    ({"model": ["bismo"]}, "model is ['bismo']; the models are bismo"),
    ({"model": {"a": 1}}, "model is {'a': 1}; the models are bismo"),
    ({"array": 2**31 + 1}, "array is 2147483649, expected a whole number of at least 1 and at most 2147483648"),
    ({"array": 2**62}, "array is 4611686018427387904, expected a whole number"),
    ({"array": 1e30}, "array is 1e+30, expected a whole number"),
    ({"array": 10**400}, "array is a whole number of 401 digits, expected a whole number"),
    ({"array": "1_6"}, "array is '1_6', expected a whole number"),
    ({"array": "\u0661"}, "array is '\u0661', expected a whole number"),
    ({"array": [[8] * 50] * 50}, "array is [[8, 8, 8, 8, ...], [8, 8, 8, 8, ...], [8, 8, 8, 8, ...], ["),
    ({"clock": 1e31}, "clock is 1e+31, expected a finite number above 0, from 1e-30 to 1e+30"),
    ({"clock": 1e-31}, "clock is 1e-31, expected a finite number above 0"),
    ({"dram_energy": 1e308}, "dram_energy is 1e+308, expected a finite number of at least 0; above 0 from 1e-30"),
    ({"dram_energy": 5e-324}, "dram_energy is 5e-324, expected a finite number of at least 0"),
    ({"dram_energy": 10**400}, "dram_energy is a whole number of 401 digits, expected"),
    ({"x" * 5000: 1}, "unknown key xxxxxxxxxxxxxxxxxxx"),
    ({"\x1b[2J\n": 1}, r"unknown key \x1b[2J\n; the keys are array"),
]


class NoAliases(yaml.SafeDumper):
    """Writes a value that stands twice twice."""

    def ignore_aliases(self, data):
        return True


@pytest.mark.parametrize(("change", "message"), FAULTS)
def test_a_fault_in_a_file_is_one_clear_line(change, message, tmp_path):
    given = yaml.safe_load((FOLDER / "bismo_edge.yaml").read_text()) | change
    path = tmp_path / "mine.yaml"
    given = {key: value for key, value in given.items() if value is not None}
    path.write_text(yaml.dump(given, Dumper=NoAliases, allow_unicode=True))
    with pytest.raises(ValueError, match="mine.yaml: ") as error:
        machine(path)
    assert message in str(error.value)
    assert str(error.value).isprintable() and len(str(error.value)) <= 500


@pytest.mark.parametrize("text", ["", "just text", "a: [1", "- 1"])
def test_a_file_of_something_else_is_one_clear_line(text, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="mine.yaml") as error:
        machine(path)
    assert "\n" not in str(error.value)


def test_exponents_without_a_dot_are_numbers(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text((FOLDER / "bismo_edge.yaml").read_text().replace("200.0e+6", "1e8"))
    assert machine(path).spec.clock == 1e8


def test_an_unknown_model_is_refused():
    with pytest.raises(ValueError, match="unknown model quantum"):
        Machine("mine", "quantum", None)


def test_peak_of_the_pynq_instance():
    spec = machine("bismo_pynq_z1").spec
    # The BISMO repository: 6.5 binary tera-operations a second.
    assert 2 * spec.array**2 * spec.dot_bits * spec.clock == pytest.approx(6.5e12, rel=0.01)


# Tables


@pytest.mark.parametrize("name", MACHINES)
def test_a_table_made_twice_is_identical(name):
    layers = table([conv(3, 2, 3, 8, 8), conv(3, 1, 8, 8, 4, groups=8), dense(8, 4)], other_parameters=20)
    first, second = (cost_table(machine(name), layers) for _ in range(2))
    for one, two in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", MACHINES)
def test_every_entry_is_finite_and_positive(name):
    found = cost_table(machine(name), references.mobilenet_v2())
    for values in (found.latency, found.energy, found.size):
        assert values.shape == (53, 8, 8)
        assert values.dtype == np.float64
        assert np.isfinite(values).all()
        assert (values > 0).all()


def test_size_is_weight_bits_and_the_rest_at_32():
    found = cost_table(machine("edge"), references.mobilenet_v1())
    for bits in range(1, 9):
        weights = 4_231_976 - found.fixed.size / 4  # the published parameter count, without biases and batch norm
        assert found.size[:, bits - 1, 3].sum() == weights * bits / 8
    assert (found.size == found.size[:, :, :1]).all()
    assert (found.fixed.latency, found.fixed.energy) == (0, 0)


def test_what_is_stored_beside_the_weights():
    layers = table([conv(3, 1, 8, 4, 5, groups=2), dense(16, 3)])
    for bits in range(1, 9):
        for i, (weights, outputs) in enumerate([(144, 4), (48, 3)]):
            expected = {"plain": 0, "scales": 4 * outputs, "codebook": 4 * 2**bits}
            for storage, extra in expected.items():
                found = cost_table(machine("edge"), layers, storage=storage).size
                assert (found[i, bits - 1] == weights * bits / 8 + extra).all()


# MiB with weights at 2 bits and the rest at 32; HAQ's paper gives 1.09, 0.95 and 6.30 at that budget.
@pytest.mark.parametrize(("network", "size"), [("mobilenet_v1", 1.09), ("mobilenet_v2", 0.96), ("resnet50", 6.29)])
def test_published_sizes(network, size):
    found = cost_table(machine("systolic"), getattr(references, network)())
    assert (found.size[:, 1, 0].sum() + found.fixed.size) / 2**20 == pytest.approx(size, abs=0.006)


def test_an_unknown_storage():
    with pytest.raises(ValueError, match="storage is zip, expected one of plain, scales, codebook"):
        cost_table(machine("systolic"), table([dense(2, 2)]), storage="zip")


@pytest.mark.parametrize("name", ["mobilenet_v1", "mobilenet_v2", "resnet50"])
def test_networks_written_by_hand_are_those_that_are_captured(name):
    network = outline(name)
    captured, expected = layers(network.apply, network.params, network.example), getattr(references, name)()
    order = np.lexsort(np.column_stack([expected.kernel, expected.macs, expected.weights]).T)  # branches may swap
    there = np.lexsort(np.column_stack([captured.kernel, captured.macs, captured.weights]).T)
    for field in ("kernel", "stride", "in_channels", "out_channels", "groups", "in_size", "out_size", "dense"):
        np.testing.assert_array_equal(getattr(captured, field)[there], getattr(expected, field)[order], err_msg=field)
    assert captured.other_parameters == expected.other_parameters


def test_costs_of_large_layers_do_not_overflow():
    layers = table([dense(4096, 4096, rows=4096)])
    found = cost_table(machine("cloud"), layers)
    busy = 4096 * 16 / 16 * 4096 / 16 * 4096 / 256 * 64
    assert found.latency[0, 7, 7] >= busy / 2e8
    assert found.energy[0, 7, 7] >= busy * 2 * 16 * 16 * 256 * 0.52e-12
    assert found.size[0, 7, 7] == 4096**2


def own_machine(name, **changes):
    found = machine(name)
    return Machine("mine", found.model, found.spec._replace(**changes))


SMALL = table([conv(3, 2, 3, 8, 8), conv(3, 1, 8, 8, 4, groups=8), dense(8, 4)])
COUNTS = {
    name: [
        field for field, kind in get_type_hints(type(machine(name).spec), include_extras=True).items() if kind == Count
    ]
    for name in ("bismo_edge", "roofline", "systolic", "bitfusion")
}


@pytest.mark.parametrize(("name", "field"), [(name, field) for name, fields in COUNTS.items() for field in fields])
def test_a_count_of_any_size_gives_costs_above_0_or_is_refused(name, field):
    for value in (2**20, 2**31, 2**62, 2**63, 10**30):
        try:
            found = cost_table(own_machine(name, **{field: value}), SMALL)
        except ValueError as error:
            assert str(error).isprintable() and len(str(error)) <= 500
            assert value > 2**20 or "exceeds half a buffer" in str(error)
        else:
            assert value <= 2**31
            for costs in (found.latency, found.energy):
                assert np.isfinite(costs).all() and (costs > 0).all()


def test_counts_that_pass_64_bits_are_refused_by_the_layer():
    """The bound stands above what is counted: where it lets a machine through, floating point says the same."""
    for batch in 2 ** np.arange(2, 32, 3):
        spec = own_machine("edge", batch=int(batch)).spec
        try:
            found = bismo.count_work(spec, SMALL)
        except ValueError as error:
            assert "layer 'layer1': with the machine's counts its sizes multiply to as much as" in str(error)
            assert batch > 2**16
        else:
            bound = bismo._bound_work(spec, SMALL)
            for counts in found:
                assert (counts >= 0).all() and (counts.max(axis=(1, 2)) <= bound).all()
    assert batch > 2**28


@pytest.mark.parametrize("name", ["bismo_edge", "bitfusion", "roofline", "systolic"])
@pytest.mark.parametrize(
    "layer", [dense(2**31, 2**31), dense(8, 4, rows=2**62), conv(2**20, 1, 2**20, 2**20, 2**20), dense(2**40, 4)]
)
def test_layers_whose_sizes_multiply_beyond_64_bits_are_refused(name, layer):
    with pytest.raises(ValueError, match="layer 'layer0': with the machine's counts its sizes multiply to as much as"):
        cost_table(own_machine(name, batch=2**24), table([layer]))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("edge", {"clock": 1e-29}, "mine: latency_s of layer 'layer0' at 1/1 bits (weights/activations) is"),
        ("edge", {"dram_energy": 1e30}, "mine: energy_j of layer 'layer0' at 1/1 bits (weights/activations) is"),
        ("roofline", {"mac_energy": 1e30}, "mine: energy_j of layer 'layer0' at 1/1 bits"),
        ("roofline", {"overhead": 1e30, "clock": 1e30, "leakage_power": 1e30}, "mine: energy_j of layer 'layer0'"),
    ],
)
def test_a_cost_that_is_no_number_above_0_is_refused_by_layer_and_bits(name, changes, message):
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        cost_table(own_machine(name, **changes), SMALL)
    assert "expected a number from 1e-30 to 1e+30" in str(error.value)


def test_an_empty_layer_costs_nothing_and_is_refused():
    with pytest.raises(ValueError, match="of layer 'layer0' at 1/1 bits"):
        cost_table(machine("roofline"), table([dense(4, 0)]))


@pytest.mark.parametrize("name", ["bismo_edge", "roofline", "systolic", "bitfusion"])
def test_a_machine_without_energies_does_not_know_the_energy(name):
    amounts = {field: 0.0 for field in machine(name).spec._fields if field.endswith(("energy", "power"))}
    found = cost_table(own_machine(name, **amounts), SMALL)
    assert np.isnan(found.energy).all()
    np.testing.assert_array_equal(found.latency, cost_table(machine(name), SMALL).latency)


# Policies


@pytest.mark.parametrize("lead", [(), (5,), (2, 3)])
def test_a_policy_costs_the_sum_of_its_entries(lead):
    costs = random_table(7)
    policy = np.random.default_rng(1).integers(1, 9, (*lead, 7, 2))
    found = total_cost(costs, policy)
    for name in Cost._fields:
        fixed = getattr(costs.fixed, name)
        if name == "memory":
            expected = [fixed + references_search.peak(costs.lifetimes, row) for row in policy.reshape(-1, 7, 2)]
        else:
            expected = [slow_cost(getattr(costs, name), fixed, row) for row in policy.reshape(-1, 7, 2)]
        assert getattr(found, name).shape == lead
        np.testing.assert_allclose(np.ravel(getattr(found, name)), expected, rtol=1e-6)


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.parametrize(
    "network", [references.resnet50(), table([dense(4096, 16384, rows=4096), dense(16384, 4096, rows=4096)])]
)
def test_nothing_overflows_at_a_large_network_and_batch_16(name, network):
    """ResNet-50 at 224 pixels, and the two products of a 4096-wide transformer's block over 4,096 tokens."""
    spec = machine(name).spec
    large = Machine(name, machine(name).model, spec._replace(batch=16))
    found = cost_table(large, network)
    for values in (found.latency, found.energy, found.size, found.bops):
        assert np.isfinite(values).all() and (values > 0).all()
    # A wrapped counter would lose more than half of what the widest operands cost over the narrowest ones.
    assert (found.latency[:, 7, 7] >= found.latency[:, 0, 0]).all()
    assert (found.energy[:, 7, 7] >= found.energy[:, 0, 0]).all()
    assert found.bops[:, 7, 7].tolist() == (64 * network.macs).tolist()
    utilisation = find_limits(large, network).utilisation  # against the operations in 64 bits
    assert (utilisation > 0).all() and (utilisation <= 1 + 1e-9).all()
    one = cost_table(Machine(name, large.model, spec._replace(batch=1)), network)
    for many, single in ((found.latency, one.latency), (found.energy, one.energy)):
        assert (many >= single).all()


def test_uniform_cost_is_the_table():
    costs = cost_table(machine("cloud"), references.mobilenet_v2())
    found = total_cost(costs, np.broadcast_to(np.arange(1, 9)[:, None, None], (8, 53, 2)))
    cycles = [3433704, 7063425, 11103578, 15716150, 20916896, 26653434, 32886714, 39624933]  # the released table
    np.testing.assert_allclose(found.latency, np.array(cycles) / 2e8, rtol=1e-6)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_many_policies_cost_what_they_cost_alone(dtype):
    costs = random_table(3)
    policy = np.random.default_rng(5).integers(1, 9, (3, 1100, 3, 2)).astype(dtype)
    together, apart = total_cost(costs, policy), [total_cost(costs, part) for part in policy.reshape(30, 110, 3, 2)]
    for name in Cost._fields:
        expected = np.concatenate([getattr(part, name) for part in apart]).reshape(3, 1100)
        np.testing.assert_allclose(getattr(together, name), expected, rtol=1e-6)


@pytest.mark.parametrize("bits", [0, -1, 9, 32])
@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_bits_without_an_entry_cost_nan_or_are_refused_by_name(bits, dtype):
    policy = np.full((2, 3, 2), 4, dtype)
    policy[1, 2, 0] = bits
    table = dataclasses.replace(random_table(3), names=("stem", "block", "head"))
    for row in jax.jit(total_cost)(table, policy)[:3]:
        assert np.isfinite(row[0])
        assert np.isnan(row[1])
    if bits != 32:
        with pytest.raises(ValueError, match=f"layer 'head' has {dtype(bits)} weight bits: expected 1 to 8, or 32"):
            total_cost(table, policy)


def test_a_tensor_that_is_left_costs_what_does_not_depend_on_its_bits():
    by_weight = np.broadcast_to(np.arange(1.0, 9)[:, None], (2, 8, 8))
    by_both = by_weight * np.arange(1.0, 9)
    table = CostTable(by_both, by_both, by_weight, Cost(0.0, 0.0, 5.0))
    cost = total_cost(table, np.array([[4, 32], [8, 8]]))
    assert float(cost.size) == 4 + 8 + 5 and np.isnan(cost.latency)
    assert np.isnan(total_cost(table, np.array([[32, 8], [8, 8]])).size)
    assert exact_cost(table, np.array([[4, 32], [8, 8]]))["size"] == 17
    assert np.isnan(exact_cost(table, np.array([[4, 32], [8, 8]]))["latency"])


@pytest.mark.parametrize("shape", [(3, 2), (5, 3), (2,), (4, 2, 2)])
def test_a_policy_of_another_shape_is_an_error(shape):
    with pytest.raises(ValueError, match="policy has shape"):
        total_cost(random_table(4), np.full(shape, 4))


def test_fractional_bits_are_interpolated():
    costs = random_table(3)
    policy = np.array([[1.25, 7.5], [3.0, 4.75], [8.0, 8.0]])
    expected = costs.fixed.energy + costs.energy[2, 7, 7]
    expected += 0.25 * costs.energy[1, 2, 3] + 0.75 * costs.energy[1, 2, 4]
    for w, part in ((1, 0.75), (2, 0.25)):
        expected += part * 0.5 * (costs.energy[0, w - 1, 6] + costs.energy[0, w - 1, 7])
    assert float(total_cost(costs, policy).energy) == pytest.approx(expected, rel=1e-6)


def test_whole_bits_agree_between_dtypes():
    costs = random_table(6)
    policy = np.random.default_rng(2).integers(1, 9, (50, 6, 2))
    for whole, floating in zip(total_cost(costs, policy), total_cost(costs, policy.astype(float)), strict=True):
        np.testing.assert_allclose(whole, floating, rtol=1e-6)


@pytest.mark.parametrize("name", Cost._fields)
def test_gradient_is_the_finite_difference(name):
    costs = random_table(4)
    rng = np.random.default_rng(3)
    policy = rng.integers(1, 8, (4, 2)) + rng.uniform(0.2, 0.8, (4, 2))
    with jax.enable_x64(True):
        gradient = jax.grad(lambda bits: getattr(total_cost(costs, bits), name))(jnp.asarray(policy))
        for index in np.ndindex(policy.shape):
            step = np.zeros(policy.shape)
            step[index] = 1e-3
            high, low = (getattr(total_cost(costs, policy + sign * step), name) for sign in (1, -1))
            assert float(gradient[index]) == pytest.approx(float(high - low) / 2e-3, rel=1e-6)


def test_a_missing_energy_leaves_latency_alone():
    costs = random_table(4)
    unknown = CostTable(costs.latency, np.full_like(costs.energy, np.nan), costs.size, costs.fixed)
    policy = np.full((4, 2), 4.5)
    assert np.isnan(total_cost(unknown, policy).energy)
    assert total_cost(unknown, policy).latency == total_cost(costs, policy).latency
    gradient = jax.grad(lambda bits: total_cost(unknown, bits).latency)(jnp.asarray(policy))
    assert np.isfinite(gradient).all()


def test_vmap_is_the_leading_axis():
    costs = random_table(5)
    policy = np.random.default_rng(4).integers(1, 9, (8, 5, 2))
    mapped = jax.vmap(total_cost, in_axes=(None, 0))(costs, policy)
    np.testing.assert_allclose(mapped.latency, total_cost(costs, policy).latency, rtol=1e-6)


def test_another_policy_compiles_nothing():
    first, second, traces = random_table(5), random_table(5, seed=1), []
    cost = jax.jit(lambda table, policy: (traces.append(0), total_cost(table, policy))[1])
    cost(first, np.full((5, 2), 3))
    cost(second, np.full((5, 2), 7))
    assert len(traces) == 1


def test_every_model_has_a_machine():
    assert {machine(name).model for name in MACHINES} == {name for name, model in MODELS.items() if model.spec}
