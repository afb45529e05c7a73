"""A policy in a browser, live and as a file: Newton's viser viewer in Debian's Chromium."""

import re
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("viser", reason="viser is not installed: pip install 'mimickit[web]'")
from mimickit.engines.web_viewer import PageRecorder, WebViewer
from mimickit.util.failures import UserError
from tests.longcycle.test_browser import CHROMIUM, DRIVER, Browser
from tests.sim.test_viewer import IDENTITY, POSE, ROOT, standing, turn

pytestmark = [pytest.mark.sim, pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="no browser: apt-get install chromium chromium-driver")]
BUTTON = "[...document.querySelectorAll('button')].find(x => x.innerText == '{}' && !x.disabled)"

PIXELS = """
const done = arguments[0], picture = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
requestAnimationFrame(() => {  // after the scene's own: what it drew is still there
    const drawn = [...document.querySelectorAll('canvas')].sort((a, b) => b.width - a.width)[0];
    [picture.canvas.width, picture.canvas.height] = [drawn.width, drawn.height];
    picture.drawImage(drawn, 0, 0);
    const data = picture.getImageData(0, 0, drawn.width, drawn.height).data;
    let blue = 0, green = 0;
    for (let i = 0; i < data.length; i += 4) {
        blue += data[i + 2] > data[i + 1] + 10 && data[i + 2] > data[i] + 25;
        green += data[i + 1] > data[i + 2] + 30;
    }
    done([blue, green]);
});"""


@pytest.fixture
def browser():
    """A small one, whose WebGL needs no graphics card; a test in which a page fails or loads more than itself fails."""
    found = Browser("--window-size=480,360", "--use-angle=swiftshader", "--enable-unsafe-swiftshader")
    yield found
    found.driver.quit()


def errors(browser):
    return [entry for entry in browser.driver.get_log("browser") if entry["level"] == "SEVERE"]




def shows_both(browser):
    """Whether a picture comes with a blue character and a green one, each of more than 100 pixels."""
    browser.until("return [...document.querySelectorAll('canvas')].some(x => x.width && x.width != 300)")  # 300: unset
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        blue, green = browser.driver.execute_async_script(PIXELS)
        if min(blue, green) > 100:
            return True
    return False


def test_live(browser, tmp_path):
    """One page, one run: it goes on, pauses, makes single steps, is pushed, begins anew."""
    argv = [sys.executable, "mimickit/run.py", "--arg_file", "args/deepmimic_humanoid_ppo_args.txt", "--mode", "test",
            "--web", "--port", "8300", "--engine_config", "data/engines/newton_engine.yaml", "--devices", "cpu",
            "--num_envs", "4", "--rand_seed", "7", "--out_dir", str(tmp_path)]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            address = next(line for line in process.stdout if line.startswith("watch: ")).split()[1]
            assert re.fullmatch(r"http://127\.0\.0\.1:83\d\d/", address)
            browser.open(address)
            assert shows_both(browser)
            told = "document.body.innerText.match(/([\\d.]+) s, ([\\d.]+) m\\/s/)"

            def press(what, then):
                """Click on something, and wait until the page says so."""
                browser.run("arguments[0].click()", browser.until(f"return {what}", 60))
                browser.until(f"return {then}", 60)

            def now():
                return tuple(map(float, browser.until(f"return {told}", 60)[1:]))

            first, _ = now()
            browser.until(f"return +{told}[1] != {first}", 60)
            press("[...document.querySelectorAll('label')].find(x => x.innerText == 'Pause')", BUTTON.format("Step"))
            stands = now()
            time.sleep(0.5)
            assert now() == stands, "a pause stops the simulation"
            press(BUTTON.format("Reset"), f"{told}[1] == '0.00'")
            press(BUTTON.format("Step"), f"{told}[1] == '0.03'")
            time.sleep(0.5)
            after, speed = now()
            assert after == 0.03, "one step alone"
            fast = speed
            for _ in range(40):  # in any direction each
                if fast > speed + 2.0:
                    break
                press(BUTTON.format("Push"), f"{told}[2] != '{fast:.2f}'")
                _, fast = now()
            press(BUTTON.format("Step"), f"{told}[1] == '0.07'")
            assert now()[1] > speed + 1.0, "physics goes on from the push"
            assert not errors(browser)
            process.send_signal(signal.SIGINT)  # during a pause too
            said = process.stdout.read()
            assert process.wait(60) == 128 + signal.SIGINT
            assert "what was measured is no test: there were episodes that ended early, pushes" in said
        finally:
            process.kill()


def test_a_page_of_one_file(browser, tmp_path):
    engine, file = standing(), tmp_path / "page" / "episode.html"
    recorder = PageRecorder(engine, file, 30, show_reference=True, ref_offset=(1.5, 0.0, 0.0))
    for frame in range(30):
        turn(engine, 0.15 * frame)
        engine.body_pos[..., 0] += 0.1 * frame
        recorder.capture((POSE, IDENTITY))
    assert not file.exists()
    assert recorder.close() == {"file": str(file), "frames": 30, "fps": 30}
    assert file.stat().st_size < 2e6
    browser.open(file)
    assert shows_both(browser)
    browser.until("return [...document.querySelectorAll('input')].some(x => parseFloat(x.value) > 0.5)", 60)  # it plays
    assert not errors(browser)
    loaded = browser.run("return performance.getEntriesByType('resource').map(x => x.name)")
    assert not [name for name in loaded if not name.startswith(("data:", "blob:"))]


def test_an_address_of_another_machine():
    with pytest.raises(UserError, match=r"--host 192\.0\.2\.1: cannot serve there"):
        WebViewer("192.0.2.1")
