"""Lecture 5. A training step, the training loop around it, and one run from its arguments to its report.

You will see first what one step is; then the loop; then `run`, whose numbered stations say what happens in which order.

    python train.py                                              the tiny model, offline, on a laptop
    python train.py --model Qwen/Qwen2.5-VL-3B-Instruct --data refcoco
    python train.py --adapter runs/.../adapter.safetensors --eval refcoco
    torchrun --nproc-per-node=4 train.py --data refcoco ...      on four GPUs: the same steps, each sharing its rows

A run prints what it decides. What it measures is in its folder: report.json, log.jsonl (a line a step),
predictions.jsonl (a line an answer), adapter.safetensors, heads.json and three pictures.
"""

import itertools
import math
import os
import sys
import time
import warnings

warnings.filterwarnings("ignore", "Failed to initialize NumPy")  # torch looks for it; nothing here needs it
if "PYTORCH_ALLOC_CONF" not in os.environ:  # rows vary in length, which leaves gaps in the GPU's memory: fewer with this
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

import torch

import probe
from harness import ablations, encodings, processes, report, state
from harness.arguments import data_set, evaluation_sets, parse_args, planned_steps
from harness.evaluate import CURVE_ROWS, evaluate, text_change, text_logits
from harness.processes import RANK
from imagelora import METHODS, load_adapter
from parts.devices import choose_device
from parts.files import InputError

CLIP = 1.0  # largest norm of a step's gradient
WARMUP = 0.05  # share of the steps over which the learning rate rises
READ_EVERY = 10  # steps: so often the CPU waits for the results of the GPU


def training_step(vlm, batches, answer_tokens, parameters, optimizer, dtype):
    """One step on the mean loss over its answer tokens. answer_tokens: their number, in all processes together; dtype: what
    products are computed in. Returns [2] on the device, so nothing waits: the loss, and its gradient's norm before clipping."""
    loss = torch.zeros((), device=vlm.device)
    for batch in batches:
        with torch.autocast(vlm.device.type, dtype, enabled=dtype != vlm.dtype):
            batch_loss = vlm.loss(batch.to(vlm.device)) * len(batch.answer_ids)  # a sum over tokens: batches add up
        batch_loss.backward()
        loss += batch_loss.detach()
    loss = processes.sum_over_processes(parameters, loss)  # and the gradients
    for p in parameters:
        if p.grad is not None:
            p.grad /= answer_tokens
    norm = torch.nn.utils.clip_grad_norm_(parameters, CLIP)
    optimizer.step()
    optimizer.zero_grad()
    return torch.stack([loss / answer_tokens, norm])


def learning_rate(step, steps, peak):
    """Linear rise over the first WARMUP of the steps, then a cosine down to a tenth of the peak."""
    rise = max(1, round(WARMUP * steps))
    if step < rise:
        return peak * (step + 1) / rise
    return peak * (0.55 + 0.45 * math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def train(vlm, parameters, loader, rates, dtype, record, measure):
    """The training loop, from record.step on.

    loader: the Batches of each step; rates: the learning rate of each step; dtype: of the arithmetic; record: what is
    saved and logged; measure(): the accuracy on the way. Every step is a function of the seed, its number, and what the
    record saves: so an interrupted run ends in the same weights.
    """
    # Continue where the state was saved, or at step 0.
    args, steps = record.args, len(rates)
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
    record.restore(parameters, optimizer)

    bar = processes.progress(total=steps, initial=record.step, desc="train", leave=True)
    with bar, processes.whole_steps(lambda: record.rescue(parameters, optimizer)):  # after an error
        record.begun = ready = time.perf_counter()
        for step, batches in enumerate(loader, start=record.step):
            waited = time.perf_counter() - ready

            # How large the step is.
            answer_tokens = sum(len(batch.answer_ids) for batch in batches)
            tokens = sum(int(batch.attention_mask.sum()) for batch in batches)
            visual_tokens = sum(len(batch.visual_index) for batch in batches)
            answer_tokens, tokens, visual_tokens = processes.total(answer_tokens, tokens, visual_tokens)

            # The step, at its own rate.
            optimizer.param_groups[0]["lr"] = rates[step]
            result = training_step(vlm, batches, answer_tokens, parameters, optimizer, dtype)
            line = {"step": step, "lr": rates[step], "wait_ms": 1000 * waited}
            line |= {"tokens": tokens, "visual_tokens": visual_tokens}
            record.unread.append((line, result))
            bar.update()

            # What is due after it?
            done = step + 1
            must_stop = processes.asked_to_stop()
            must_save = must_stop or done == steps or done % args.save_every == 0
            must_measure = args.eval_every and done < steps and done % args.eval_every == 0

            # Read the results before anything is saved: they must be finite.
            if step % READ_EVERY == 0 or must_save or must_measure:
                bar.set_postfix_str(report.log_steps(record, vlm.device))
            if must_measure:
                record.curve.append((done, measure()))
            if must_save:
                record.save(done, parameters, optimizer)
            if must_stop:
                raise KeyboardInterrupt
            ready = time.perf_counter()
            if not record.unread:
                record.begun = ready


def probe_scores(vlm, processor, examples, criterion, samples, seed):
    """Scores [L, G] by `samples` random examples that have an image, one a batch. They are training examples only."""
    with_image = [e for e in examples if e.visuals]
    order = torch.randperm(len(with_image), generator=torch.Generator().manual_seed(seed))
    chosen = [with_image[i] for i in order[:samples].tolist()]
    with processes.progress(chosen, desc="probe") as bar:
        scores = probe.head_scores(vlm, (processor([e]).to(vlm.device) for e in bar), criterion, seed)
    if not scores.isfinite().all():
        raise InputError("the probe's scores are not finite; use --dtype float32")
    return scores


def choose_heads(args, vlm, processor, examples):
    """(heads {layer: [heads]}, scores [L][G] or None) by --selection and --heads."""
    config = vlm.config
    all_heads = config.layers * config.value_heads
    budget = max(1, all_heads // 4) if args.heads is None else args.heads
    if budget > all_heads:
        raise InputError(f"--heads {budget}: the model has {all_heads} value heads, choose 1 to {all_heads}")
    if args.selection == "all":
        return {layer: list(range(config.value_heads)) for layer in range(config.layers)}, None
    if args.selection == "random":
        return probe.random_heads(config, budget, args.seed), None
    criterion = "rank1" if args.selection == "probe" else args.selection
    if criterion not in probe.CRITERIA:
        return probe.load_selection(args.selection, config)
    scores = probe_scores(vlm, processor, examples, criterion, args.probe_samples, args.seed)
    return probe.select_heads(scores, budget, args.tau), scores.tolist()


def build_method(args, vlm, heads):
    """Attach what is to be trained: (adapter or None, its parameters). Its initial values are drawn from --seed."""
    torch.manual_seed(args.seed)
    if args.method == "full":
        vlm.requires_grad_(True)
        return None, list(vlm.parameters())
    settings = vars(args) | {"heads": heads} | ablations.parse_ablations(args.ablate)
    method = METHODS[args.method]
    options = {name: settings[name] for name in method.options if name in settings}
    adapter = method(vlm.config, **options).attach(vlm)
    return adapter, [p for p in adapter.parameters() if p.requires_grad]


def run(args, command):
    """One run from its arguments (a Namespace made by `parse_args`) to its report."""
    # ========== 1. A new run, or the rest of an interrupted one ==========
    record = state.start(args)

    # ========== 2. The data: to train on, and held out; every row is checked before the model is loaded ==========
    processor = encodings.load_processor(args)
    sets = [] if args.probe_only else evaluation_sets(args)
    examples, held_out = [], {}
    for name, folder, split, max_new_tokens in sets:
        held_out[name] = encodings.load_examples(processor, name, folder, split, args.eval_limit, max_new_tokens)
    if args.method != "none":
        examples = encodings.load_examples(processor, *data_set(args.data), args.train_split, args.limit)
        report.show_example(processor, examples[0])
    takes_heads = args.method in METHODS and "heads" in METHODS[args.method].options
    if takes_heads and not any(e.visuals for e in examples):
        raise InputError(f"{args.data} {args.train_split}: no image in any row to adapt to; use --method lora")
    steps, step_rows = planned_steps(args, len(examples)), args.batch * args.accumulate
    plan = encodings.rows_of_steps(examples, args.seed, steps, step_rows)  # the numbers of the examples of each step

    # ========== 3. The frozen model ==========
    vlm = encodings.load_model(args)
    record.begin(vlm, {"training": examples, **held_out})
    if not args.probe_only:  # each image that the run needs is encoded once, by the frozen encoder
        trained_on = [examples[i] for i in sorted(set(itertools.chain(*plan)))]
        encodings.encode_images(vlm, processor, [*itertools.chain(*held_out.values()), *trained_on], args.cache_vision)

    # ========== 4. Which heads: the probe ==========
    if takes_heads and record.heads is None:
        record.heads, record.scores = choose_heads(args, vlm, processor, examples)
    if takes_heads and RANK == 0:
        probe.save_selection(record.folder / "heads.json", record.heads, record.scores)
    if args.probe_only:
        return report.show_probe(record.folder, record.heads, record.scores)

    # ========== 5. What the frozen model answers, and its logits of text ==========
    def answer(chosen, limit=None):
        """Predictions for the first `limit` examples of each of the chosen sets (None: all of them)."""
        answers = []
        for name, _, _, max_new_tokens in chosen:
            answers += evaluate(vlm, processor, held_out[name][:limit], name, max_new_tokens, size=4 * args.batch)
        return answers

    if record.base is None:
        record.base = answer(sets) if args.base else []
    predictions = {"base": record.base, "tuned": []}
    logits, logit_change = text_logits(vlm, processor), None

    # ========== 6. What is trained: nothing, an adapter, or the model itself ==========
    adapter, parameters = None, []
    if examples:
        adapter, parameters = build_method(args, vlm, record.heads)
        if adapter:
            adapter.notes = {"min_pixels": processor.min_pixels, "max_pixels": processor.max_pixels}
        report.show_method(vlm, args.method, parameters, steps, step_rows, args.lr, record.heads)
    elif args.adapter:
        adapter = load_adapter(args.adapter, vlm)
        parameters = list(adapter.parameters())
    if not adapter or adapter.in_encoder:
        processor.encoded = {}  # what the frozen encoder gave; now the encoder is another one

    # ========== 7. Training ==========
    def measure():
        """The accuracy on the way, on a few rows."""
        return report.summary(answer(sets[:1], CURVE_ROWS))["accuracy"]

    if examples:
        _, dtype = choose_device(args.device, args.dtype)  # of the arithmetic; with --method full the weights are float32
        loader = encodings.step_loader(processor, examples, plan[record.step :], args.batch, args.workers, vlm.device)
        rates = [learning_rate(step, steps, args.lr) for step in range(steps)]
        train(vlm, parameters, loader, rates, dtype, record, measure)

    # ========== 8. What the tuned model answers; text must not have changed ==========
    if parameters:
        predictions["tuned"] = answer(sets)
        logit_change = text_change(logits, text_logits(vlm, processor))

    # ========== 9. The adapter, the report, the pictures ==========
    if RANK > 0:  # all processes hold the same result, the first one writes it
        return
    if examples and adapter:
        adapter.save(record.folder / "adapter.safetensors")
    elif examples:
        vlm.save(record.folder / "checkpoint")
        processor.save(record.folder / "checkpoint")
    main_data, method = sets[0][0], adapter.name if adapter else args.method
    measured = report.measured(vlm, adapter, parameters, record, logit_change, predictions, main_data)
    report.write(record.folder, vars(args) | {"method": method}, measured, predictions, command)
    report.draw(record.folder, measured, record, held_out, predictions, main_data)
    report.print_end(measured | {"method": method}, main_data, record.folder)


def main(argv=None):
    command = ["python", "train.py", *(sys.argv[1:] if argv is None else argv)]
    with processes.in_one_line():
        run(parse_args(argv), command)


if __name__ == "__main__":
    main()
