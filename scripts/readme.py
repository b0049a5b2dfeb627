"README.md from nbs/index.ipynb: the notebook's text, code and outputs, with pictures in images/."
import re
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter

ROOT = Path(__file__).resolve().parent.parent
IMAGES = 'images'


def visible(cell):
    "Whether a reader needs the cell."
    return bool(cell.source.strip()) and not re.match(r'#\s*\|\s*hide', cell.source)


def without_directives(source):
    "Code without nbdev's comments."
    return re.sub(r'^#\s*\|.*\n?', '', source, flags=re.M).strip('\n')


def from_the_root(text):
    "Links that start in nbs/, seen from the folder above."
    text = re.sub(r'(\]\(|src="|srcset=")\.\./', r'\1', text)
    return re.sub(r'\]\(([\w./-]+\.ipynb)', r'](nbs/\1', text)


def main():
    notebook = nbformat.read(ROOT / 'nbs' / 'index.ipynb', 4)
    notebook.cells = [cell for cell in notebook.cells if visible(cell)]
    notebook.metadata['language_info'] = {'name': 'python'}  # names the code blocks
    for cell in notebook.cells:
        cell.source = without_directives(cell.source) if cell.cell_type == 'code' else from_the_root(cell.source)
    body, resources = MarkdownExporter().from_notebook_node(notebook, resources={'unique_key': 'readme', 'output_files_dir': IMAGES})
    body = '\n'.join(line.rstrip() for line in body.splitlines())
    (ROOT / 'README.md').write_text(re.sub(r'\n{3,}', '\n\n', body).strip() + '\n', encoding='utf-8')
    outputs = {Path(name).name: data for name, data in resources['outputs'].items()}
    for old in (ROOT / IMAGES).glob('readme_*'):
        if old.name not in outputs: old.unlink()
    for name, data in outputs.items():
        (ROOT / IMAGES).mkdir(exist_ok=True)
        (ROOT / IMAGES / name).write_bytes(data)


if __name__ == '__main__': main()
