"""Networks written out by hand, with slow, obvious versions of the accelerator models."""

import itertools
import math
from pathlib import Path

import numpy as np

from haqjax.types import LayerTable

REFERENCES = Path(__file__).parents[2] / "shared" / "references"


def table(rows, other_parameters=0):
    """A LayerTable of rows (kernel, stride, in_channels, out_channels, groups, in_size, out_size, dense)."""
    kernel, stride, c_in, c_out, groups, in_size, out_size, dense = (
        np.array(column) for column in zip(*rows, strict=True)
    )
    square = {
        "kernel": np.stack([kernel, kernel], 1),
        "stride": np.stack([stride, stride], 1),
        "in_size": np.stack([in_size, np.where(dense, 1, in_size)], 1),
        "out_size": np.stack([out_size, np.where(dense, 1, out_size)], 1),
    }
    names = tuple(f"layer{i}" for i in range(len(rows)))
    other = np.array(other_parameters)
    return LayerTable(
        names, in_channels=c_in, out_channels=c_out, groups=groups, dense=dense, other_parameters=other, **square
    )


def conv(kernel, stride, c_in, c_out, in_size, groups=1):
    return (kernel, stride, c_in, c_out, groups, in_size, -(-in_size // stride), False)


def dense(c_in, c_out, rows=1):
    return (1, 1, c_in, c_out, 1, rows, rows, True)


def mobilenet_v1():
    rows, channels, size = [conv(3, 2, 3, 32, 224)], 32, 112
    blocks = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)] + [(512, 1)] * 5 + [(1024, 2), (1024, 1)]
    for out, stride in blocks:
        rows.append(conv(3, stride, channels, channels, size, groups=channels))
        size //= stride
        rows.append(conv(1, 1, channels, out, size))
        channels = out
    norms = 2 * sum(row[3] for row in rows)  # a scale and a shift for each channel of a convolution
    return table([*rows, dense(1024, 1000)], norms + 1000)


def mobilenet_v2():
    rows, channels, size = [conv(3, 2, 3, 32, 224)], 32, 112
    stages = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    for expand, out, repeats, first_stride in stages:
        for stride in [first_stride] + [1] * (repeats - 1):
            hidden = channels * expand
            if expand > 1:
                rows.append(conv(1, 1, channels, hidden, size))
            rows.append(conv(3, stride, hidden, hidden, size, groups=hidden))
            size //= stride
            rows.append(conv(1, 1, hidden, out, size))
            channels = out
    rows.append(conv(1, 1, 320, 1280, 7))
    norms = 2 * sum(row[3] for row in rows)
    return table([*rows, dense(1280, 1000)], norms + 1000)


def resnet50():
    rows, channels, size = [conv(7, 2, 3, 64, 224)], 64, 56
    for width, repeats, first_stride in [(64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)]:
        for index in range(repeats):
            stride = first_stride if index == 0 else 1
            rows.append(conv(1, 1, channels, width, size))
            rows.append(conv(3, stride, width, width, size))
            rows.append(conv(1, 1, width, 4 * width, size // stride))
            if index == 0:
                rows.append(conv(1, stride, channels, 4 * width, size))
            channels, size = 4 * width, size // stride
    norms = 2 * sum(row[3] for row in rows)
    return table([*rows, dense(2048, 1000)], norms + 1000)


def ceil_div(a, b):
    return -(-a // b)


def simulate_job(vectors, outputs, length, weight_bits, activation_bits, array, dot_bits, port_bits, swap):
    """Runs one BISMO job cycle by cycle: two ports deliver words, one product a cycle once both are in."""
    steps = ceil_div(length, dot_bits)

    def words(rows, bits):
        """Lists (name, beats) of one operand, in the order of arrival, which is that of first use."""
        queue = []
        for tile in range(ceil_div(rows, array)):
            for step in range(steps):
                summands = min(dot_bits, length - step * dot_bits)
                beats = min(array, rows - tile * array) * ceil_div(summands, port_bits)
                queue += [((tile, step, bit), beats) for bit in range(bits)]
        return queue

    outer, inner = (vectors, activation_bits), (outputs, weight_bits)
    if swap:
        outer, inner = inner, outer
    products = [
        ((q, s, j), (n, s, i))
        for q in range(ceil_div(outer[0], array))
        for n in range(ceil_div(inner[0], array))
        for s in range(steps)
        for i in range(inner[1])
        for j in range(outer[1])
    ]
    ports = [words(*outer), words(*inner)]
    here = [set(), set()]
    cycle, done = 0, 0
    left = [port[0][1] for port in ports]
    while done < len(products):
        cycle += 1
        for side, port in enumerate(ports):
            if port:
                left[side] -= 1
                if left[side] == 0:
                    here[side].add(port.pop(0)[0])
                    left[side] = port[0][1] if port else 0
        if all(word in present for word, present in zip(products[done], here, strict=True)):
            done += 1
    return cycle


def split(rows, bits, steps, array, buffer_words):
    """Lists the rows of each group of an operand that goes through its buffer in several loads."""
    tiles = ceil_div(rows, array)
    groups = ceil_div(tiles, max(1, buffer_words // (steps * bits)))
    size = ceil_div(tiles, groups) * array
    return [min(size, rows - start) for start in range(0, rows, size)]


def simulate_product(spec, vectors, outputs, length, weight_bits, activation_bits):
    """Counts the cycles of one matrix product on BISMO: job after job, each in the better of its two orders."""
    steps = ceil_div(length, spec.dot_bits)
    total = 0
    for p in split(vectors, activation_bits, steps, spec.array, spec.buffer_words):
        for n in split(outputs, weight_bits, steps, spec.array, spec.buffer_words):
            job = (p, n, length, weight_bits, activation_bits, spec.array, spec.dot_bits, spec.port_bits)
            total += min(simulate_job(*job, swap) for swap in (False, True))
    return total


def search_tiles(spec, kernel, stride, out_size, in_channels, out_channels, images, unrolled, w, a):
    """Finds the best (cycles, J, busy cycles, DRAM bits read, written) on BitFusion over every tile in every order."""
    area, columns = kernel[0] * kernel[1], spec.outputs
    if spec.share_bricks:
        fused = 16 // (ceil_div(a, 2) * ceil_div(w, 2))
    else:
        fused = {1: 4, 2: 4, 3: 2, 4: 2}.get(a, 1) * {1: 4, 2: 4, 3: 2, 4: 2}.get(w, 1)
    summed = spec.inputs * fused
    half_buffers = [size * 8 // 2 for size in (spec.weight_buffer, spec.input_buffer, spec.output_buffer)]
    best = None
    for b, o, ic, oc in itertools.product(
        powers_up_to(images),
        powers_up_to(max(out_size)),
        powers_up_to(in_channels),
        powers_up_to(out_channels, 1 if unrolled else columns),
    ):
        oh, ow = min(o, out_size[0]), min(o, out_size[1])
        sides = [k + (n - 1) * s for k, n, s in zip(kernel, (oh, ow), stride, strict=True)]
        wide = ceil_div(oc, columns) * columns
        blocks = [
            ceil_div(area * ic, summed) * summed * oc * w,
            (oh * ow * area if unrolled else sides[0] * sides[1]) * ic * b * a,
            oh * ow * wide * b * spec.output_bits,
        ]
        if any(block > half for block, half in zip(blocks, half_buffers, strict=True)):
            continue
        sizes = (images, *out_size, in_channels, out_channels)
        counts = [ceil_div(size, part) for size, part in zip(sizes, (b, oh, ow, ic, oc), strict=True)]
        tiles, places = math.prod(counts), b * oh * ow
        steps = ceil_div(area * ic, summed) if unrolled else area * ceil_div(ic, summed)
        busy = tiles * places * ceil_div(oc, columns) * steps
        deep, y, products = steps * summed, spec.output_bits, area * ic * places * oc
        flow = min(
            (deep * places * (a + wide * (w + y)), 0),
            (wide * places * (y + deep * (a + w)), 1),
            (deep * wide * (w + places * (a + y)), 2),
        )[1]
        weight_reads = tiles * (area * ic * oc if flow == 2 else products) * w
        input_reads = tiles * (area * ic * places if flow == 0 else products) * a
        output_reads = tiles * (places * oc if flow == 1 else products) * y
        for order in itertools.permutations(range(5)):
            moved, stays = [], []
            for block, half, depends in zip(blocks, half_buffers, ({3, 4}, {0, 1, 2, 3}, {0, 1, 2, 4}), strict=True):
                total = resident = block
                inside = True
                for loop in order:
                    if inside and loop in depends and total * counts[loop] > half:
                        inside = False
                    if loop in depends or not inside:
                        total *= counts[loop]
                    if inside:
                        resident = total
                moved.append(total)
                stays.append(resident)
            loaded = moved[2] if spec.reread_outputs else moved[2] - blocks[2] * tiles // counts[3]
            first, last = stays[0] + stays[1] + (stays[2] if loaded else 0), stays[2]
            read, written = moved[0] + moved[1] + loaded, moved[2]
            width = spec.dram_bits
            stall = max(0, ceil_div(read + written - first - last, width) - busy)
            cycles = busy + stall + ceil_div(first, width) + ceil_div(last, width)
            energy = (
                busy * spec.core_energy
                + weight_reads * spec.weight_read_energy
                + moved[0] * spec.weight_write_energy
                + input_reads * spec.input_read_energy
                + moved[1] * spec.input_write_energy
                + (output_reads + written) * spec.output_read_energy
                + (output_reads + loaded) * spec.output_write_energy
                + (read + written) * spec.dram_energy
            )
            if best is None or (cycles, energy) < best[:2]:
                best = (cycles, energy, busy, read, written)
    return best


def powers_up_to(size, first=1):
    """Lists first, 2 first, 4 first, ..., with `size` at the end."""
    found = [first]
    while found[-1] < size:
        found.append(2 * found[-1])
    return [*found[:-1], size]
