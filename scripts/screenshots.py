"""The live view for the README: the quickstart in a JupyterLab, photographed while its student learns, on a light and on a dark page.

    PYTHONPATH=. python scripts/screenshots.py [--steps 600] [--into images]
"""
import argparse
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / 'tests'))
import browser
from kdkit.metrics import read_metrics
from notebooks import copy_notebook


def wait(until):
    "Look every half second until it is so."
    while not until(): time.sleep(.5)


def last_step(folder): return max((line['step'] for line in read_metrics(folder)), default=0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--steps', type=int, default=600)
    parser.add_argument('--into', type=Path, default=ROOT / 'images')
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp())
    copy_notebook('quickstart', folder, STEPS=args.steps, RUN='run')
    with browser.jupyterlab(folder, OMP_NUM_THREADS='1') as address, browser.browser_page(scale=2) as page:
        page.set_viewport_size(dict(width=1250, height=1700))
        browser.run_all(page, address, 'quickstart.ipynb')
        wait(lambda: last_step(folder / 'run') >= args.steps * .7)
        time.sleep(10)  # the picture of that step
        for theme in ('Dark', 'Light'):
            page.evaluate(f"window.jupyterapp.commands.execute('apputils:change-theme', {{theme: 'JupyterLab {theme}'}})")
            time.sleep(5)
            view = page.locator('.jp-OutputArea-output .widget-vbox', has=page.locator('.kdkit-pictures')).first
            view.screenshot(path=args.into / f'dashboard_{theme.lower()}.png')
        wait(lambda: (folder / 'run' / 'report.json').exists())
    (args.into / 'dashboard_end.png').write_bytes((folder / 'run' / 'dashboard.png').read_bytes())


if __name__ == '__main__': main()
