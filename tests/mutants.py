"""Change one line of the package, run the tests, and see whether any of them notices. What lives shows where a test is missing.

python tests/mutants.py             # the table: changes that once lived
python tests/mutants.py 0 0 cache   # of the table, only what is in one module
python tests/mutants.py 40 7        # and 40 more by chance, with seed 7, in losses, knowledge, terms, framework, cache, evaluation
"""
import os
import random
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TABLE = (  # module, line as it is, line as it is made, tests that may notice
    ('trainer', "output['loss'] * self.args.world_size", "output['loss']", 'test_guards.py'),
    ('run', "('student_after', 'control', 'teacher')}", "('student_after', 'student_before', 'teacher')}", 'faults/test_faults.py -k gap'),
    ('framework', 'if self.config.mask_inconsistent:', 'if False:', 'test_guards.py'),
    ('cache', "if Path(teacher).name != Path(self.about['name']).name:", 'if False:', 'test_guards.py'),
    ('cache', 'if both and known[what := both[0]] != self.about[what]:', 'if False:', 'test_guards.py -k cache'),
    ('cache', 'max(tensor.numel() // 64, 1)].contiguous()', 'max(tensor.numel(), 1)].contiguous() * 0', 'test_guards.py -k digest'),
    ('align', "collapses = any(normalize(a + b) != forms[a] + forms[b] for a in blank for b in blank)", 'collapses = False',
     'test_align.py -k made_one'),
    ('fused', 'return self.cap * torch.tanh(logits / self.cap) if self.cap else logits', 'return logits', 'test_guards.py'),
    ('evaluation', 'return labels.masked_fill(torch.isin(labels, torch.tensor(ends, device=device, dtype=labels.dtype)), -100)',
     'return labels', 'test_guards.py -k end'),
    ('signs', 'full <= .9 else', 'full >= .9 else', 'test_guards.py'),
    ('losses', 'return log_probs.masked_fill(', 'return log_probs if True else log_probs.masked_fill(', 'test_edges.py'),
    ('checkpoints', "if digest(folder / name) != known: return", 'if False: return', 'faults/test_faults.py -k damaged'),
    ('trainer', 'if resume_from_checkpoint and self.is_end(resume_from_checkpoint)', 'if False', 'faults/test_faults.py -k missing'),
    ('trainer', "self.meter.restore(more['meter'], self.model.device)", 'pass', 'faults/test_faults.py -k signal'),
)
TESTS = dict(losses='test_edges.py test_contract.py -k not(24914)', knowledge='test_contract.py test_cache.py test_crossings.py',
             terms='test_contract.py test_cache.py test_aware.py',
             framework='test_contract.py test_guards.py test_aware.py', cache='test_cache.py test_guards.py',
             evaluation='test_guards.py test_contract.py')
SWAPS = ((r' \+ ', ' - '), (r' - ', ' + '), (r' \* ', ' / '), (r' / ', ' * '), (r' < ', ' <= '), (r' > ', ' >= '), (r' >= ', ' > '),
         (r' == ', ' != '), (r' & ', ' | '), (r'\.sum\(-1\)', '.mean(-1)'), (r'\bif not ', 'if '),
         (r'-100', '-101'), (r'\b1:\]', ':-1]'), (r'\band\b', 'or'), (r'clamp_min\(', 'clamp_max('))


def chances(n, seed):
    "Lines that can be changed, and one change for each."
    found = []
    for module in TESTS:
        for number, line in enumerate((ROOT / 'kdkit' / f'{module}.py').read_text().splitlines()):
            code = line.split('  #')[0]
            if not code.startswith('    ') or code.strip().startswith(('"', '#', 'raise', 'from', 'import')) or 'raise ' in code: continue
            for old, new in SWAPS:
                if re.search(old, code): found.append((module, number, line, re.sub(old, new, code, count=1)))
    return random.Random(seed).sample(found, min(n, len(found)))


def survives(module, change, tests):
    "Whether the tests pass although the module was changed."
    with tempfile.TemporaryDirectory() as folder:
        for name in ('kdkit', 'tests', 'nbs', 'settings.ini', 'README.md'):
            source = ROOT / name
            if source.is_dir(): shutil.copytree(source, Path(folder, name), ignore=shutil.ignore_patterns('__pycache__'))
            elif source.exists(): shutil.copy(source, folder)
        path = Path(folder, 'kdkit', f'{module}.py')
        before = path.read_text()
        path.write_text(after := change(before))
        assert after != before, (module, 'nothing was changed')
        words = [Path(folder, 'tests', word) if word.endswith('.py') else word for word in shlex.split(tests)]
        env = dict(os.environ, PYTHONPATH=folder, OMP_NUM_THREADS='1', HF_HUB_OFFLINE='1', MPLBACKEND='agg')
        done = subprocess.run([sys.executable, '-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider', '-m', 'not slow and not long',
                               *words], cwd=folder, env=env, capture_output=True, text=True)
        if done.returncode not in (0, 1):
            raise SystemExit(f'{module}: {tests} ran no test, so nothing is known (exit code {done.returncode}):\n'
                             f'{(done.stdout + done.stderr)[-2000:]}')
        return done.returncode == 0


def main(n=0, seed=0, only=None):
    lived = []
    cases = [(module, f'{old} -> {new}', lambda text, old=old, new=new: text.replace(old, new, 1), tests)
             for module, old, new, tests in TABLE if only in (None, module)]
    for module, number, line, new in chances(n, seed):
        cases.append((module, f'{number + 1}: {line.strip()} -> {new.strip()}', lambda text, number=number,
                      new=new: '\n'.join(new if i == number else kept for i, kept in enumerate(text.split('\n'))), TESTS[module]))
    for module, what, change, tests in cases:
        alive = survives(module, change, tests)
        print('LIVES ' if alive else 'killed', module, what, flush=True)
        lived += [what] * alive
    print(f'{len(lived)} of {len(cases)} lived')
    return len(lived)


if __name__ == '__main__': sys.exit(main(*map(int, sys.argv[1:3]), *sys.argv[3:4]) > 0)
