"Every tutorial runs from top to bottom, a few steps short, and ends with pictures instead of widgets."
import json

import pytest

from notebooks import NOTEBOOKS, copy_notebook

nbclient = pytest.importorskip('nbclient')


@pytest.mark.parametrize('name', sorted(path.stem for path in NOTEBOOKS.glob('*.ipynb')))
def test_a_tutorial_runs_without_anybody_watching(name, tmp_path, monkeypatch):
    monkeypatch.delenv('MPLBACKEND', raising=False)
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    copy_notebook(name, tmp_path, STEPS=8, RUN='run')
    import nbformat
    nb = nbformat.read(tmp_path / f'{name}.ipynb', 4)
    nbclient.NotebookClient(nb, timeout=300, kernel_name='python3', resources=dict(metadata=dict(path=str(tmp_path)))).execute()
    outputs = [output for cell in nb.cells for output in cell.get('outputs', [])]
    assert not [output for output in outputs if output.output_type == 'error']
    shown = [output for output in outputs if output.output_type in ('display_data', 'execute_result')]
    assert any('image/png' in output.data for output in shown)
    assert not any('application/vnd.jupyter.widget-view+json' in output.data for output in shown)  # they do not survive in a saved notebook


@pytest.mark.parametrize('name', sorted(path.stem for path in NOTEBOOKS.glob('*.ipynb')))
def test_a_tutorial_keeps_its_outputs(name):
    nb = json.loads((NOTEBOOKS / f'{name}.ipynb').read_text())
    outputs = [output for cell in nb['cells'] for output in cell.get('outputs', [])]
    assert any('image/png' in output.get('data', {}) for output in outputs)
    assert not any(output['output_type'] == 'error' for output in outputs)
