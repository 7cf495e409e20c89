"""How long do a network's k-means codebooks take, and is any clustering of its weights better?

    python benchmarks/kmeans.py            # about half an hour; --quick: a minute or two, small layers alone

Every layer of MobileNetV2 (1,000 classes) at 1..8 bits; with weights trained on ImageNet where their file is there (see
--weights), else as drawn at random, which the record says. The squared error is held against

* the least there is, by dynamic programming over all places of all boundaries (in NumPy, on the host), and
* scikit-learn's KMeans, the best of 10 starts with its own settings, on one thread: first wherever ours is not the
  least there is to one part in a million, which no time limit cuts short, then from the quickest problem on until
  --budget seconds of processor time are over. Equal weights are one point of the weight of all of them, which changes
  nothing but time.
"""

import argparse
import time
from pathlib import Path

import jax
import numpy as np
import records
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from haqjax.models import build, load_pretrained
from haqjax.quantizers.codebook import make_codebook
from haqjax.tracing.hooks import map_weights

WEIGHTS = Path(__file__).parents[2] / "shared" / "data" / "mobilenet_v2_imagenet.safetensors"
SMALL = 10_000  # weights of a layer that --quick still compares
SAME = 1e-6  # relative difference that counts as none
WIDTHS = range(1, 9)


def network_of(path):
    """Opens MobileNetV2 with its weights; says where they are from."""
    if path.is_file():
        return load_pretrained(str(path), "mobilenet_v2").network, path.name
    return build("mobilenet_v2", jax.random.key(0), classes=1000, image_size=224), "drawn at random"


def least_errors(values):
    """Computes the least squared error of 1, 2, 4, ..., 256 clusters.

    The best last boundary never falls as values are added, so bisection over the prefixes halves what is left to try.
    """
    value, count = np.unique(values, return_counts=True)
    exact = (value - value.mean(dtype=np.float64)).astype(np.longdouble if len(value) < SMALL else np.float64)
    sums = np.pad(np.cumsum([count, count * exact, count * exact**2], axis=1), ((0, 0), (1, 0)))
    best = squared_error(sums, np.zeros(len(value) + 1, int), np.arange(len(value) + 1))
    errors = {1: best[-1]}
    for clusters in range(2, 257):
        best = with_one_more(sums, best)
        errors[clusters] = best[-1]
    return [float(errors[2**bits]) for bits in WIDTHS]


def squared_error(sums, start, stop):
    """Computes the squared error of the values from each start to each stop about their means."""
    count, total, squares = sums[:, stop] - sums[:, start]
    return np.maximum(squares - total**2 / np.maximum(count, 1), 0)


def with_one_more(sums, best):
    """Computes the least errors of all prefixes with one cluster more than in `best`."""
    errors, last = np.full_like(best, np.inf), np.zeros(len(best), int)
    stride = 1 << len(best).bit_length()
    while stride:
        at = np.arange(stride - 1, len(best), 2 * stride)
        low = np.where(at >= stride, last[at - stride], 0)
        after = at + stride
        high = np.minimum(np.where(after < len(best), last[np.minimum(after, len(best) - 1)], at), at)
        length = high - low + 1
        begin = np.cumsum(length) - length
        start = np.arange(length.sum()) - np.repeat(begin - low, length)
        tried = best[start] + squared_error(sums, start, np.repeat(at, length))
        if len(at):
            errors[at] = np.minimum.reduceat(tried, begin)
            hits = np.flatnonzero(tried == np.repeat(errors[at], length))
            first = np.unique(np.searchsorted(begin, hits, side="right"), return_index=True)[1]
            last[at] = start[hits[first]]
        stride //= 2
    return errors


def scikit_error(values, bits):
    """Measures the squared error of the best of 10 starts, and its seconds of processor time."""
    value, count = np.unique(values.astype(np.float64), return_counts=True)
    start = time.process_time()
    with threadpool_limits(1):
        fitted = KMeans(2**bits, n_init=10, random_state=0).fit(value[:, None], sample_weight=count)
    centres = np.sort(fitted.cluster_centers_[:, 0])
    nearest = centres[np.searchsorted((centres[1:] + centres[:-1]) / 2, value)]
    return float((count * (value - nearest) ** 2).sum()), time.process_time() - start


def our_errors(weight, codebooks, assignments):
    """Computes the squared error at 1..8 bits."""
    codebooks, assignments = np.asarray(codebooks, np.float64), np.asarray(assignments)
    return [float(((weight - codebooks[bits - 1][assignments[bits - 1]]) ** 2).sum()) for bits in WIDTHS]


def time_codebook(network):
    """Makes the codebook; measures seconds with and without compilation."""
    times = []
    for _ in range(4):
        start, start_cpu = time.perf_counter(), time.process_time()
        codebook = jax.block_until_ready(make_codebook(network.apply, network.params, network.example))
        times.append((time.perf_counter() - start, time.process_time() - start_cpu))
    first, again = times[0], min(times[1:])
    return codebook, {
        "bank_seconds_with_compilation": first[0],
        "bank_seconds": again[0],
        "bank_cpu_seconds_with_compilation": first[1],
        "bank_cpu_seconds": again[1],
    }


def least_of(name, weight, codebook, index):
    """Records a layer before scikit-learn clusters it."""
    start = time.process_time()
    layer = {"name": name, "weights": weight.size, "distinct": len(np.unique(weight)), "values": weight}
    layer |= {
        "error": our_errors(weight, codebook.codebooks[index], codebook.assignments[index]),
        "least": least_errors(weight),
    }
    print(f"{name}: least error in {time.process_time() - start:.1f} s", flush=True)
    return layer | {"scikit": [None] * len(WIDTHS)}


def compare(layers, budget):
    """Adds scikit-learn's errors to the layers' records; returns the processor seconds that it took."""
    pairs = [(index, bits) for index in range(len(layers)) for bits in WIDTHS]

    def over(index, bits):
        return layers[index]["error"][bits - 1] / layers[index]["least"][bits - 1]

    hard = [pair for pair in pairs if over(*pair) > 1 + SAME]
    rest = sorted(set(pairs) - set(hard), key=lambda pair: (layers[pair[0]]["distinct"] << pair[1], pair))
    used, allowed = 0.0, float("inf")
    for number, (index, bits) in enumerate(hard + rest):
        allowed = used + budget if number == len(hard) else allowed
        if used > allowed:
            break
        layers[index]["scikit"][bits - 1], seconds = scikit_error(layers[index]["values"], bits)
        used += seconds
        print(f"{layers[index]['name']} at {bits} bits: {seconds:.1f} s", flush=True)
    return used


def summary(layers):
    """Summarises the comparison."""
    ours, least, scikit = (np.array([layer[key] for layer in layers], float) for key in ("error", "least", "scikit"))
    excess, ratio = ours / least - 1, ours / scikit
    done = np.isfinite(ratio)
    return {
        "pairs": ours.size,
        "pairs_least": int((excess <= SAME).sum()),
        "pairs_least_at_each_width": dict(zip(WIDTHS, (excess <= SAME).sum(0), strict=True)),
        "largest_excess_over_least": excess.max(),
        "pairs_compared_with_scikit": int(done.sum()),
        "pairs_compared_at_each_width": dict(zip(WIDTHS, done.sum(0), strict=True)),
        "pairs_where_scikit_is_lower": int((ratio[done] > 1 + SAME).sum()),
        "ours_over_scikit_largest": ratio[done].max(),
        "ours_over_scikit_median": np.median(ratio[done]),
        "ours_over_scikit_median_at_each_width": dict(zip(WIDTHS, np.nanmedian(ratio, axis=0), strict=True)),
        "scikit_over_least_largest": (scikit / least)[done].max(),
    }


def row(layer):
    """Makes a layer's part of the record: its squared error over the others', at 1..8 bits."""
    over_scikit = [
        ours / other if other is not None else None for ours, other in zip(layer["error"], layer["scikit"], strict=True)
    ]
    over_least = [ours / least for ours, least in zip(layer["error"], layer["least"], strict=True)]
    return {key: layer[key] for key in ("name", "weights", "distinct")} | {
        "over_least": over_least,
        "over_scikit": over_scikit,
    }


def main():
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--budget", type=float, default=900, help="processor seconds for scikit-learn")
    parser.add_argument("--quick", action="store_true", help="compare small layers alone, and write nothing")
    arguments = parser.parse_args()
    network, source = network_of(arguments.weights)
    codebook, seconds = time_codebook(network)
    print(seconds, flush=True)
    named = map_weights(
        lambda layer, weight: (layer.name, np.asarray(weight)), network.apply, network.params, network.example
    )
    limit = SMALL if arguments.quick else float("inf")
    layers = [least_of(*named[index], codebook, index) for index in range(len(named)) if named[index][1].size <= limit]
    used = compare(layers, 30 if arguments.quick else arguments.budget)
    figures = {"weights": source, "layers": len(named), "total_weights": sum(weight.size for _, weight in named)}
    figures |= seconds | {"scikit_cpu_seconds": used} | summary(layers)
    if arguments.quick:
        print(figures)
    else:
        records.write("kmeans", figures | {"by_layer": [row(layer) for layer in layers]})


if __name__ == "__main__":
    main()
