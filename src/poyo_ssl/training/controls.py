"""Controls of a trained run: the same targets, with something broken that honest decoding needs.

Nothing is trained anew. A control should fail; where one does not, the run's score means less than it seems. The
control with a random encoder and a fitted readout is a training of its own: ``finetune --adapt readout`` without a
pretrained run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from poyo_ssl.data.windows import UnitSet
from poyo_ssl.evaluation.predictions import Predictions
from poyo_ssl.evaluation.split_baselines import shift_windows
from poyo_ssl.training.predict import TestPart, predict_test
from poyo_ssl.training.restore import TrainedRun


def control_predictions(
    run: TrainedRun, part: TestPart, *, arm: str, seed: int, devices: int = 1, nodes: int = 1
) -> Iterator[Predictions]:
    """Predict a test part with each control of a run.

    - ``shuffled neurons``: every neuron's activity is read as that of another one of its recording, the same one in all
      windows. Activity stays as it was; who was active is lost.
    - ``shifted activity``: within each repeat the windows are moved on circularly (`shift_windows`). Activity keeps its
      autocorrelation; when it happened is lost.
    - ``untrained``: the same model with weights drawn anew.

    Parameters
    ----------
    run : TrainedRun
        The run.
    part : TestPart
        Test part whose targets are predicted.
    arm : str
        Name of the run in tables.
    seed : int
        Seed of permutations, shifts and weights; together with the run's own.
    devices, nodes : int
        Processes per node, and nodes.

    Yields
    ------
    Predictions
        Of kind 'control', with the run's seed and `model_id`; the arm is named ``<arm> (<control>)``.
    """
    place = [seed, run.config.seed]
    rng = np.random.default_rng(place)
    units = [shuffle_units(run.unit_set(recording), rng) for recording in part.data.recordings]
    shifted = shift_windows(part.table, np.random.default_rng([*place, 1]))
    untrained = run.untrained(int(np.random.SeedSequence([*place, 2]).generate_state(1)[0]))
    broken: dict[str, tuple[TrainedRun, dict[str, Any]]] = {
        "shuffled neurons": (run, {"units": units}),
        "shifted activity": (run, {"inputs": shifted}),
        "untrained": (untrained, {}),
    }
    for name, (model, change) in broken.items():
        predictions = predict_test(model, part, arm=f"{arm} ({name})", **change, devices=devices, nodes=nodes)
        yield replace(predictions, kind="control")


def shuffle_units(units: UnitSet, rng: np.random.Generator) -> UnitSet:
    """Give every neuron the place of another in the vocabulary; none keeps its own, unless it is the only one.

    Values stay normalised with their own neuron's moments: what the model sees is as large as ever.

    Examples
    --------
    >>> from poyo_ssl.data.windows import Normalisation
    >>> units = UnitSet(np.arange(3), np.array([5, 6, 7]), Normalisation.identity(3, compress=False), session_row=1)
    >>> shuffle_units(units, np.random.default_rng(0)).rows.tolist() in ([6, 7, 5], [7, 5, 6])
    True
    """
    order = rng.permutation(len(units.rows))
    rows = np.empty_like(units.rows)
    # A cycle through all neurons in random order.
    rows[order] = units.rows[np.roll(order, 1)]
    return replace(units, rows=rows)
