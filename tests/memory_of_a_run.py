"""What a training takes at its fullest, in a process of its own: python tests/memory_of_a_run.py '{"teacher_model": ..., "arguments":
{...}}' prints a line of JSON.

Everything that is imported late, or made once a process, is there before counting begins: a training of two steps with miniatures goes
first. """
import gc
import json
import os
import sys
import tempfile
from pathlib import Path

# what is freed goes back at once: only the first process has to start with it
os.environ.update(MALLOC_MMAP_THRESHOLD_='65536', MALLOC_TRIM_THRESHOLD_='65536', MALLOC_ARENA_MAX='1')


def status(name):
    "Bytes of a line of /proc/self/status."
    return next(1024 * int(line.split()[1]) for line in open('/proc/self/status') if line.startswith(name))


def train(config, arguments, steps=3):
    "Pair, load, and train a few steps, without measuring."
    from kdkit.config import DistillConfig
    from kdkit.prepare import prepare_text
    from kdkit.run import make_framework, make_trainer
    with tempfile.TemporaryDirectory() as folder:
        config = DistillConfig.from_dict(dict(config, output_dir=folder, max_steps=steps, eval_steps=1000, max_eval_rows=2))
        text = prepare_text(config)
        gc.collect()
        yield 'paired'
        framework = make_framework(config, text)
        yield 'loaded'
        trainer = make_trainer(framework, dict(arguments, eval_strategy='no', save_strategy='no'), text, Path(folder), 'memory')
        trainer.train()
        yield 'trained'


def main():
    sys.path.insert(0, str(Path(__file__).parent))
    from pairs import save_pair, save_text
    given = json.loads(sys.argv[1])
    arguments = given.pop('arguments', {})
    with tempfile.TemporaryDirectory() as folder:
        for _ in train(dict(save_pair(Path(folder)), dataset=save_text(Path(folder)), max_length=32, batch_size=2), arguments): pass
    peaks = {}
    for stage in train(given, arguments):
        if stage == 'paired':
            gc.collect()
            with open('/proc/self/clear_refs', 'w') as file: file.write('5')
            before = status('VmRSS')
        else:
            peaks[stage] = status('VmHWM') - before
            if stage == 'loaded':
                with open('/proc/self/clear_refs', 'w') as file: file.write('5')
    print(json.dumps(peaks))


if __name__ == '__main__': main()
