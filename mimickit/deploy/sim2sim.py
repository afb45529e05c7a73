"""``mimickit sim2sim``: episodes of an exported policy in plain MuJoCo, measured like a test, and a film of one."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import mujoco
import numpy as np

from mimickit.deploy.disturbances import DisturbedWorld
from mimickit.deploy.loop import Loop, Step, World
from mimickit.deploy.policy_file import PolicyFile, read_policy
from mimickit.envs.disturbance_config import Disturbances
from mimickit.util.failures import DisplayError
from mimickit.util.film import Film

CHARACTER, REFERENCE = (0.35, 0.45, 0.7, 1.0), (0.3, 0.5, 0.1, 0.6)  # RGBA
CAMERA = {"distance": 4.5, "azimuth": 90.0, "elevation": -20.0}  # m, degrees
NO_PICTURE = ("Off-screen rendering is not possible here ({reason}). MuJoCo needs EGL: install the Debian packages "
              "libegl1 libgl1 libgl1-mesa-dri. Without pictures: --video false")


def run_episodes(path: Path, episodes: int, seed: int, processes: int, max_steps: int, disturbances: Disturbances
                 ) -> Iterator[list[Step]]:
    """The episodes of a policy, in order, run by several processes. Episode i draws from the generator (seed, i).

    Args:
        path: of :func:`read_policy`.
        max_steps: an episode ends after so many control steps.
    """
    tasks = [(path, disturbances, seed, index, max_steps) for index in range(episodes)]
    if processes == 1:
        yield from map(_episode, tasks)
        return
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(_episode, tasks)


def _episode(task: tuple[Path, Disturbances, int, int, int]) -> list[Step]:
    path, disturbances, seed, index, max_steps = task
    steps: list[Step] = []
    _loop(path, disturbances).episode(np.random.default_rng([seed, index]), steps.append, max_steps)
    return steps


@cache
def _loop(path: Path, disturbances: Disturbances) -> Loop:
    return Loop(*read_policy(path), world_of(disturbances))


def world_of(disturbances: Disturbances) -> World:
    """The world with these disturbances."""
    return DisturbedWorld(disturbances) if disturbances.given else World()


def measure(path: Path, episodes: int, seed: int, processes: int, max_steps: int, disturbances: Disturbances,
            on_episode: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Run episodes as :func:`run_episodes` and measure them: part of ``result.json`` as after a test.

    Args:
        on_episode: called after every episode (heartbeat).
    """
    from mimickit.deploy.measures import Episodes

    policy, folder = read_policy(path)
    measures = Episodes(policy, character_mass(mujoco.MjModel.from_xml_path(str(folder / policy.model)), policy))
    for steps in run_episodes(path, episodes, seed, min(processes, episodes), max_steps, disturbances):
        measures.add(steps)
        on_episode()
    return measures.result()


def character_mass(model: mujoco.MjModel, policy: PolicyFile) -> float:
    """kg."""
    return float(sum(model.body(body.name).mass[0] for body in policy.bodies))


def film(path: Path, file: Path, width: int, height: int, seed: int, max_steps: int, disturbances: Disturbances
         ) -> dict[str, Any]:
    """Film an episode that follows its clip from the beginning, the reference beside it.

    Raises:
        DisplayError: no off-screen OpenGL here.
    """
    policy, folder = read_policy(path)
    policy = policy.model_copy(update={"episode": policy.episode.model_copy(update={"random_start": False})})
    loop = Loop(policy, folder, world_of(disturbances))
    picture = Picture(loop, width - width % 2, height - height % 2)
    film = Film(file, policy.control_rate, picture.width, picture.height)
    loop.episode(np.random.default_rng([seed, 0]), lambda step: film.add(picture.draw()), max_steps)
    picture.close()
    return film.close()


def show(path: Path, seed: int, max_steps: int, disturbances: Disturbances) -> None:
    """Episodes in MuJoCo's own viewer, in real time, until its window is closed."""
    import time
    from itertools import count

    import mujoco.viewer

    loop = Loop(*read_policy(path), world_of(disturbances))
    with mujoco.viewer.launch_passive(loop.model, loop.data) as viewer:
        viewer.cam.type, viewer.cam.trackbodyid = mujoco.mjtCamera.mjCAMERA_TRACKING, loop.character.bodies[0]
        due = time.monotonic()

        def on_step(step: Step) -> None:
            nonlocal due
            due = max(due + loop.dt, time.monotonic() - loop.dt)
            time.sleep(max(0.0, due - time.monotonic()))
            viewer.sync()
            if not viewer.is_running():
                raise _ClosedError

        for index in count():
            try:
                loop.episode(np.random.default_rng([seed, index]), on_step, max_steps)
            except _ClosedError:
                return


class _ClosedError(Exception):
    """The window was closed."""


class Picture:
    """Pictures of a loop's world by MuJoCo's renderer, the reference beside it; the camera follows the character."""

    def __init__(self, loop: Loop, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._loop, model, bodies = loop, loop.model, loop.character.bodies
        model.vis.global_.offwidth, model.vis.global_.offheight = max(width, 640), max(height, 480)
        model.geom_rgba[np.isin(model.geom_bodyid, bodies)] = CHARACTER
        try:
            self._renderer = mujoco.Renderer(model, height, width)
        except Exception as error:  # of whatever OpenGL platform there is
            raise DisplayError(NO_PICTURE.format(reason=f"{type(error).__name__}: {error}")) from error
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_HAZE):
            self._renderer.scene.flags[flag] = False
        self._camera = mujoco.MjvCamera()
        self._camera.type, self._camera.trackbodyid = mujoco.mjtCamera.mjCAMERA_TRACKING, bodies[0]
        for name, value in CAMERA.items():
            setattr(self._camera, name, value)
        settings = loop.policy.training.configuration["env"]
        self._offset = np.array(settings["ref_char_offset"]) if settings["visualize_ref_char"] else None

    def draw(self) -> np.ndarray:
        """The world as it is, uint8 RGB [height, width, 3]."""
        self._renderer.update_scene(self._loop.data, self._camera)
        if self._offset is not None:
            self._add_reference()
        return self._renderer.render().copy()

    def close(self) -> None:
        """Release the renderer."""
        self._renderer.close()

    def _add_reference(self) -> None:
        target, scene = self._loop.target, self._renderer.scene
        target.geom_xpos += self._offset  # until the next lookup
        own = scene.ngeom
        mujoco.mjv_addGeoms(self._loop.model, target, mujoco.MjvOption(), mujoco.MjvPerturb(),
                            mujoco.mjtCatBit.mjCAT_DYNAMIC, scene)
        for geom in scene.geoms[own:scene.ngeom]:
            geom.rgba = REFERENCE
