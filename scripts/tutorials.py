"""The tutorials' outputs, made anew: each runs from top to bottom in an empty folder, and is kept if nothing failed.

    MPLBACKEND= PYTHONPATH=. python scripts/tutorials.py [quickstart choosing ...]; make export

Read the prose around the numbers afterwards: it must say what they say.
"""
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent.parent / 'nbs' / 'tutorials'


def tidy(outputs):
    "Outputs without what differs from run to run (seconds, what libraries complain of); sentences one after the other are one output."
    kept = []
    for output in outputs:
        if output.output_type == 'stream':
            if output.name == 'stderr': continue
            if kept and kept[-1].output_type == 'stream': kept[-1].text += output.text
            else: kept.append(output)
        elif not re.fullmatch(r'.* done in [\d,.]+ (s|min).*', output.get('data', {}).get('text/plain', '')): kept.append(output)
    return kept


def main(*names):
    for path in [FOLDER / f'{name}.ipynb' for name in names] or sorted(FOLDER.glob('*.ipynb')):
        notebook, started = nbformat.read(path, 4), time.time()
        with tempfile.TemporaryDirectory() as folder:
            NotebookClient(notebook, timeout=None, kernel_name='python3', store_widget_state=False,
                           resources=dict(metadata=dict(path=folder))).execute()
        notebook.metadata.pop('language_info', None)
        for cell in notebook.cells:
            if cell.cell_type == 'code': cell.outputs = tidy(cell.outputs)
        nbformat.write(notebook, path)
        print(f'{path.stem}: {time.time() - started:.0f} s', flush=True)


if __name__ == '__main__': main(*sys.argv[1:])
