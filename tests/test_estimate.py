"One estimate for a whole call, after twenty steps."
import re

from kdkit.run import distill

def test_a_run_says_how_long_all_of_it_takes(pair, tmp_path, capsys):
    "The control first, which also knows of the student that follows; each sentence is made of its parts."
    distill(dict(pair, output_dir=str(tmp_path / 'run'), control=True, max_steps=60, max_length=32, batch_size=2, max_eval_rows=8,
                 eval_steps=30))
    said = re.findall(r'^about .* left in all: (.*)$', capsys.readouterr().err, re.M)
    assert [re.findall(r'(control|student|measuring) [\d.]+ (?:s|min|h)', one)
            for one in said] == [['control', 'student', 'measuring'], ['student', 'measuring']]

def test_a_short_run_says_nothing(pair, tmp_path, capsys):
    distill(dict(pair, output_dir=str(tmp_path / 'run'), max_steps=30, max_length=32, batch_size=2, max_eval_rows=8, eval_steps=30))
    assert 'left in all' not in capsys.readouterr().err

def test_the_estimate_is_right(pair, tmp_path, capsys, monkeypatch):
    "Where every step takes as long as the clock says, so does the sum."
    from kdkit import estimate
    ticks = iter(range(10**6))
    init = estimate.Estimate.__init__
    monkeypatch.setattr(estimate.Estimate, '__init__', lambda self, *given,
                        **more: init(self, *given, **more, clock=lambda: 10. * next(ticks)))
    distill(dict(pair, output_dir=str(tmp_path / 'run'), max_steps=120, max_length=32, batch_size=2, max_eval_rows=8, eval_steps=1000))
    assert 'student 17 min' in re.search('left in all: (.*)', capsys.readouterr().err)[1]  # 100 steps of 10 seconds
