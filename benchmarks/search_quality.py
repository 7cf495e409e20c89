"""How good are the policies that each search finds, at equal numbers of evaluations?

    python benchmarks/search_quality.py --problem a           # every policy is evaluated: regret against the optimum
    python benchmarks/search_quality.py --problem b --budgets 0.30,0.35 --episodes 400   # needs ../shared/data
    python benchmarks/search_quality.py --problem c --budgets 0.6 --seeds 1              # ImageNet; slow

Problem a: five layers trained on the digits, 2 or 4 bits an entry. Problem b: ResNet-20 on CIFAR-10 after training,
BISMO cloud. Searches select on --images images held out of the training split; the report is on the 5,000 test images.
Problem c: MobileNetV2 on the ImageNet images there are; those that a search selects by are half of them.
The defaults are small; the published figures are asked for by the options that stand in their record.
"""

import argparse
import itertools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import records

from haqjax import budget, calibrate, cost_table, layers, machine
from haqjax.agent import DDPG
from haqjax.bounds import bounds
from haqjax.budget import fits
from haqjax.cli import keep_compiled_programs
from haqjax.data import Split, load
from haqjax.models import load_pretrained
from haqjax.pricing import price
from haqjax.projection import best_uniform
from haqjax.quantize.bank import make_bank
from haqjax.search import HAQ, allocate, make_haq, make_problem, search
from haqjax.search.loop import find_searcher
from haqjax.train import make_evaluate

DATA = Path(__file__).parents[2] / "shared" / "data"
MARK = {0.30: 0.785, 0.35: 0.862, 0.40: 0.896, 0.50: 0.905, 0.60: 0.913}  # of problem b, plain clips, additive milp
ADDITIONS = ("twin", "retain", "start", "exchange")  # to HAQ: "haq+twin", or several as in "haq+start+exchange"
judge_all = jax.jit(lambda judge, policies: judge(policies))


def small_network(params, x):
    """Four convolutions and a dense layer."""
    for kernel, stride in zip(params["convolutions"], (1, 2, 1, 2), strict=True):
        x = jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(x)
    return x.mean(axis=(1, 2)) @ params["dense"]


def train_small(split, seed, steps=600):
    """Its parameters after some steps of Adam."""
    sizes = (3, 8, 12, 16, 24)
    keys = jax.random.split(jax.random.key(seed), 6)
    draw = lambda key, *shape: jax.random.normal(key, shape) * (2 / np.prod(shape[:-1])) ** 0.5
    params = {
        "convolutions": [draw(k, 3, 3, i, o) for k, i, o in zip(keys, sizes, sizes[1:], strict=False)],
        "dense": draw(keys[4], sizes[-1], 10),
    }
    adam = optax.adam(3e-3)

    @jax.jit
    def step(params, moments, images, labels):
        loss = lambda p: optax.softmax_cross_entropy_with_integer_labels(small_network(p, images), labels).mean()
        change, moments = adam.update(jax.grad(loss)(params), moments)
        return optax.apply_updates(params, change), moments

    moments, random = adam.init(params), np.random.default_rng(seed)
    for _ in range(steps):
        rows = random.integers(0, len(split), 64)
        params, moments = step(params, moments, split.images[rows], split.labels[rows])
    return params


def problem_a(limit, config):
    """A problem small enough to exhaust, its judge on the report split, and the best that there is."""
    data = load("digits", image_size=8)
    params = train_small(data.train, 0)
    ranges = calibrate(small_network, params, [data.train.images[:256]], rounding=config.rounding)
    table_of = layers(small_network, params, data.train.images[:1])
    there = np.isin(np.arange(1, 9), (2, 4)) & np.ones((len(table_of), 2, 1), bool)
    table, limits = cost_table(machine("edge"), table_of), bounds(table_of, pinned={}, allowed=there)
    ends = [float(price(table, end).latency) for end in (limits.low, limits.high)]
    allowance = budget(table, latency_s=ends[0] + limit * (ends[1] - ends[0]))
    judges = [make_evaluate(small_network, params, s, ranges, with_loss=True) for s in (data.search, data.report)]
    policies = np.array(list(itertools.product((2, 4), repeat=2 * len(table_of)))).reshape(-1, len(table_of), 2)
    fitting = policies[np.asarray(fits(price(table, jnp.asarray(policies)), allowance))]
    optimum = float(judge_all(judges[0], jnp.asarray(fitting)).accuracy.max())
    return (*build(table_of, table, limits, allowance, judges), {"policies": len(policies), "optimum": optimum})


def problem_b(limit, config):
    """ResNet-20 on CIFAR-10; with --metric size, k-means weights and activations at 8 bits."""
    network = load_pretrained(str(DATA / "resnet20_cifar10.safetensors"), "resnet20").network
    data = load("tfds:cifar10", data_dir=str(DATA / "tfds"), preprocessing="cifar", search_images=config.images)
    return problem_of(network, "cloud", data.train.images[:256], data.search, data.report, limit, config)


def problem_c(limit, config):
    """MobileNetV2 on ImageNet: half of the validation images to search by, half to report."""
    network = load_pretrained(str(DATA / "mobilenet_v2_imagenet.safetensors"), "mobilenet_v2").network
    data = load("folder:" + str(DATA / "imagenet"), preprocessing="tensorflow", search_images=config.images)
    images = data.train.images[:256] if isinstance(data.train, Split) else next(iter(data.train.batches(256)))[0]
    return problem_of(network, "edge", images, data.search, data.report, limit, config)


def problem_of(network, hw, images, searched, reported, limit, config):
    """The problem of a network with weights."""
    table_of = layers(network.apply, network.params, network.example)
    by_size = config.metric == "size"
    table = cost_table(machine(hw), table_of, "codebook" if by_size else "plain")
    limits = bounds(table_of, low=(2, 8) if by_size else 2)
    batches = [images[at : at + 64] for at in range(0, len(images), 64)]
    plain = {"rounding": "nearest", "correct_bias": False} if config.rounding == "nearest" else {}
    ranges = calibrate(network.apply, network.params, batches, **plain)
    if by_size:
        ranges = ranges.__class__(**vars(ranges) | {"bank": make_bank(network.apply, network.params, network.example)})
    judges = [make_evaluate(network.apply, network.params, s, ranges, with_loss=True) for s in (searched, reported)]
    built = build(table_of, table, limits, budget(table, **{config.metric: limit}), judges)
    return (*built, {"images": {"search": len(searched), "report": len(reported)}})


def build(table_of, table, limits, allowance, judges):
    """The problem, and the judge on the report split."""
    unquantised = jnp.full((1, len(table_of), 2), 32)
    told = judge_all(judges[0], unquantised)
    problem = make_problem(table_of, table, limits, allowance, judges[0], told.accuracy[0], reference_loss=told.loss[0])
    return problem, judges[1]


def searcher_of(name, problem, config):
    """The searcher of a name, with additions to HAQ."""
    base, *added = name.split("+")
    if not added:
        return find_searcher(base, config.parallel)
    assert base == "haq" and not set(added) - set(ADDITIONS), f"unknown additions in {name}"
    law = 4.0 ** -np.arange(1.0, 9.0) * np.ones((len(problem.names), 2, 1))
    start = allocate(law, problem.table, problem.bounds, problem.budget).policy.tolist()
    values = {
        "retain": {"retain": 8},
        "start": {"start": tuple(map(tuple, start))},
        "exchange": {"exchange": config.episodes // 2},
    }
    chosen = {key: value for name in added for key, value in values.get(name, {}).items()}
    return make_haq(HAQ(agent=DDPG(twin="twin" in added), parallel=config.parallel, **chosen))


def run(problem, judge, name, seed, config, about):
    """One search."""
    start = time.perf_counter()
    searcher = searcher_of(name, problem, config)
    found = search(problem, searcher, episodes=config.episodes, key=jax.random.key(seed))
    row = {
        "searcher": name, "seed": seed, "seconds": time.perf_counter() - start,
        "search": found.accuracy, "search_loss": found.loss, "policy": np.asarray(found.policy).tolist(),
    }  # fmt: skip
    if judge is not None:
        report = judge_all(judge, jnp.asarray(found.policy)[None])
        images = about.get("images", {}).get("report", 360)
        value = float(report.accuracy[0])
        row |= {"report": value, "report_loss": float(report.loss[0])}
        row["standard_error"] = (value * (1 - value) / images) ** 0.5
    if "optimum" in about:
        row["regret"] = about["optimum"] - found.accuracy
    return row


def main(config):
    """Every searcher on every budget with every seed."""
    made = {"a": problem_a, "b": problem_b, "c": problem_c}[config.problem]
    figures = {"options": vars(config), "budgets": {}}
    for limit in map(float, config.budgets.split(",")):
        problem, judge, about = made(limit, config)
        uniform = best_uniform(problem.table, problem.bounds, problem.budget)
        told = judge_all(judge, uniform.policy[None])
        rows = []
        for name, seed in itertools.product(config.searchers.split(","), range(config.seeds)):
            rows.append(run(problem, judge, name, seed, config, about))
            print(limit, {key: value for key, value in rows[-1].items() if key != "policy"}, flush=True)
        figures["budgets"][f"{limit:g}"] = about | {
            "uniform": {"feasible": bool(uniform.feasible), "report": float(told.accuracy[0])},
            "mark": MARK.get(limit) if config.problem == "b" and config.metric == "latency" else None,
            "runs": rows,
        }
    records.write(f"search-quality-{config.problem}-{config.metric}-{config.rounding}", figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", choices=("a", "b", "c"), default="a")
    parser.add_argument("--searchers", default="ilp,haq,greedy,random")
    parser.add_argument("--budgets", default="0.5", help="fractions of the 8-bit cost; problem a: of floor to ceiling")
    parser.add_argument("--metric", choices=("latency", "size"), default="latency")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--episodes", type=int, default=200)
    parser.add_argument("--parallel", type=int, default=4)
    parser.add_argument("--images", type=int, default=1000, help="that searches select by")
    parser.add_argument("--rounding", choices=("output", "nearest"), default="output", help="nearest: plain clips")
    keep_compiled_programs()
    main(parser.parse_args())
