"A JupyterLab of our own and a headless Chromium that looks at it."
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path


def chromium():
    "The browser's path, or None."
    return next(filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None)


def missing():
    "What has to be installed first, or nothing."
    packages = [name for name in ('jupyterlab', 'playwright') if find_spec(name) is None]
    wanted = [f'pip install {" ".join(packages)}'] * bool(packages) + ['apt-get install chromium'] * (not chromium())
    return f"browser tests need: {' and '.join(wanted)}" if wanted else ''


def settings(folder, theme, subshells):
    "User settings that make the page still and of one kind."
    values = {'apputils-extension/themes': dict(theme=theme),
              'apputils-extension/notification': dict(fetchNews='false', checkForUpdates=False, doNotDisturbMode=True),
              'notebook-extension/tracker': dict(windowingMode='none'),
              'apputils-extension/kernels-settings': dict(commsOverSubshells=subshells)}
    for name, value in values.items():
        path = folder / '@jupyterlab' / f'{name}.jupyterlab-settings'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(value))


@contextmanager
def jupyterlab(root, theme='JupyterLab Light', subshells='perCommTarget', **env):
    "The address of a JupyterLab that serves a folder; its kernels are this Python."
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    home = Path(root) / '.jupyter'
    settings(home / 'lab' / 'user-settings', theme, subshells)
    dirs = dict(JUPYTER_CONFIG_DIR=str(home), JUPYTER_RUNTIME_DIR=str(home / 'runtime'),
                JUPYTERLAB_SETTINGS_DIR=str(home / 'lab' / 'user-settings'),
                JUPYTERLAB_WORKSPACES_DIR=str(home / 'lab' / 'workspaces'), IPYTHONDIR=str(home / 'ipython'))
    command = [sys.executable, '-m', 'jupyterlab', '--no-browser', '--allow-root', f'--ServerApp.port={port}',
               '--ServerApp.port_retries=0', '--IdentityProvider.token=kdkit',
               f'--ServerApp.root_dir={root}', '--LabApp.expose_app_in_browser=True']
    with open(home / 'server.log', 'w') as log:
        server = subprocess.Popen(command, env={**os.environ, **dirs, 'MPLBACKEND': '', **env}, stdout=log, stderr=log,
                                  start_new_session=True)
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f'http://127.0.0.1:{port}/api?token=kdkit', timeout=5)
                break
            except OSError: time.sleep(.25)
            assert server.poll() is None, (home / 'server.log').read_text()[-2000:]
        yield f'http://127.0.0.1:{port}'
    finally:
        os.killpg(server.pid, signal.SIGTERM)  # the server's kernels go with it
        try: server.wait(20)
        except subprocess.TimeoutExpired: os.killpg(server.pid, signal.SIGKILL)


@contextmanager
def browser_page(scale=1):
    "A page of a fresh headless Chromium."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=['--no-sandbox', '--disable-dev-shm-usage'])
        page = browser.new_page(viewport=dict(width=1400, height=1700), device_scale_factor=scale)
        page.set_default_timeout(60_000)
        yield page
        browser.close()


def run_all(page, address, name):
    "Open a notebook and run all its cells."
    page.goto(f'{address}/lab/tree/{name}?token=kdkit&reset')
    page.wait_for_function("window.jupyterapp && window.jupyterapp.shell.currentWidget && "
                           "window.jupyterapp.shell.currentWidget.sessionContext")
    page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.ready")
    page.wait_for_function("window.jupyterapp.shell.currentWidget.sessionContext.session?.kernel?.status === 'idle'")
    # not awaited: it lasts
    page.evaluate("() => { window.jupyterapp.shell.collapseLeft(); window.jupyterapp.commands.execute('notebook:run-all-cells'); }")


def button(page, label): return page.locator('.jp-OutputArea .jupyter-button', has_text=label).last
def pictures(page): return page.locator('.jp-OutputArea .kdkit-pictures').last
def lid(page, label): return page.locator('.jp-OutputArea .jupyter-widget-Collapse-header', has_text=label).last
def kernel_says(page): return page.evaluate("window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.status")


def set_slider(page, label, value):
    "Type a value into a slider's number."
    slider = page.locator('.jp-OutputArea .widget-slider', has=page.get_by_text(label, exact=True)).last
    number = slider.locator('.widget-readout')
    number.click()
    number.press('Control+a')
    number.type(f'{value}')
    number.press('Enter')


def save_notebook(page): page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
