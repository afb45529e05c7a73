"""``static_objects``: DeepMimic among fixed boxes that the clip climbs or vaults over.

The boxes collide with the character. Touching them is not ground contact, so it never ends an episode.
"""

from __future__ import annotations

from mimickit.engines.engine import StaticObject
from mimickit.envs import deepmimic
from mimickit.envs.env import Env
from mimickit.envs.env_config import StaticObjectsConfig
from mimickit.envs.world import Setup

OBJECT_COLOR = (0.3, 0.3, 0.3)


def build(config: StaticObjectsConfig, setup: Setup) -> Env:
    """The parts of ``deepmimic`` in a world with ``objects``."""
    objects = tuple(StaticObject(o.file, o.pos, o.rot, OBJECT_COLOR) for o in config.objects)
    return deepmimic.build(config, setup, objects)
