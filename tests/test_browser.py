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
        # the control comes first, and is called so; skip it, and it ends as every run does
        wait_for(lambda: last_step(run / 'control') >= 10, 180)
        said = page.locator('.jp-OutputArea .widget-html-content', has_text='Control, run 1 of 2').last
        said.wait_for()
        browser.button(page, 'Evaluate now').click()
        wait_for(lambda: any('eval' in line for line in read_metrics(run / 'control')))
        assert browser.kernel_says(page) == 'busy'  # not idle, although a message was answered
        page.screenshot(path=str(shots / f'{mood}_control.png'))
        browser.button(page, 'Skip the control').click()
        wait_for(lambda: (run / 'control' / 'student' / 'model.safetensors').exists(), 90)
        assert last_step(run / 'control') < 3000
        # pictures change while the student trains, and its headline says which run this is
        wait_for(lambda: last_step(run) >= 60, 180)
        said = page.locator('.jp-OutputArea .widget-html-content', has_text='Student, run 2 of 2').last
        browser.pictures(page).wait_for()
        assert browser.pictures(page).locator('svg').count() == 2
        first = browser.pictures(page).inner_html()
        wait_for(lambda: browser.pictures(page).inner_html() != first)
        # pause: no step more; resume: steps again
        browser.button(page, 'Pause').click()
        browser.button(page, 'Resume').wait_for()
        page.locator('.jp-OutputArea .widget-html-content', has_text='run 2 of 2: paused').last.wait_for()
        assert browser.kernel_says(page) == 'busy'
        lines = len(read_metrics(run))
        time.sleep(4)
        assert len(read_metrics(run)) == lines
        page.screenshot(path=str(shots / f'{mood}_paused.png'))
        browser.button(page, 'Resume').click()
        wait_for(lambda: len(read_metrics(run)) > lines)
        # a slider, behind its lid: the weight of the next steps
        browser.lid(page, 'Change a loss').click()
        browser.set_slider(page, 'kd', 0.5)
        line = wait_for(lambda: next((line for line in read_metrics(run) if line.get('multipliers')), None))
        assert line['multipliers'] == dict(kd=.5) and line['weights']['kd'] == pytest.approx(.5 * read_metrics(run)[0]['weights']['kd'])
        # save and evaluate
        browser.button(page, 'Save now').click()
        wait_for(lambda: any(run.glob('checkpoint-*/manifest.json')))
        evals = sum('eval' in line for line in read_metrics(run))
        browser.button(page, 'Evaluate now').click()
        wait_for(lambda: sum('eval' in line for line in read_metrics(run)) > evals)
        # more pictures behind a lid, on a narrow page too
        browser.lid(page, 'Shares and weights').click()
        wait_for(lambda: page.locator('.jp-OutputArea .kdkit-pictures').count() == 2)
        wait_for(lambda: 'student' in page.locator('.jp-OutputArea .kdkit-pictures').first.inner_text())
        page.screenshot(path=str(shots / f'{mood}_training.png'))
        page.set_viewport_size(dict(width=640, height=1900))
        page.screenshot(path=str(shots / f'{mood}_narrow.png'))
        page.set_viewport_size(dict(width=1400, height=1700))
        # stop: evaluated, saved, reported, and the cells after it run
        browser.button(page, 'Stop and report').click()
        wait_for(lambda: (run / 'report.json').exists(), 120)
        page.locator('.jp-OutputArea table').last.wait_for()
        wait_for(lambda: browser.kernel_says(page) == 'idle')
        assert page.locator('.jp-OutputArea .kdkit-pictures').count() == 0  # pictures stand where the widgets were
        assert page.locator('.jp-OutputArea img').count() >= 2
        assert page.locator('.jp-OutputArea [data-mime-type="application/vnd.jupyter.error"]').count() == 0
        page.screenshot(path=str(shots / f'{mood}_stopped.png'), full_page=True)
        browser.save_notebook(page)
    steps = last_step(run)
    assert steps < 3000 and 'eval' in read_metrics(run)[-1] and (run / f'checkpoint-{steps}' / 'manifest.json').exists()
    assert json.loads((run / 'report.json').read_text())['steps'] == steps
    from transformers import AutoModelForCausalLM
    assert AutoModelForCausalLM.from_pretrained(run / 'student').num_parameters() > 0
