"Tutorials as files, with other values for the names that they set first."
import json
import re
from pathlib import Path

NOTEBOOKS = Path(__file__).parents[1] / 'nbs' / 'tutorials'


def copy_notebook(name, folder, **values):
    "A tutorial without outputs, and with other constants."
    nb = json.loads((NOTEBOOKS / f'{name}.ipynb').read_text())
    for cell in nb['cells']:
        text = ''.join(cell['source'])
        for key, value in values.items(): text = re.sub(rf'^{key} = [^#\n]+', f'{key} = {value!r}  ', text, flags=re.M)
        cell['source'] = text
        if cell['cell_type'] == 'code': cell['outputs'] = []
    (folder / f'{name}.ipynb').write_text(json.dumps(nb))
