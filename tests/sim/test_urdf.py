"""A URDF robot in the engine: masses, centres and moments are those that Newton's own URDF reader finds."""

import numpy as np

from mimickit.engines.engine import WorldSpec
from mimickit.engines.engine_config import EngineConfig
from mimickit.engines.newton_model import build_world
from tests.unit.anim.test_urdf import robot, write


def test_bodies_are_those_of_newtons_reader(tmp_path):
    import newton

    file = write(tmp_path, robot())
    ours, facts = build_world(WorldSpec(file), EngineConfig(engine_name="newton", env_spacing=1.0))
    theirs = newton.ModelBuilder()
    theirs.add_urdf(str(file), floating=True, collapse_fixed_joints=False)
    assert facts.body_names == tuple(label.rsplit("/", 1)[-1] for label in theirs.body_label)
    np.testing.assert_allclose(facts.effort, [30.0, 30.0])
    for name, tolerance in {"body_mass": 1e-6, "body_com": 1e-6, "body_inertia": 1e-7, "shape_scale": 1e-6,
                            "shape_transform": 1e-6}.items():
        found, expected = ([np.array(value) for value in getattr(builder, name)] for builder in (ours, theirs))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=tolerance, err_msg=name)
