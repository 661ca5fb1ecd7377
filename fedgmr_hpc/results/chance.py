"""Whether a run has ended as a guess: no better than chance, and sure of what is wrong.

Being at chance alone may be the beginning of a long run. With a loss far above that of a model that
knows nothing it is a run whose weights have left the range in which it could learn.
"""

from __future__ import annotations

import math

import numpy as np

from fedgmr_hpc.config.choices.registry import DATASETS
from fedgmr_hpc.data.registry import find_source
from fedgmr_hpc.results.series import Values
from fedgmr_hpc.storage.reader import Result

CHANCE_FACTOR = 2.0  # of the accuracy of a guess: noise, and classes of unequal size
LOSS_FACTOR = 2.0  # of the loss of a model to which all classes are equally likely


def describe_chance(result: Result) -> str:
    """Say what is wrong with a run that ended as a guess with a huge loss; "" for any other.

    A guess is the validation accuracy of a blind guess, or of the run's untrained model.
    """
    config = result.config
    name = config.get("data", {}).get("name", "")
    scores, losses = (result.evaluations[name] for name in ("val_accuracy", "val_loss"))
    known = np.isfinite(scores)
    if name not in DATASETS or not known.any():
        return ""
    score, loss = float(scores[known][-1]), float(losses[known][-1])
    traits = find_source(name).traits
    if not traits.num_classes:  # only the files of the data set say how many there are
        return ""
    guess = traits.top_k / traits.num_classes
    blind_loss = _blind_loss(config.get("train", {}).get("loss"), traits.num_classes)
    if score > max(CHANCE_FACTOR * guess, _untrained(result)) or loss <= LOSS_FACTOR * blind_loss:
        return ""
    return (
        f"val accuracy {100 * score:.2f} %, a guess has {100 * guess:.2f} %, "
        f"at val loss {loss:.3g}, a guess has {blind_loss:.3g}: "
        f"it has diverged; look at {_suspects(result)}"
    )


def _suspects(result: Result) -> str:
    """Return the keys that may be why, with their values.

    Running statistics that are merged from sub-models fit those, not the whole model.
    """
    train = result.config.get("train", {})
    rate = f"train.learning_rate = {train.get('learning_rate', '-')}"
    tracks = train.get("batch_norm") == "tracked" and "running_mean" in result.layout_json
    if not tracks or result.config.get("submodel", {}).get("kind") == "full":
        return rate
    return f"{rate}, and train.batch_norm = tracked (docs/method.md#norms-of-sub-models)"


def _blind_loss(kind: str | None, num_classes: int) -> float:
    """Return the loss of logits that are all 0 (models/losses.py)."""
    return math.log(2) if kind == "bce" else math.log(num_classes)


def _untrained(result: Result) -> float:
    """Return the validation accuracy of the initial model, 0 where it is not known."""
    evaluations = result.evaluations
    first: Values = evaluations["val_accuracy"][evaluations["version"] == 0]
    return float(np.nan_to_num(first[0])) if len(first) else 0.0
