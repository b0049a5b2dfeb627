"The live view in a real browser: a person watches, pauses, reweighs and stops a run that is under way."
import json
import os
import time
from pathlib import Path

import pytest

import browser
from kdkit.metrics import read_metrics
from notebooks import copy_notebook

pytestmark = pytest.mark.browser


@pytest.fixture(scope='module')
def shots(tmp_path_factory):
    "Where screenshots are kept: KDKIT_SCREENSHOTS, or a folder of this test run."
    folder = Path(os.environ.get('KDKIT_SCREENSHOTS') or tmp_path_factory.mktemp('screenshots'))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def wait_for(what, seconds=90):
    "The first true value of what(), looked for until the time is up."
    end = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < end, f'waited {seconds} s in vain for {what}'
        time.sleep(.2)
    return value


def last_step(folder): return max((line['step'] for line in read_metrics(folder)), default=0)


@pytest.mark.parametrize('theme, subshells', [('JupyterLab Light', 'perCommTarget'), ('JupyterLab Dark', 'disabled')])
def test_quickstart_can_be_watched_and_steered(tmp_path, shots, theme, subshells):
    if browser.missing(): pytest.skip(browser.missing())
    copy_notebook('quickstart', tmp_path, STEPS=3000, RUN='run')
    run, mood = tmp_path / 'run', theme.split()[-1].lower()
    with browser.jupyterlab(tmp_path, theme, subshells, OMP_NUM_THREADS='1') as address, browser.browser_page() as page:
        browser.run_all(page, address, 'quickstart.ipynb')
        # the control comes first: stop it early, and it ends as every run does
        wait_for(lambda: last_step(run / 'control') >= 10, 180)
        browser.button(page, 'Stop').click()
        wait_for(lambda: (run / 'control' / 'student' / 'model.safetensors').exists(), 90)
        assert last_step(run / 'control') < 3000
        # figures change while the student trains
        wait_for(lambda: last_step(run) >= 60, 180)
        first = browser.picture(page).get_attribute('src')
        wait_for(lambda: browser.picture(page).get_attribute('src') != first)
        page.screenshot(path=str(shots / f'{mood}_training.png'))
        # pause: no step more; resume: steps again
        browser.button(page, 'Pause').click()
        browser.button(page, 'Resume').wait_for()
        time.sleep(2)
        bar = page.locator('.jp-OutputArea .widget-html-content', has_text='waits for Resume').last
        bar.wait_for()
        signs, lines = bar.inner_text(), len(read_metrics(run))
        time.sleep(4)
        assert bar.inner_text().split('time left')[0] == signs.split('time left')[0] and len(read_metrics(run)) == lines
        page.screenshot(path=str(shots / f'{mood}_paused.png'))
        browser.button(page, 'Resume').click()
        wait_for(lambda: len(read_metrics(run)) > lines)
        # a slider: the weight of the next steps
        browser.set_slider(page, 'kd', 0.5)
        line = wait_for(lambda: next((line for line in read_metrics(run) if line.get('multipliers')), None))
        assert line['multipliers'] == dict(kd=.5) and line['weights']['kd'] == pytest.approx(.4)
        assert read_metrics(run)[0]['weights']['kd'] == pytest.approx(.8)
        # save and evaluate
        browser.button(page, 'Save now').click()
        wait_for(lambda: any(run.glob('checkpoint-*/manifest.json')))
        evals = sum('eval' in line for line in read_metrics(run))
        browser.button(page, 'Evaluate now').click()
        wait_for(lambda: sum('eval' in line for line in read_metrics(run)) > evals)
        # stop: evaluated, saved, reported, and the cells after it run
        browser.button(page, 'Stop').click()
        wait_for(lambda: (run / 'report.json').exists(), 120)
        page.locator('.jp-OutputArea table').last.wait_for()
        wait_for(lambda: page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status") == 'idle')
        assert page.locator('.jp-OutputArea .widget-image').count() == 0  # pictures stand where the widgets were
        assert page.locator('.jp-OutputArea img').count() >= 2 and page.locator('.jp-OutputArea [data-mime-type="application/vnd.jupyter.error"]').count() == 0
        page.screenshot(path=str(shots / f'{mood}_stopped.png'), full_page=True)
        browser.save_notebook(page)
    steps = last_step(run)
    assert steps < 3000 and 'eval' in read_metrics(run)[-1] and (run / f'checkpoint-{steps}' / 'manifest.json').exists()
    assert json.loads((run / 'report.json').read_text())['steps'] == steps
    from transformers import AutoModelForCausalLM
    assert AutoModelForCausalLM.from_pretrained(run / 'student').num_parameters() > 0
