"""What an optimizer step of distillation costs, over the same two models without it.

    python benchmarks/step.py                                 # Qwen -> GPT-2, the default recipe; random weights, the true vocabularies
    python benchmarks/step.py --same                          # one tokenizer
    python benchmarks/step.py --teacher-tokenizer FOLDER …    # tokenizers from disk

`bare` is the floor: the teacher reads the batch, the student reads it, cross-entropy, backward, AdamW. `readable` is kdkit's own slow way,
which lets autograd go back through slices that are computed twice. Others are measured where they are installed (pip install trl
liger-kernel): with one tokenizer TRL's losses of GKD and of its DistillationTrainer, both at the forward KL, and Liger's chunked loss; with
two TRL's GOLD, with its defaults and as hybrid loss. """
from itertools import accumulate

import torch

from kdkit.align import token_bytes

from kdkit.models import body
from kdkit.terms import LanguageModelTerm
from pairs import about_machine, arguments, compared, distilled, pair, stepper


class Readable(LanguageModelTerm):
    "A term with a forward of its own: then nothing is fused."
    def forward(self, signals): return super().forward(signals)


def gold(framework, side):
    "TRL's loss between two vocabularies, with its defaults and as hybrid loss: name -> loss of a batch."
    try: from trl.experimental.gold.gold_trainer import GOLDConfig, ULDLoss
    except ImportError: return {}
    student, teacher = framework.student_model, framework.teacher_model
    tokenizers = framework.student_tokenizer, framework.teacher_tokenizer
    tables = [token_bytes(tokenizer) for tokenizer in tokenizers]
    def spans(ids, table):
        ends = [list(accumulate(len(table[i] or b'') for i in row)) for row in ids.tolist()]
        return torch.tensor([list(zip([0, *row], row)) for row in ends], device=ids.device)
    def loss_of(**options):
        loss = ULDLoss(GOLDConfig('gold', bf16=False, use_uld_loss=True, **options), *tokenizers, device=framework.device)
        def of(batch):
            with torch.no_grad(): said = teacher(**side(batch, 'teacher_')).logits
            ids, theirs = batch['input_ids'], batch['teacher_input_ids']
            labels = theirs.masked_fill(batch['teacher_attention_mask'] == 0, -100)
            offsets = [spans(*both) for both in zip((ids, theirs), tables)]
            return loss(student(**side(batch)).logits, said, batch['labels'], labels, ids, theirs, *offsets)
        return of
    return {'TRL GOLD': loss_of(), 'TRL GOLD, hybrid': loss_of(uld_use_hybrid_loss=True)}


def ways(framework, batches, args):
    "name -> one optimizer step on the batch of that turn."
    student, teacher, lm = framework.student_model, framework.teacher_model, framework.terms['lm']
    step = stepper(framework, args.device)
    def side(batch, prefix=''): return dict(input_ids=batch[f'{prefix}input_ids'], attention_mask=batch[f'{prefix}attention_mask'])
    def bare(batch):
        with torch.no_grad(): teacher(**side(batch, 'teacher_'))
        return student(**side(batch), labels=batch['labels']).loss
    ours = distilled(framework)
    def readable(batch):
        framework.terms['lm'] = Readable()
        try: return ours(batch)
        finally: framework.terms['lm'] = lm
    found = dict(bare=bare, kdkit=ours, readable=readable, **({} if args.same else gold(framework, side)))
    if not args.same: return {name: step(loss, batches) for name, loss in found.items()}
    def hand(batch):
        with torch.no_grad(): said = teacher(**side(batch, 'teacher_')).logits
        output = student(**side(batch), labels=batch['labels'])
        return 0.2 * output.loss + 0.8 * torch.nn.functional.kl_div(output.logits[:, :-1].log_softmax(-1).flatten(0, 1),
                                                                    said[:, :-1].log_softmax(-1).flatten(0, 1), log_target=True,
                                                                    reduction='batchmean')
    found['by hand'] = hand
    try:
        from trl.experimental.gkd import GKDTrainer
    except ImportError:
        try: from trl import GKDTrainer
        except ImportError: GKDTrainer = None
    if GKDTrainer:
        def gkd(batch):
            with torch.no_grad(): said = teacher(**side(batch, 'teacher_')).logits
            return GKDTrainer.generalized_jsd_loss(student_logits=student(**side(batch)).logits[:, :-1], teacher_logits=said[:, :-1],
                                                   labels=batch['labels'][:, 1:], beta=0.)
        found['TRL GKD'] = gkd
    try: from trl.trainer.distillation_trainer import _chunked_divergence_loss
    except ImportError: _chunked_divergence_loss = None
    if _chunked_divergence_loss:
        def trl(batch):
            with torch.no_grad(): said = body(teacher)(**side(batch, 'teacher_'), use_cache=False)[0]
            states = body(student)(**side(batch), use_cache=False)[0]
            return _chunked_divergence_loss(states[:, :-1], said[:, :-1], student.lm_head.weight, teacher.lm_head.weight,
                                            batch['labels'][:, 1:] != -100, beta=0.)[0]
        found['TRL Distillation'] = trl
    try: from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss
    except ImportError: LigerFusedLinearJSDLoss = None
    if LigerFusedLinearJSDLoss:
        liger = LigerFusedLinearJSDLoss(weight_hard_loss=0.2, weight_soft_loss=0.8, beta=0., compiled=False)
        def chunked(batch):
            with torch.no_grad(): said = body(teacher)(**side(batch, 'teacher_'), use_cache=False)[0]
            states = body(student)(**side(batch), use_cache=False)[0]
            return liger(states[:, :-1].flatten(0, 1), student.lm_head.weight, said[:, :-1].flatten(0, 1), teacher.lm_head.weight,
                         batch['labels'][:, 1:].flatten())
        found['Liger chunked'] = chunked
    return {name: step(loss, batches) for name, loss in found.items()}


def main():
    args = arguments(__doc__)
    framework, batches = pair(args)
    print(about_machine(args.device))
    print(f"{'one tokenizer' if args.same else 'two tokenizers'}: {args.teacher} -> {args.student}, {args.batch} x {args.length} "
          f"tokens, vocabularies of "
          f"{' and '.join(f'{m.get_output_embeddings().weight.shape[0]:,}' for m in (framework.teacher_model, framework.student_model))}")
    for name, (time, ratio) in compared(ways(framework, batches, args), args.turns, args.device).items():
        print(f'{name:>16}: {ratio:5.2f} x bare   {time * 1000:8,.0f} ms', flush=True)


if __name__ == '__main__': main()
