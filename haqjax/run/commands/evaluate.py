"""The evaluate command: the policy of a finished run, measured again."""

from pathlib import Path

import jax.numpy as jnp
from rich.console import Console

from haqjax.evaluation.comparison import compare, comparison_to_json, describe_comparison
from haqjax.files import write_json
from haqjax.policies.cost import policy_cost
from haqjax.report import Row, comparison_table
from haqjax.run.answers.common import shown_cost
from haqjax.run.config.commands import EvaluateConfig
from haqjax.run.evaluators import leave_activations
from haqjax.run.finished import FINETUNED, load_tuned, measure_run, open_run
from haqjax.run.folder.documents import TUNED, open_folder
from haqjax.run.resumable import hold_folder
from haqjax.run.terminal import say
from haqjax.types import FULL_PRECISION, WIDTHS


def run_evaluate(config: EvaluateConfig, console: Console) -> dict[str, float]:
    """Measures a run's policy on the report split again, with the fine-tuned weights where there are any.

    `evaluation.json` in the run folder says more than what is printed: which predictions changed, and each layer's
    signal-to-noise ratio.

    Returns:
      Accuracies in 0..1 by name.

    Raises:
      ValueError: no finished run there, or another process writes to it.
    """
    open_folder(config.run)
    with hold_folder(Path(config.run), console):
        return _evaluate(config, console)


def _evaluate(config: EvaluateConfig, console: Console) -> dict[str, float]:
    run = open_run(config.run, console)
    params, ranges = run.network.params, run.ranges
    whole = jnp.full_like(run.policy, FULL_PRECISION)
    eight = leave_activations(run.config, jnp.full_like(whole, WIDTHS))
    policies = {"float": whole, "8 bits": eight, "uniform": run.uniform, "policy": run.policy}
    found = measure_run(run, params, ranges, policies)
    tuned = Path(config.run) / FINETUNED
    if tuned.is_dir() and (Path(config.run) / TUNED).exists():  # which a fine-tuning writes last
        params, ranges = load_tuned(tuned, run)
        found["policy, fine-tuned"] = measure_run(run, params, ranges, {"policy": run.policy})["policy"]
        policies["policy, fine-tuned"] = run.policy
    report, names = run.prepared.data.report, run.prepared.layers.names
    rows = [
        Row(name, found[name], len(report), shown_cost(run.config, policy_cost(run.prepared.table, policies[name])))
        for name in found
        if name != "float"
    ]
    console.print(comparison_table(rows, f"{config.run}: accuracy on the {len(report)} images of the report split"))
    say(console, f"float {100 * found['float']:.1f} %")
    compared = compare(run.network.apply, run.network.params, report, run.policy, ranges, tuned=params)
    say(console, *describe_comparison(compared, names))
    document = {"accuracies": found} | comparison_to_json(compared, names)
    write_json(Path(config.run) / "evaluation.json", document)
    return found
