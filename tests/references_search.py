"""Slow, obvious NumPy forms of what the policy, budget, agent and search modules compute."""

import numpy as np


def total(table, policy):
    """(latency, energy, size, bops, memory) of one policy, entry by entry; NaN for what the table cannot tell."""
    sums = [float(fixed) for fixed in table.fixed]
    for layer, (w, a) in enumerate(policy):
        for i, values in enumerate((table.latency, table.energy, table.size, table.bops)):
            sums[i] += np.nan if values is None else float(values[layer, w - 1, a - 1])
    sums[4] += np.nan if table.lifetimes is None else peak(table.lifetimes, policy)
    return sums


def peak(lifetimes, policy):
    """The most bytes in memory during a product, tensor by tensor."""
    most = 0.0
    for alive in lifetimes.alive:
        held = 0.0
        for elements, readers, here in zip(lifetimes.elements, lifetimes.readers, alive, strict=True):
            bits = max([policy[layer][1] for layer in np.flatnonzero(readers)], default=32)
            held += elements * bits / 8 if here else 0.0
        most = max(most, held)
    return most


def lower_onto_budget(policy, table, low, limits):
    """HAQ's loop: one bit at a time, last layer first, activations before weights, until the policy fits."""
    policy = [list(row) for row in policy]

    def fits():
        return all(spent <= limit for spent, limit in zip(total(table, policy), limits, strict=True))

    while not fits():
        before = [list(row) for row in policy]
        for layer in reversed(range(len(policy))):
            for column in (1, 0):
                if policy[layer][column] > low[layer][column]:
                    policy[layer][column] -= 1
                    if fits():
                        return policy, True
        if policy == before:
            return policy, False
    return policy, True


def lower_over_widths(policy, table, widths, limits):
    """`lower_onto_budget` where layer `l` has only `widths[l]`: the loop over a table of ranks in their place."""

    def expand(ranks):
        return [[widths[layer][rank - 1] for rank in pair] for layer, pair in enumerate(ranks)]

    ranks = [[widths[layer].index(bits) + 1 for bits in pair] for layer, pair in enumerate(policy.tolist())]
    while True:
        if all(spent <= limit for spent, limit in zip(total(table, expand(ranks)), limits, strict=True)):
            return expand(ranks), True
        before = [list(pair) for pair in ranks]
        for layer in reversed(range(len(ranks))):
            for column in (1, 0):
                if ranks[layer][column] > 1:
                    ranks[layer][column] -= 1
                    spent = total(table, expand(ranks))
                    if all(s <= limit for s, limit in zip(spent, limits, strict=True)):
                        return expand(ranks), True
        if ranks == before:
            return expand(ranks), False


def forward(layers, x):
    """A chain of dense layers with ReLU between them; returns every layer's input, and the output."""
    inputs = []
    for index, (weight, bias) in enumerate(layers):
        x = np.maximum(x, 0) if index else x
        inputs.append(x)
        x = x @ weight + bias
    return inputs, x


def backward(layers, inputs, output_gradient):
    """Gradients of `forward` for every weight and bias, and for the first input."""
    gradients, flow = [], output_gradient
    for index in reversed(range(len(layers))):
        weight, _ = layers[index]
        gradients.append((inputs[index].T @ flow, flow.sum(0)))
        flow = flow @ weight.T
        if index:
            flow = flow * (inputs[index] > 0)
    return gradients[::-1], flow


def adam_first_step(gradient, rate):
    """Adam's first step (Kingma and Ba 2015): both moments are the bare gradient once their bias is taken out."""
    return -rate * gradient / (np.abs(gradient) + 1e-8)


def observations(layers, policy_bits):
    """The 10 numbers seen at each of the 2L decisions, scaled to [0, 1], the last one the previous width / 8."""
    rows = []
    for index in range(len(layers)):
        dense = layers.dense[index]
        for column in (0, 1):
            rows.append(
                [
                    index,
                    layers.in_channels[index],
                    layers.out_channels[index],
                    1 if dense else layers.kernel[index, 0],
                    0 if dense else layers.stride[index, 0],
                    layers.in_size[index, 0] * layers.in_size[index, 1],
                    layers.weights[index],
                    layers.groups[index] > 1 and layers.groups[index] == layers.in_channels[index],
                    column == 0,
                ]
            )
    rows = np.array(rows, float)
    for column in rows.T:
        if column.max() > column.min():
            column[:] = (column - column.min()) / (column.max() - column.min())
        else:
            column[:] = min(column[0], 1)
    before = np.concatenate([[8], np.asarray(policy_bits).reshape(-1)[:-1]]) / 8
    return np.concatenate([rows, before[:, None]], axis=1)
