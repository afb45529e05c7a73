"""Agent files of MimicKit before February 2026: one optimizer stepped all networks at once on one summed loss.

The mapping (``w`` is the network's loss weight, 1 without one and for the actor):

============================  ==========================================================================================
older key                     present keys
============================  ==========================================================================================
``optimizer``                 ``<network>_optimizer`` of every network. SGD: ``learning_rate`` times w, ``weight_decay``
                              and ``grad_clip`` over w, which makes the same steps as a loss times w. Adam, whose steps
                              do not depend on the loss's size: the same values.
``update_epochs``             ``<network>_epochs``
``batch_size``                ``<network>_batch_size``
``disc_batch_size``           if larger than ``steps_per_iter`` it counts demonstrations of a step, whatever the number
                              of worlds; then ``batch_size``, so that the discriminator takes as many steps as before
``<network>_loss_weight``     see ``optimizer``
``disc_weight_decay``         ``disc_optimizer.weight_decay``
============================  ==========================================================================================

A present key that the file gives too wins. The norm that ``grad_clip`` bounds was that of all networks together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mimickit.util.failures import UserError

SHARED_KEYS = ("optimizer", "update_epochs", "batch_size")
WEIGHTS = {"critic": "critic_loss_weight", "disc": "disc_loss_weight", "enc": "enc_loss_weight"}
DISC_DECAY = "disc_weight_decay"
OLDER_KEYS = (*SHARED_KEYS, *WEIGHTS.values(), DISC_DECAY)


def is_older(data: Mapping[str, Any]) -> bool:
    """Whether an agent file's content has a key of the older layout."""
    return any(key in data for key in OLDER_KEYS)


def to_present(data: Mapping[str, Any], networks: Sequence[str], where: str) -> tuple[dict[str, Any], list[str]]:
    """The same agent in the present layout, and what became of each older key, in words.

    Args:
        data: content of an agent file.
        networks: those of its method, such as ``("actor", "critic", "disc")``.
        where: the file's path, for messages.

    Raises:
        UserError: a value that is mapped is no number, or a loss weight is not positive.
    """
    present = {key: value for key, value in data.items() if key not in OLDER_KEYS}
    told: list[str] = []
    weights = {network: _number(data, WEIGHTS[network], where) for network in networks if WEIGHTS.get(network) in data}
    for network, weight in weights.items():
        if weight <= 0.0:
            raise UserError(f"{where}: {WEIGHTS[network]} = {weight:g} must be above 0")
    optimizer = data.get("optimizer")
    if optimizer is not None:
        if not isinstance(optimizer, Mapping):
            raise UserError(f"{where}: key 'optimizer' must be a mapping with type and learning_rate")
        made = {f"{network}_optimizer": _weighted(optimizer, weights.get(network, 1.0), where) for network in networks}
        if DISC_DECAY in data and "disc_optimizer" in made:
            made["disc_optimizer"]["weight_decay"] = _number(data, DISC_DECAY, where)
        told += [f"{name} {_shown(value)}" for name, value in _add(present, made).items()]
    for older, name in (("update_epochs", "epochs"), ("batch_size", "batch_size")):
        if older not in data:
            continue
        value = data[older]
        if older == "batch_size" and "disc" in networks and _counts_demos(data, where):
            present.pop("disc_batch_size")
            told.append(f"disc_batch_size {data['disc_batch_size']} counted demonstrations of a step")
        added = _add(present, {f"{network}_{name}": value for network in networks})
        if added:
            told.append(f"{', '.join(added)} {value}")
    mapped = [WEIGHTS[network] for network in weights] + ([DISC_DECAY] if "disc" in networks else [])
    unused = [key for key in (*WEIGHTS.values(), DISC_DECAY)
              if key in data and (optimizer is None or key not in mapped)]
    if unused:
        told.append(f"{', '.join(unused)} not used")
    return present, told


def _weighted(optimizer: Mapping[str, Any], weight: float, where: str) -> dict[str, Any]:
    """The optimizer of one network that steps as ``optimizer`` did on ``weight`` times its loss."""
    made = dict(optimizer)
    if weight != 1.0 and optimizer.get("type") == "SGD":
        for name, factor in (("learning_rate", weight), ("weight_decay", 1.0 / weight), ("grad_clip", 1.0 / weight)):
            if name in made:
                made[name] = float(f"{_number(made, name, where) * factor:.12g}")
    return made


def _counts_demos(data: Mapping[str, Any], where: str) -> bool:
    return ("disc_batch_size" in data and "steps_per_iter" in data
            and _number(data, "disc_batch_size", where) > _number(data, "steps_per_iter", where))


def _add(present: dict[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    """Put in what is not given; returns it."""
    added = {name: value for name, value in made.items() if name not in present}
    present.update(added)
    return added


def _number(data: Mapping[str, Any], key: str, where: str) -> float:
    try:
        return float(data[key])  # 1e-4 is text to YAML 1.1
    except (TypeError, ValueError):
        raise UserError(f"{where}: key '{key}' = {data[key]!r} must be a number") from None


def _shown(optimizer: Mapping[str, Any]) -> str:
    return "{" + ", ".join(f"{name}: {value}" for name, value in optimizer.items()) + "}"
