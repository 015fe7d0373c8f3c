"""Lecture 5. One run, from its arguments to its report, in numbered stations; and the training loop.

You will see in `run` what happens in which order: frozen model, data, probe, base answers, adapter, training, tuned
answers, report. And in `train` every move of a training step.

    python train.py                                              the tiny model, offline, on a laptop
    python train.py --model Qwen/Qwen2.5-VL-3B-Instruct --data refcoco
    python train.py --adapter runs/.../adapter.safetensors --eval refcoco
    torchrun --nproc-per-node=4 train.py --data refcoco ...      on four GPUs: the same steps, each sharing its rows

A run prints what it decides. What it measures is in its folder: report.json, log.jsonl (a line a step),
predictions.jsonl (a line an answer), adapter.safetensors, heads.json and three pictures.
"""

import itertools
import json
import math
import sys
import time
import warnings
from functools import partial

warnings.filterwarnings("ignore", "Failed to initialize NumPy")  # torch looks for it; nothing here needs it

import torch

import probe
from harness import ablations, criteria, ending, report
from harness.arguments import data_set, evaluation_sets, parse_args, planned_steps
from harness.encodings import StepBatches, by_image, encode_images, load_examples
from harness.evaluate import evaluate, text_change, text_logits
from harness.loading import load_model
from harness.processes import RANK, WORLD, choose_device, progress, sum_over_processes
from harness.report import show_example, show_method
from harness.state import make_folder, restore, save_state, start
from harness.workers import fitting_workers, step_loader
from imagelora import METHODS, load_adapter
from parts.files import InputError, read_metadata

CLIP = 1.0  # largest norm of a step's gradient
WARMUP = 0.05  # share of the steps over which the learning rate rises


def arguments(argv=None):
    """The command line -> a Namespace with a value for every flag."""
    methods = [name for name in METHODS if name != "ablation"]  # which is what --ablate makes of Image-LoRA
    return parse_args(argv, [*methods, "full", "none"], criteria.CRITERIA)


# ----------------------------------------------------------------------------------------------------------- one run


def run(args, command):
    """One run from its arguments (a Namespace made by `arguments`) to its report."""
    # ========== 1. The run: a new one, or the rest of an interrupted one ==========
    args, out, state = start(args)  # state, saved on the way: base, heads, scores, parameters, optimizer, step, log

    # ========== 2. The frozen model and its processor ==========
    vlm, processor = load_model(args)
    device, dtype = choose_device(args.device, args.dtype)  # of --method full the weights are float32 all the same

    # ========== 3. The data: to train on, and held out ==========
    read = partial(load_examples, processor)
    sets = [] if args.probe_only else evaluation_sets(args)
    held_out = {name: read(name, root, split, args.eval_limit, room) for name, root, split, room in sets}
    examples = []
    if args.method != "none":
        examples = read(*data_set(args.data), args.train_split, args.limit)
        if "heads" in options_of(args.method) and not any(e.visuals for e in examples):
            raise InputError(f"{args.data} {args.train_split}: no image in any row: Image-LoRA has nothing to adapt to")
        show_example(processor, examples[0])
    rows_a_step = args.batch * args.accumulate  # however many processes share them
    steps = planned_steps(args, len(examples))
    out = make_folder(out, args, state, vlm, {"training": examples, **held_out})  # of this very run?

    # The encoder is frozen: each image that the run needs is encoded once.
    upcoming = set(itertools.islice(row_order(examples, args.seed), min(steps * rows_a_step, len(examples))))
    needed = [*itertools.chain(*held_out.values()), *(examples[i] for i in upcoming)]
    encode_images(vlm, processor, [] if args.probe_only else needed, args.cache_vision)

    # ========== 4. The probe: which heads ==========
    if examples and state["heads"] is None and "heads" in options_of(args.method):
        score = partial(probe_scores, vlm, processor, examples, args.probe_samples, args.seed)
        found = choose_heads(vlm.config, args.selection, args.heads, args.tau, args.seed, score)
        state["heads"], state["scores"] = found
    if state["heads"] and RANK == 0:
        probe.save_selection(out / "heads.json", state["heads"], state["scores"])
    if args.probe_only:
        return report.show_probe(out, state["heads"], state["scores"])

    # ========== 5. What the frozen model answers, and its logits of text ==========
    def answers(sets, few=None):
        found = []
        for name, _, _, room in sets:
            rows = held_out[name][:few]
            found += evaluate(vlm, processor, rows, name, room, size=4 * args.batch)
        return found

    if state["base"] is None:  # as text, so that a resumed run has it in the same form
        state["base"] = json.dumps(answers(sets) if args.base else [])
    predictions = {"base": json.loads(state["base"]), "tuned": []}
    logits, logit_change = text_logits(vlm, processor), None

    # ========== 6. What is trained: nothing, an adapter, or the model itself ==========
    adapter, parameters, method = None, [], "none"
    if examples:
        method = args.method
        settings = vars(args) | {"heads": state["heads"]} | ablations.parse_ablations(args.ablate)
        adapter, parameters = build_method(vlm, method, settings, args.seed)
        if adapter:
            adapter.notes = {"min_pixels": processor.min_pixels, "max_pixels": processor.max_pixels}
        show_method(vlm, method, parameters, steps, rows_a_step, args.lr, state["heads"])
    elif args.adapter:
        adapter = load_adapter(args.adapter, vlm)
        parameters, method = list(adapter.parameters()), read_metadata(args.adapter)["method"]

    # ========== 7. Training ==========
    if examples:
        order = itertools.islice(row_order(examples, args.seed), state["step"] * rows_a_step, None)
        rows_of_steps = (list(itertools.islice(order, rows_a_step)) for _ in range(state["step"], steps))
        batches = StepBatches(processor, examples, args.batch)
        workers = fitting_workers(args.workers, processor, examples, rows_a_step)
        loader = step_loader(batches, rows_of_steps, workers, device)
        rate = partial(learning_rate, steps=steps, peak=args.lr, warmup=WARMUP)
        note = partial(report.note_step, out, vlm.device, state["log"])
        save = args.save_every, partial(save_state, state, out, args.keep_states)
        curve = args.eval_every, lambda: report.by_now(partial(answers, sets[:1]), state["curve"], adapter, out)
        with ending.whole_steps():
            train(vlm, parameters, loader, steps, rate, CLIP, dtype, state, note, *save, *curve)

    # ========== 8. What the tuned model answers; text must not have changed ==========
    if parameters:
        predictions["tuned"] = answers(sets)
        logit_change = text_change(logits, text_logits(vlm, processor))

    # ========== 9. The adapter, the report, the pictures ==========
    if RANK > 0:  # all processes hold the same result, the first one writes it
        return
    if examples and adapter:
        adapter.save(out / "adapter.safetensors")
    elif examples:
        vlm.save(out / "checkpoint")
        processor.save(out / "checkpoint")
    main_data = sets[0][0]
    measured = report.measured(vlm, adapter, parameters, steps, state, logit_change, predictions, main_data)
    report.write(out, vars(args) | {"method": method}, measured, predictions, command)
    report.draw(out, measured, state, held_out, predictions, main_data)
    report.print_end(measured | {"method": method}, predictions, main_data, out)


# --------------------------------------------------------------------------------------------------------- the method


def probe_scores(vlm, processor, examples, samples, seed, criterion):
    """Scores [L, G] by `samples` random examples that have an image, one a batch. They are training examples only."""
    with_image = [e for e in examples if e.visuals]
    order = torch.randperm(len(with_image), generator=torch.Generator().manual_seed(seed))
    chosen = [with_image[i] for i in order[:samples].tolist()]

    def scores_of(examples):
        batches = (processor([e]).to(vlm.device) for e in examples)
        return probe.head_scores(vlm, batches, criterion, seed)

    with progress(chosen, desc="probe") as bar:
        scores = scores_of(bar)
    if not scores.isfinite().all():
        bad = [e.name for e in chosen if not scores_of([e]).isfinite().all()] or ["the sum over all rows"]
        raise InputError(f"probe scores are not finite: {', '.join(bad[:5])}; leave them out, or use --dtype float32")
    return scores


def choose_heads(config, selection, budget, tau, seed, score):
    """(heads {layer: [heads]}, scores [L][G] or None) by --selection; score(criterion) runs the probe."""
    total = config.layers * config.value_heads
    budget = max(1, total // 4) if budget is None else budget
    if not 1 <= budget <= total:
        raise InputError(f"--heads {budget}: the model has {total} value heads, choose 1 to {total}")
    if selection == "all":
        return {layer: list(range(config.value_heads)) for layer in range(config.layers)}, None
    if selection == "random":
        return probe.random_heads(config, budget, seed), None
    criterion = "rank1" if selection == "probe" else selection
    if criterion not in probe.CRITERIA:
        return probe.load_selection(selection, config)
    scores = score(criterion)
    return probe.select_heads(scores, budget, tau), scores.tolist()


def options_of(method):
    """What a method of METHODS is built from; full fine-tuning has no options."""
    return METHODS[method].options if method in METHODS else ()


def build_method(vlm, method, settings, seed):
    """Attach what is to be trained: (adapter or None, its parameters). settings: {option: value}."""
    torch.manual_seed(seed)
    if method == "full":
        vlm.requires_grad_(True)
        return None, list(vlm.parameters())
    options = {name: settings[name] for name in options_of(method) if name in settings}
    adapter = METHODS[method](vlm.config, **options).attach(vlm)
    return adapter, [p for p in adapter.parameters() if p.requires_grad]


# ----------------------------------------------------------------------------------------------------------- training


def learning_rate(step, steps, peak, warmup):
    """Linear rise over the first `warmup` share of the steps, then a cosine down to a tenth of the peak."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return peak * (step + 1) / rise
    return peak * (0.55 + 0.45 * math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def row_order(examples, seed):
    """Numbers of examples without end, a pure function of the seed. Every epoch shuffles the images again; all examples
    about one image stay together, so that a batch has few images, each of which is encoded once."""
    groups = by_image(examples)
    for epoch in itertools.count():
        generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**64)
        for g in torch.randperm(len(groups), generator=generator).tolist():
            yield from groups[g]


def train(vlm, parameters, loader, steps, rate, clip, dtype, state, note, save_every, save, eval_every, accuracy):
    """The training loop, from state["step"] on. note(line) keeps the numbers of a step and puts them into words.

    loader: the Batches of each step; rate(step): its learning rate; dtype: of the arithmetic. Every `save_every`
    steps, and when a signal asks for the end, save() writes the state (weights, optimiser, log); the rest of a run is a
    function of seed and step. Every `eval_every` steps (0: never) accuracy() is a point of state["curve"].
    """
    # Continue where the state was saved, or at step 0.
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
    restore(state, parameters, optimizer)

    with progress(total=steps, initial=state["step"], desc="train", leave=True) as bar:

        def log(line):
            bar.set_postfix_str(note(line))
            bar.update()

        begun, pending = time.perf_counter(), None
        for step, batches in enumerate(loader, start=state["step"]):
            waited = time.perf_counter() - begun

            # Forward and backward. The loss times its tokens is a sum over tokens, so batches simply add up.
            loss = torch.zeros((), device=vlm.device)
            for batch in batches:
                with torch.autocast(vlm.device.type, dtype, enabled=dtype != vlm.dtype):
                    batch_loss = vlm.loss(batch.to(vlm.device)) * len(batch.answer_ids)
                batch_loss.backward()
                loss += batch_loss.detach()

            # What the step's means are over. Several processes add up their gradients and these sums.
            supervised = sum(len(batch.answer_ids) for batch in batches)
            tokens = sum(int(batch.attention_mask.sum()) for batch in batches)
            visual = sum(len(batch.visual_index) for batch in batches)
            counts = [supervised, tokens, visual, len(ending.now.signals)]
            sums = torch.cat([loss[None], torch.tensor(counts).to(vlm.device, non_blocking=True)])  # [5]
            if WORLD > 1:
                sums = sum_over_processes(parameters, sums)

            # The mean gradient over all supervised tokens of the step, clipped; one step of AdamW.
            for p in parameters:
                if p.grad is not None:
                    p.grad /= sums[1]  # of all processes
            norm = torch.nn.utils.clip_grad_norm_(parameters, clip)
            for group in optimizer.param_groups:
                group["lr"] = rate(step)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            # The numbers of a step are read after the next step has started, so the GPU never waits.
            if pending:
                log(pending)
            now = time.perf_counter()
            pending = {"step": step, "lr": rate(step), "ms": 1000 * (now - begun), "wait_ms": 1000 * waited}
            pending |= {"elapsed": now - report.STARTED, "sums": report.arriving(torch.cat([sums, norm[None]]))}

            # From time to time: how well it does by now; and, also at a signal, what the run needs to continue.
            done = step + 1
            if eval_every and done % eval_every == 0 and done < steps:
                state["curve"].append((done, accuracy()))
            if done % save_every == 0 or done == steps or ending.now.stop:
                log(pending)
                pending = None
                weights = [p.detach().cpu() for p in parameters]
                state |= {"step": done, "parameters": weights, "optimizer": optimizer.state_dict()}
                save()
            begun = time.perf_counter()
    if state["step"] < steps:
        raise RuntimeError(f"the batches ended after step {state['step']} of {steps}")


def main(argv=None):
    command = ["python", "train.py", *(sys.argv[1:] if argv is None else argv)]
    with ending.in_one_line():
        run(arguments(argv), command)


if __name__ == "__main__":
    main()
