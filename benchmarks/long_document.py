"""Peak memory of pairing one long document.

    python benchmarks/long_document.py --megabytes 50                       # Qwen and GPT-2
    python benchmarks/long_document.py --teacher-tokenizer FOLDER …         # tokenizers from disk

The text is documentation of torch, again and again, each copy with its number. `before` is what the process holds once tokenizers and text
are there.
"""
import resource
import tempfile
import time

import datasets
import psutil
from datasets import Dataset

from kdkit.windows import WindowMaker
from pairs import about_machine, arguments, prose, tokenizers


def main():
    args = arguments(__doc__, megabytes=50, length=512)
    theirs, mine = tokenizers(args)
    once, parts, size = '\n\n'.join(prose()), [], 0
    while size < args.megabytes * 1_000_000:
        parts.append(f'Part {len(parts)}.\n\n{once}\n\n')
        size += len(parts[-1].encode())
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        text = Dataset.from_dict(dict(text=[''.join(parts)]))
        del parts
        make = WindowMaker(mine, theirs, max_length=args.length)
        before, began = psutil.Process().memory_info().rss, time.process_time()
        windows = make(text, cache_dir=folder)
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(about_machine('cpu'))
        print(f'{size / 1e6:.0f} MB in one document, {len(windows):,} windows: {before / 1e9:.2f} GB before, '
              f'{peak / 1e9:.2f} GB at the peak, '
              f'{(peak - before) / size:.0f} bytes a byte of text, {time.process_time() - began:.0f} CPU seconds')


if __name__ == '__main__': main()
