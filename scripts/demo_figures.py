"""The demo's figures in the README, from the folder of a demo that has run: `kdkit demo; python scripts/demo_figures.py runs/demo; make
export`."""
import json
import re
import shutil
import sys
from pathlib import Path

from kdkit.report import summary_table

ROOT = Path(__file__).resolve().parent.parent


def main(run_dir):
    report = json.loads((Path(run_dir) / 'report.json').read_text())
    path = ROOT / 'nbs' / 'index.ipynb'
    notebook = json.loads(path.read_text(encoding='utf-8'))
    for cell in notebook['cells']:
        text = ''.join(cell['source'])
        if '<!-- demo' not in text: continue
        text = re.sub(r'(<!-- demo: [^\n]*-->\n).*?(\n<!-- demo -->)', lambda m: m[1] + summary_table(report) + m[2], text, flags=re.S)
        cell['source'] = text.splitlines(keepends=True)
    path.write_text(json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + '\n', encoding='utf-8')
    shutil.copy(Path(run_dir) / 'bits_per_byte.png', ROOT / 'images' / 'demo_bits_per_byte.png')


if __name__ == '__main__': main(*sys.argv[1:])
