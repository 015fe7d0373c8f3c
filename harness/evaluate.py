"""Generated answers -> predictions -> accuracies.

    python -m harness.evaluate runs/.../predictions.jsonl      the scores of a run again, from its answers
"""

import json
from pathlib import Path

import torch
import torch.distributed as dist

from data import Example
from harness.arguments import Parser
from harness.encodings import ahead, like_batches
from harness.processes import RANK, WORLD, in_one_line, progress, together
from parts.files import InputError, reading
from parts.tasks import score
from parts.tasks.answers import prediction, summary
from parts.tasks.rows import WORDS, json_rows

CURVE_ROWS = 100  # held-out rows by which accuracy is measured during training
TEXT_PROMPTS = WORDS["text prompts"]  # ten; the logits of the tuned model are compared with those of the base


def evaluate(vlm, processor, examples, name, max_new_tokens, size=32):
    """Generate an answer to every example and score it: a list of predictions, in the order of the examples. Several processes
    take turns at the batches and put the answers together. name: of the data set; size: questions answered at once."""
    jobs = like_batches(processor, examples, size)[RANK::WORLD]
    generated = torch.full((len(examples), max_new_tokens), -1)  # token ids; -1: nothing

    def batch_of(numbers):
        return processor([examples[i].question() for i in numbers], share_images=True)

    for numbers, batch in zip(progress(jobs, desc=f"evaluate {name}"), ahead(batch_of, jobs)):
        for i, ids in zip(numbers, vlm.generate(batch.to(vlm.device), max_new_tokens)):
            generated[i, : len(ids)] = torch.tensor(ids)
    if WORLD > 1:
        generated = generated.to(vlm.device)
        with together():
            dist.all_reduce(generated, dist.ReduceOp.MAX)  # a process has -1 where another one has an answer
    texts = [processor.decode([t for t in ids if t >= 0]) for ids in generated.tolist()]
    return [prediction(e, text, processor, name) for e, text in zip(examples, texts)]


@torch.no_grad()
def text_logits(vlm, processor):
    """The logits [1, T, V] of each of TEXT_PROMPTS, on its own."""
    return [vlm(processor([Example([], prompt)]).to(vlm.device)).cpu() for prompt in TEXT_PROMPTS]


def text_change(before, after):
    """The largest change of any logit of any prompt, from two results of text_logits. Raises InputError if one is not
    finite."""
    changes = torch.stack([(a - b).abs().max() for a, b in zip(before, after)])
    if not changes.isfinite().all():
        raise InputError("the logits of text are not finite; lower --lr, or use --dtype float32")
    return changes.max().item()


def score_again(file):
    """Compute every score of a predictions.jsonl again, from its text and reference alone, and print the summaries of the
    base and the tuned model. Returns how many scores differ."""
    predictions, differ = {"base": [], "tuned": []}, 0
    for line, source in json_rows(Path(file)):
        with reading(source, "a line of predictions.jsonl"):
            scored = score(line["metric"], line["text"], line["reference"], line["size"], line["resized"])
            differ += scored["score"] != line["score"]
            predictions[line["when"]].append(line | scored)
    with reading(file, "the predictions of a run"):
        summaries = {when: summary(of_model) for when, of_model in predictions.items()}
    print(json.dumps(summaries, indent=1))
    print(f"{sum(map(len, predictions.values()))} answers scored again, {differ} scores differ from those in {file}")
    return differ


def main(argv=None):
    parser = Parser(usage="python -m harness.evaluate FILE", description="Score the answers of a run again.")
    parser.add_argument("file", metavar="FILE", help="its predictions.jsonl")
    with in_one_line():
        score_again(parser.parse_args(argv).file)


if __name__ == "__main__":
    main()
