"""Video and pictures: a real off-screen renderer, and a check that tells a good video from a bad one."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from mimickit.engines.engine import WorldSpec
from mimickit.engines.engine_config import EngineConfig
from mimickit.util.failures import DisplayError, UserError
from mimickit.util.video import check_video

pytestmark = pytest.mark.sim

ROOT = Path(__file__).resolve().parents[2]
HUMANOID = ROOT / "data" / "assets" / "humanoid" / "humanoid.xml"
CONFIG = EngineConfig(engine_name="newton", control_mode="pos", control_freq=30, sim_freq=240, env_spacing=5)
WIDTH, HEIGHT = 320, 180

# rest pose of the humanoid: body origins with the pelvis at 0.9 m, all rotations identity
OFFSETS = {
    "pelvis": (0, 0, 0), "torso": (0, 0, 0.236), "head": (0, 0, 0.46), "right_upper_arm": (-0.024, -0.183, 0.48),
    "right_lower_arm": (-0.024, -0.458, 0.48), "right_hand": (-0.024, -0.717, 0.48),
    "left_upper_arm": (-0.024, 0.183, 0.48), "left_lower_arm": (-0.024, 0.458, 0.48),
    "left_hand": (-0.024, 0.717, 0.48), "right_thigh": (0, -0.085, 0), "right_shin": (0, -0.085, -0.42),
    "right_foot": (0, -0.085, -0.83), "left_thigh": (0, 0.085, 0), "left_shin": (0, 0.085, -0.42),
    "left_foot": (0, 0.085, -0.83),
}
POSE = torch.tensor(list(OFFSETS.values()), dtype=torch.float32) + torch.tensor([0.0, 0.0, 0.9])
IDENTITY = torch.tensor([0.0, 0.0, 0.0, 1.0]).repeat(len(OFFSETS), 1)


def standing() -> SimpleNamespace:
    """What a recorder reads of an engine, without an engine."""
    return SimpleNamespace(
        spec=WorldSpec(HUMANOID), config=CONFIG, body_names=tuple(OFFSETS), body_pos=POSE.clone()[None],
        body_rot=IDENTITY.clone()[None],
    )


def turn(engine: SimpleNamespace, angle: float) -> None:
    """Turn the whole body about the vertical axis."""
    c, s = np.cos(angle), np.sin(angle)
    matrix = torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float32)
    engine.body_pos[0] = POSE @ matrix.T
    engine.body_rot[0] = torch.tensor([0.0, 0.0, np.sin(angle / 2), np.cos(angle / 2)], dtype=torch.float32)


def colored(image: np.ndarray) -> np.ndarray:
    return image.max(axis=2).astype(int) - image.min(axis=2) > 40


@pytest.fixture(scope="module")
def recorder_class():
    from mimickit.engines.newton_viewer import VideoRecorder

    return VideoRecorder


def test_video_of_a_turning_character(tmp_path, recorder_class):
    engine, path = standing(), tmp_path / "run" / "viz.mp4"
    recorder = recorder_class(engine, path, fps=30, width=WIDTH + 1, height=HEIGHT, show_reference=True,
                              ref_offset=(1.5, 0.0, 0.0))
    for frame in range(20):
        turn(engine, 0.15 * frame)
        image = recorder.capture((POSE, IDENTITY))
        assert image.shape == (HEIGHT, WIDTH, 3)
    assert not path.exists()  # nothing half-written stands under the name
    result = recorder.close()
    assert (result["file"], result["frames"], result["fps"]) == (str(path), 20, 30.0)
    assert (result["width"], result["height"]) == (WIDTH, HEIGHT)
    assert [Path(p).name for p in result["png"]] == [
        "viz_00000.png", "viz_00006.png", "viz_00013.png", "viz_00019.png"
    ]
    assert sorted(p.name for p in path.parent.iterdir()) == sorted(["viz.mp4", *(Path(p).name for p in result["png"])])

    measures = check_video(path, 20)
    assert measures["character_share"] > 0.01
    assert measures["movement"] > 0.002

    image = np.asarray(Image.open(result["png"][0]).convert("RGB")).astype(int)
    mask = colored(image)
    blue = mask & (image[..., 2] > image[..., 1] + 10)  # the character
    green = mask & (image[..., 1] > image[..., 2] + 30)  # the reference, 1.5 m to its right
    assert blue.sum() > 300 and green.sum() > 300
    assert abs(np.argwhere(blue)[:, 1].mean() - WIDTH / 2) < 0.06 * WIDTH
    assert np.argwhere(green)[:, 1].mean() > np.argwhere(blue)[:, 1].mean() + 0.1 * WIDTH
    rows = np.argwhere(blue)[:, 0]
    assert rows.min() > 0.2 * HEIGHT and rows.max() < 0.9 * HEIGHT  # from head to foot inside the picture


def test_camera_follows_or_stands(tmp_path, recorder_class):
    columns = {}
    for mode in ("track", "still"):
        engine = standing()
        with recorder_class(engine, tmp_path / f"{mode}.mp4", 30, WIDTH, HEIGHT, camera_mode=mode, num_png=0) as rec:
            rec.capture()
            engine.body_pos[..., 0] += 1.0
            columns[mode] = np.argwhere(colored(rec.capture()))[:, 1].mean()
    assert abs(columns["track"] - WIDTH / 2) < 0.06 * WIDTH
    assert columns["still"] > 0.6 * WIDTH


def test_a_close_up_fills_the_picture_and_follows_a_jump(tmp_path, recorder_class):
    engine = standing()
    with recorder_class(engine, tmp_path / "a.mp4", 30, WIDTH, HEIGHT, num_png=0, close_up=True) as recorder:
        for jump in (0.0, 1.5):
            engine.body_pos[..., 2] += jump
            rows = np.argwhere(colored(recorder.capture()))[:, 0]
            assert rows.min() > 0.02 * HEIGHT and rows.max() < 0.98 * HEIGHT, jump
            assert rows.max() - rows.min() > 0.55 * HEIGHT
    with recorder_class(standing(), tmp_path / "b.mp4", 30, WIDTH, HEIGHT, num_png=0, close_up=True,
                        show_reference=True, ref_offset=(2.0, 0.0, 0.0)) as recorder:
        columns = np.argwhere(colored(recorder.capture((POSE, IDENTITY))))[:, 1]
        assert abs((columns.min() + columns.max()) / 2 - WIDTH / 2) < 0.06 * WIDTH, "both are in the picture"
        assert columns.min() > 0.02 * WIDTH and columns.max() < 0.98 * WIDTH


def test_an_interrupted_recording_leaves_no_file(tmp_path, recorder_class):
    with pytest.raises(KeyError), recorder_class(standing(), tmp_path / "a.mp4", 30, WIDTH, HEIGHT) as recorder:
        recorder.capture()
        raise KeyError("interrupted")
    assert list(tmp_path.iterdir()) == []


def test_reference_poses_are_required_when_shown(tmp_path, recorder_class):
    with pytest.raises(ValueError, match="reference"), \
            recorder_class(standing(), tmp_path / "a.mp4", 30, WIDTH, HEIGHT, show_reference=True) as recorder:
        recorder.capture()


def test_lines_are_drawn_while_they_are_there(tmp_path, recorder_class):
    def red(*lines):
        image = recorder.capture(lines=lines).astype(int)
        return np.argwhere((image[..., 0] > image[..., 1] + 40) & (image[..., 0] > image[..., 2] + 40))

    begin, end = torch.tensor([[-1.5, 0.0, 0.9]]), torch.tensor([[-0.5, 0.0, 0.9]])
    upright, color = torch.tensor([[-1.0, 0.0, 1.9], [-1.0, 0.0, 0.4]]), (0.8, 0.0, 0.0)
    with recorder_class(standing(), tmp_path / "a.mp4", 30, WIDTH, HEIGHT, num_png=0) as recorder:
        assert len(red()) == 0
        one = red((begin, end, color))
        assert np.ptp(one[:, 1]) > 10 * np.ptp(one[:, 0]) > 0 and one[:, 1].max() < WIDTH / 2  # level, to the left
        assert np.median(np.unique(one[:, 1], return_counts=True)[1]) in (2, 3)  # pixels wide, smoothed
        more = red((begin, end, color), (upright[:1], upright[1:], color), (begin[:0], end[:0], color))
        assert np.ptp(more[:, 1]) == np.ptp(one[:, 1]) and np.ptp(more[:, 0]) > 0.5 * np.ptp(more[:, 1])
        assert len(red()) == 0


def test_keys_of_the_window(monkeypatch):
    """Newton's own viewer and its handling of keys, off screen; a key, or none, is pressed in each rendered frame."""
    from newton._src.viewer.viewer_gui import ViewerGui

    from mimickit.engines import newton_viewer

    scene = newton_viewer.Scene(standing(), lambda: newton_viewer.open_viewer(64, 64))
    window, viewer = newton_viewer.LiveWindow(scene, 1 / 30), scene.viewer
    viewer.gui = SimpleNamespace(_viewer=viewer, is_keyboard_capturing=lambda: False, show_ui=True)
    viewer.gui.handle_key_press = partial(ViewerGui.handle_key_press, viewer.gui)
    from pyglet.window import key

    def frames(*keys):
        """How many frames are rendered until the next step, while these keys are pressed."""
        count = 0

        def end_frame():
            nonlocal count
            assert count < len(keys), "still paused"
            if keys[count] is not None:
                viewer.on_key_press(keys[count], 0)  # as Newton's renderer calls it
            count += 1

        monkeypatch.setattr(viewer, "end_frame", end_frame)
        window.show()
        return count

    assert frames(None, None) == 1  # running
    assert frames(key.ENTER, None, None, key.ENTER, None) == 4
    assert frames(None, None) == 1
    assert frames(key.NUM_ENTER, key.H, key.SPACE, None) == 3  # paused, then one step
    assert frames(None, key.SPACE, None) == 2  # paused again after it
    assert frames(None, key.NUM_ENTER, None) == 2
    assert frames(key.SPACE, None) == 1  # while running: one more step
    assert frames(None, None, key.ENTER, None) == 3  # then paused
    assert frames(None, None) == 1
    monkeypatch.setattr(viewer.renderer, "close", lambda: monkeypatch.setattr(viewer, "is_running", lambda: False))
    assert frames(key.ENTER, None, key.ESCAPE, None) == 3  # closing ends a pause
    assert window.closed
    monkeypatch.undo()
    window.close()


def test_missing_display_libraries_are_a_paragraph(tmp_path):
    """A machine without EGL, acted out by hiding the library from the loader in a process of its own."""
    code = (
        "import ctypes.util, ctypes\n"
        "real = ctypes.CDLL.__init__\n"
        "def init(self, name, *a, **k):\n"
        "    if name and ('EGL' in str(name)): raise OSError('libEGL.so.1: cannot open shared object file')\n"
        "    real(self, name, *a, **k)\n"
        "ctypes.CDLL.__init__ = init\n"
        "from mimickit.engines.newton_viewer import open_viewer\n"
        "from mimickit.util.failures import DisplayError\n"
        "try: open_viewer(64, 64)\n"
        "except DisplayError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    for word in ("libegl1", "libgl1", "libgl1-mesa-dri", "PYGLET_HEADLESS", "--video false"):
        assert word in done.stdout
    assert issubclass(DisplayError, UserError) and DisplayError.failure_class == "viz_gl"


# --- the check itself must be able to fail -------------------------------------------------------------------------


def write_video(path: Path, frames: list[np.ndarray]) -> Path:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode(None):
            container.mux(packet)
    return path


def scene(column: int | None, color: tuple[int, int, int] = (60, 90, 220)) -> np.ndarray:
    """A grey chequered ground and a bar, blue like a character."""
    rows, columns = np.mgrid[0:90, 0:160]
    image = np.repeat((120 + 60 * ((rows // 16 + columns // 16) % 2))[..., None], 3, axis=2).astype(np.uint8)
    if column is not None:
        image[30:70, column : column + 8] = color
    return image


def test_check_accepts_a_moving_character(tmp_path):
    measures = check_video(write_video(tmp_path / "good.mp4", [scene(20 + 3 * i) for i in range(15)]), 15)
    assert measures["frames"] == 15
    assert measures["visible_frames"] == 1.0
    assert measures["character_share"] == pytest.approx(320 / (90 * 160), rel=0.5)


@pytest.mark.parametrize(("frames", "message"), [
    ([np.full((90, 160, 3), 128, np.uint8)] * 15, "blank"),
    ([scene(40)] * 15, "nothing moves"),
    ([scene(None)] * 15, "character is visible in 0%"),
    ([scene(20 + 3 * i, color=(204, 0, 0)) for i in range(15)], "character is visible in [0-9]%"),  # only its mark
    ([scene(20 + 3 * i) for i in range(14)], "14 frames decoded, expected 15"),
    ([scene(20 + 3 * i) for i in range(10)] + [scene(None)] * 5, "character is visible in 67%"),
])
def test_check_refuses(tmp_path, frames, message):
    with pytest.raises(ValueError, match=message):
        check_video(write_video(tmp_path / "bad.mp4", frames), 15)


def test_check_refuses_broken_files(tmp_path):
    good = write_video(tmp_path / "good.mp4", [scene(20 + 3 * i) for i in range(15)]).read_bytes()
    (tmp_path / "truncated.mp4").write_bytes(good[: len(good) // 2])
    (tmp_path / "empty.mp4").write_bytes(b"")
    for name in ("truncated.mp4", "empty.mp4", "missing.mp4"):
        with pytest.raises(ValueError, match="cannot be decoded"):
            check_video(tmp_path / name, 15)
