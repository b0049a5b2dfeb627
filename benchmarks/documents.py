"""What it costs that documents of one packed window do not attend to each other, over the same step without it.

    python benchmarks/documents.py                  # the embedded pair's tokenizers, random weights
    python benchmarks/documents.py --length 512
"""
from kdkit.embedded import embedded_student_tokenizer, embedded_teacher
from pairs import about_machine, arguments, compared, distilled, pair, stepper


def main():
    args = arguments(__doc__, teacher_tokenizer=embedded_teacher(), student_tokenizer=embedded_student_tokenizer(), teacher='256x5',
                     student='128x3')
    framework, batches = pair(args, dict(document_masking=True))
    plain = [{name: values for name, values in batch.items() if not name.endswith('position_ids')} for batch in batches]
    step, loss = stepper(framework, args.device), distilled(framework)
    documents = sum((batch['position_ids'] == 0).sum().item() for batch in batches) / sum(len(batch['input_ids']) for batch in batches)
    print(about_machine(args.device))
    print(f'{args.batch} x {args.length} tokens, {documents:.1f} documents in a window')
    ways = {'documents together': step(loss, plain), 'documents apart': step(loss, batches)}
    for name, (time, ratio) in compared(ways, args.turns, args.device).items():
        print(f'{name:>20}: {ratio:5.2f} x   {time * 1000:8,.0f} ms', flush=True)


if __name__ == '__main__': main()
