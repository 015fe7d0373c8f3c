"""The one training script: load -> probe -> attach -> evaluate -> train -> evaluate -> report.

    python train.py                                              the tiny model, offline, on a laptop
    python train.py --model Qwen/Qwen2.5-VL-3B-Instruct --data refcoco --data-root FOLDER
    python train.py --data jsonl --data-root FOLDER --method lora
    python train.py --eval-only --adapter runs/.../adapter.safetensors --data refcoco --data-root FOLDER
    python train.py --eval-only --adapter runs/.../adapter.safetensors --image photo.jpg --prompt "What is this?"
    torchrun --nproc-per-node=4 train.py --data refcoco ...      on four GPUs: the same steps, each sharing its rows

Everything a run decides is printed when it starts; everything it measures is in its folder: report.json, log.jsonl
(one line a step), predictions.jsonl (one line an answer), adapter.safetensors, heads.json and three pictures.
"""

import io
import itertools
import json
import math
import os
import shutil
import sys
import time
import warnings
from dataclasses import replace
from pathlib import Path
from statistics import mean, median

warnings.filterwarnings("ignore", "Failed to initialize NumPy")  # torch looks for it; nothing here needs it

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader

from backbones.checkpoint import read_config
from data import Example, Processor, load
from files import InputError, read_metadata, read_safetensors, write_text
from harness import figures
from harness.arguments import (
    DRAWN_LEARNING_RATES,
    LEARNING_RATES,
    MAX_PIXELS,
    parse_args,
)
from harness.encodings import encode_pictures
from harness.evaluate import by_picture, evaluate, new_tokens, summary, text_logits
from harness.processes import (
    RANK,
    WORLD,
    choose_device,
    peak_memory,
    progress,
    sum_over_processes,
)
from harness.report import commit, draw_figures, print_table, show_example, versions
from harness.state import make_folder, start
from imagelora import ImageLoRA, LoRA, load_adapter
from model import VLM
from probe import (
    CRITERIA,
    head_scores,
    load_selection,
    random_heads,
    save_selection,
    select_heads,
)
from tasks import TASKS, default_root
from tasks.boxes import box_from_model, parse_box
from tasks.images import image_size, open_image
from tasks.scenes import DRAWN

HERE = Path(__file__).parent
STARTED = time.perf_counter()
FILLER = "Ada has four red books and two bags of nuts. Ben gives away three pens and finds one coin."  # --preamble


def load_model(args):
    """(vlm, processor), frozen; --from-scratch: random weights for the configuration of --model. A model that is
    trained itself keeps float32 weights: bfloat16 would round small steps away, so it is left to the arithmetic (mixed)."""
    device, dtype = choose_device(args.device, args.dtype)
    args.mixed = args.method == "full" and dtype == torch.bfloat16
    dtype = torch.float32 if args.mixed else dtype
    model = HERE / "tiny" if args.model == "tiny" else args.model
    noted = json.loads(read_metadata(args.adapter).get("notes", "{}")) if args.adapter else {}
    limits = {
        "min_pixels": args.min_pixels or noted.get("min_pixels"),
        "max_pixels": args.max_pixels or noted.get("max_pixels", MAX_PIXELS),
    }
    processor = Processor.from_pretrained(model, **limits)
    if args.from_scratch:
        vlm = VLM.from_scratch(read_config(model), args.seed, dtype, device)
    else:
        vlm = VLM.from_pretrained(model, dtype, device)
    vlm.checkpointing(args.checkpointing)
    total = sum(p.numel() for p in vlm.parameters())
    print(f"model    {args.model}, {total:,} parameters in {str(dtype).removeprefix('torch.')} on {device}")
    return vlm, processor


def load_rows(args, name, root, split, limit, processor, room=0):
    """Examples of a data set; those longer than the model's positions (less `room` for an answer) are left out, with a
    line that counts and names them. root: see data.default_root."""
    examples = load(
        name, default_root(name, root), split, limit, annotations=args.annotations, image_url=args.image_url
    )
    if args.preamble:
        filler = " ".join(itertools.islice(itertools.cycle(FILLER.split()), args.preamble))
        examples = [replace(e, prompt=f"{filler} {e.prompt}") for e in examples]
    longest = processor.config.max_positions - room
    with progress(examples, desc=f"reading {name} {split}") as bar:
        lengths = [processor.count(e) for e in bar]
    long = [e.name for e, (tokens, _) in zip(examples, lengths) if tokens > longest]
    if long:
        print(f"skipped  {len(long)} of {len(examples)} rows, longer than {longest} tokens: {', '.join(long[:5])}")
        kept = [(e, n) for e, n in zip(examples, lengths) if n[0] <= longest]
        if not kept:
            raise InputError(f"{name} {split}: every row is longer than {longest} tokens; lower --max-pixels")
        examples, lengths = map(list, zip(*kept))
    visual = [v for _, v in lengths]
    text = [t - v for t, v in lengths]
    spread = "{} / {:.0f} / {}".format
    print(
        f"data     {name} {split}: {len(examples)} rows; tokens a row (min / median / max): "
        f"visual {spread(min(visual), median(visual), max(visual))}, text {spread(min(text), median(text), max(text))}"
    )
    return examples


def choose_heads(args, vlm, processor, examples, known):
    """(heads {layer: [heads]}, scores [L][G] or None) by --selection. The probe sees training rows only."""
    c = vlm.config
    everything = c.layers * c.value_heads
    budget = max(1, everything // 4) if args.heads is None else args.heads
    if not 1 <= budget <= everything:
        raise InputError(f"--heads {budget}: the model has {everything} value heads, choose 1 to {everything}")
    if args.selection == "all":
        return {layer: list(range(c.value_heads)) for layer in range(c.layers)}, None
    if args.selection == "random":
        return random_heads(c, budget, args.seed), None
    criterion = "rank1" if args.selection == "probe" else args.selection
    if criterion not in CRITERIA:
        return load_selection(args.selection, c)
    seen = [e for e in examples if e.visuals]
    order = torch.randperm(len(seen), generator=torch.Generator().manual_seed(args.probe_seed))
    rows = [seen[i] for i in order[: args.probe_samples].tolist()]
    device = vlm.device
    with progress(rows, desc="probe") as bar:
        scores = head_scores(vlm, (processor([row], known=known).to(device) for row in bar), criterion, args.probe_seed)
    return select_heads(scores, budget, args.tau), scores.tolist()


def show_method(args, parameters, steps, heads):
    trainable = sum(p.numel() for p in parameters)
    size = rows_a_step(args)
    print(
        f"method   {args.method}: {trainable:,} trainable parameters, {steps} steps of {size} rows, "
        f"learning rate {peak_rate(args)}"
    )
    if heads:
        print("heads    " + ", ".join(f"layer {layer}: {hs}" for layer, hs in heads.items()))


def build_method(args, vlm, heads):
    """Attach what is to be trained: (adapter or None, its parameters)."""
    torch.manual_seed(args.seed)
    if args.method == "image-lora":
        gate = args.gate if args.learn_gate else None
        switches = {name: getattr(args, name) for name in ("path", "tokens", "norm", "shared")}
        adapter = ImageLoRA(vlm.config, heads, args.rank, args.alpha, gate, **switches).attach(vlm)
        if args.continue_from:
            inherit(adapter, args.continue_from)
    elif args.method == "lora":
        adapter = LoRA(vlm.config, tuple(args.targets), args.rank, args.alpha).attach(vlm)
    else:
        vlm.requires_grad_(args.method == "full")
        return None, [p for p in vlm.parameters() if p.requires_grad]
    return adapter, [p for p in adapter.parameters() if p.requires_grad]


def inherit(adapter, path):
    """Give an Image-LoRA what another one, saved at `path`, has learnt in the layers and heads that both have."""
    tensors, settings = dict(read_safetensors(path)), json.loads(read_metadata(path)["settings"])
    for layer, heads in settings["heads"].items():
        if layer in adapter.layers:
            update = adapter.layers[layer]
            update.A.data.copy_(tensors[f"layers.{layer}.A"])
            update.gate.data.copy_(tensors[f"layers.{layer}.gate"])
            for i, h in enumerate(update.heads.tolist()):
                if h in heads:
                    update.B.data[i] = tensors[f"layers.{layer}.B"][heads.index(h)]


def rows_a_step(args):
    """The rows behind one optimiser step, however many processes share them."""
    return args.batch * args.accumulate


def peak_rate(args):
    rates = DRAWN_LEARNING_RATES if args.data in DRAWN else LEARNING_RATES
    return rates[args.method] if args.lr is None else args.lr


def learning_rate(step, steps, peak, warmup):
    """Linear rise over the first `warmup` share of the steps, then a cosine down to a tenth of the peak."""
    rise = max(1, round(warmup * steps))
    if step < rise:
        return peak * (step + 1) / rise
    return peak * (0.55 + 0.45 * math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def row_order(examples, seed):
    """Row numbers without end, a pure function of the seed: every epoch shuffles the pictures anew, and all rows about
    one picture stay together, so that a batch holds few pictures, each of which is encoded once."""
    groups = by_picture(examples)
    for epoch in itertools.count():
        generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        for g in torch.randperm(len(groups), generator=generator).tolist():
            yield from groups[g]


class Parts:
    """The rows of a step -> this process's share of them, as Batches of at most `batch` rows. A worker process does
    this ahead of time. Rows without images are short and go apart, so that nothing pads them to the others."""

    def __init__(self, args, processor, examples, known):
        self.args, self.processor, self.examples, self.known = args, processor, examples, known

    def __getitem__(self, rows):
        mine = rows[RANK * len(rows) // WORLD : (RANK + 1) * len(rows) // WORLD]
        with_image = [i for i in mine if self.examples[i].visuals]
        without = [i for i in mine if not self.examples[i].visuals]
        size = self.args.batch
        try:
            return [
                self.processor([self.examples[i] for i in kind[k : k + size]], self.args.share_images, self.known)
                for kind in (with_image, without)
                for k in range(0, len(kind), size)
            ]
        except InputError as error:  # raised in a worker, it would arrive as a page of traceback
            return error


def train(args, vlm, processor, examples, known, parameters, steps, state, file):
    """The training loop, from state["step"] on; state["log"] gains a line a step. Every --save-every steps the whole
    state (weights, optimiser, log) goes into `file`: the rest is a function of seed and step."""
    device, size = vlm.device, rows_a_step(args)
    for p, saved in zip(parameters, state["parameters"] or []):
        p.data.copy_(saved)
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.0)
    if state["optimizer"]:
        optimizer.load_state_dict(state["optimizer"])
    order = itertools.islice(row_order(examples, args.seed), state["step"] * size, None)
    rows_of_steps = (list(itertools.islice(order, size)) for _ in range(state["step"], steps))
    loader = DataLoader(
        Parts(args, processor, examples, known),
        sampler=rows_of_steps,
        batch_size=None,
        num_workers=args.workers,
        pin_memory=device.type == "cuda",
    )
    with progress(total=steps, initial=state["step"], desc="train", leave=True) as bar:
        start, late = time.perf_counter(), None
        for step, parts in enumerate(loader, start=state["step"]):
            if isinstance(parts, InputError):
                raise parts
            waited = time.perf_counter() - start

            loss = torch.zeros((), device=device)
            for part in parts:
                with torch.autocast(device.type, torch.bfloat16, enabled=args.mixed):
                    part_loss = vlm.loss(part.to(device)) * part.supervised  # a sum over tokens: parts simply add up
                part_loss.backward()
                loss += part_loss.detach()
            counts = [sum(part.supervised for part in parts), *count_tokens(parts)]
            sums = torch.cat([loss[None], torch.tensor(counts).to(device, non_blocking=True)])
            if WORLD > 1:
                sums = sum_over_processes(parameters, sums)
            for p in parameters:
                if p.grad is not None:
                    p.grad /= sums[1]  # the mean over all supervised tokens of the step
            torch.nn.utils.clip_grad_norm_(parameters, args.clip)
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps, peak_rate(args), args.warmup)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

            now = time.perf_counter()
            line = {"step": step, "sums": sums, "lr": optimizer.param_groups[0]["lr"], "ms": 1000 * (now - start)}
            line |= {"wait_ms": 1000 * waited, "elapsed": now - STARTED}
            if late:  # a step's numbers are read when the next step is on its way: the GPU never waits for them
                write_down(late, state["log"], bar, device)
            late, start = line, now
            if (step + 1) % args.save_every == 0 or step + 1 == steps:
                write_down(late, state["log"], bar, device)
                late = None
                weights = [p.detach().cpu() for p in parameters]
                state |= {"step": step + 1, "parameters": weights, "optimizer": optimizer.state_dict()}
                if RANK == 0:
                    torch.save(state, f"{file}.part")
                    os.replace(f"{file}.part", file)
                    if args.keep_states:
                        shutil.copyfile(file, file.with_stem(f"state-{step + 1}"))


def count_tokens(parts):
    """(all tokens, visual tokens) of some batches."""
    return sum(int(p.attention_mask.sum()) for p in parts), sum(len(p.visual_index) for p in parts)


def write_down(line, log, bar, device):
    """Complete the line of a step (its sums come from the device), append it to the log, show it in the bar."""
    loss, supervised, tokens, visual_tokens = line.pop("sums").tolist()
    line |= {"loss": loss / supervised, "tokens": tokens, "visual_tokens": visual_tokens}
    peak = peak_memory(device)
    line["peak_mib"] = None if peak is None else peak / 2**20
    if not math.isfinite(loss):
        raise InputError(f"the loss is {loss} at step {line['step']}; lower --lr (now {line['lr']:.3g})")
    log.append(line)
    bar.update()
    memory = "memory not measured" if peak is None else f"{line['peak_mib']:.0f} MiB"
    bar.set_postfix_str(
        "loss {loss:.3f}, lr {lr:.1e}, {ms:.0f} ms ({wait_ms:.0f} data), ".format(**line) + memory
    )


def ask(args, vlm, processor, out):
    """One question about any pictures, answered by the frozen model and, if there is one, with the adapter. The boxes
    in the answers are drawn on the picture, if it is one."""
    example = Example(args.image, args.prompt, source="--prompt")
    batch = processor([example]).to(vlm.device)
    item = {"caption": args.prompt}
    for when in ("before", "after") if args.adapter else ("before",):
        if when == "after":
            load_adapter(args.adapter, vlm)
        text = processor.decode(vlm.generate(batch, args.max_new_tokens or 200)[0])
        print(f"{when:8} {text}")
        box = parse_box(text)
        item[when] = text
        if box and len(args.image) == 1:
            item[when] = box_from_model(box, image_size(args.image[0]), processor.resized(args.image[0]))
            print(f"         box in pixels of the picture: {[round(c) for c in item[when]]}")
    if len(args.image) == 1:
        make_folder(out)
        figures.examples(out / "answer.png", [item | {"image": open_image(args.image[0])}], side=640)
        print(f"         drawn in {out / 'answer.png'}")


def load_data(args, processor):
    """(training examples, {name: held-out examples}); the accuracy of the first of these is the run's."""
    usual = ["scenes-day", "sums"] if args.data == "scenes" and not args.eval else []
    also = usual if args.also is None else args.also
    held_out, roots = {}, {args.data: args.data_root}
    for said in [*(args.eval or [args.data]), *also]:
        name, _, folder = said.partition("=")
        split = args.eval_split if said not in also or name in DRAWN else None  # --also: data sets with other splits
        split, room = split or TASKS[name].eval_split, new_tokens(args, name)
        held_out[name] = load_rows(args, name, folder or roots.get(name), split, args.eval_limit, processor, room)
    if args.method == "none" or args.eval_only:
        return [], held_out
    examples = load_rows(args, args.data, args.data_root, args.train_split, args.limit, processor)
    if args.method == "image-lora" and not any(e.visuals for e in examples):
        raise InputError(f"{args.data} {args.train_split}: no image in any row: Image-LoRA has nothing to adapt to")
    show_example(processor, examples[0])
    return examples, held_out


def run(args, command):
    """One run from its arguments to its report."""
    args, out, state = start(args)
    vlm, processor = load_model(args)
    if args.prompt:
        return ask(args, vlm, processor, out)
    examples, held_out = load_data(args, processor)
    steps = (args.steps or math.ceil((args.epochs or 1) * len(examples) / rows_a_step(args))) if examples else 0
    if RANK == 0:
        make_folder(out)
        write_text(out / "arguments.json", json.dumps(vars(args), indent=1) + "\n")
    soon = set(itertools.islice(row_order(examples, args.seed), steps * rows_a_step(args)))
    known = encode_pictures(args, vlm, processor, [*itertools.chain(*held_out.values()), *(examples[i] for i in soon)])

    # before
    def answers():
        return [p for name, rows in held_out.items() for p in evaluate(args, vlm, processor, rows, name, known)]

    if state["base"] is None:
        state["base"] = json.dumps(answers() if args.base and not args.from_scratch else [])
    predictions = {"base": json.loads(state["base"]), "tuned": []}
    logits_before, logit_change = text_logits(vlm, processor), None

    # probe, attach, train
    adapter, parameters = None, []
    if examples:
        if args.method == "image-lora" and state["heads"] is None:
            state["heads"], state["scores"] = choose_heads(args, vlm, processor, examples, known)
        adapter, parameters = build_method(args, vlm, state["heads"])
        show_method(args, parameters, steps, state["heads"])
        train(args, vlm, processor, examples, known, parameters, steps, state, out / "state.pt")
    elif args.adapter:
        adapter = load_adapter(args.adapter, vlm)
        parameters = list(adapter.parameters())
        args.method = "lora" if isinstance(adapter, LoRA) else "image-lora"
    else:
        args.method = "none"

    # after
    if parameters:
        predictions["tuned"] = answers()
        pairs = zip(logits_before, text_logits(vlm, processor))
        logit_change = max((a - b).abs().max().item() for a, b in pairs)
    if RANK > 0:  # all processes hold the same result, the first one writes it
        return
    if state["heads"]:
        save_selection(out / "heads.json", state["heads"], state["scores"])
    if examples and adapter:
        adapter.notes = {"min_pixels": processor.min_pixels, "max_pixels": processor.max_pixels}
        adapter.save(out / "adapter.safetensors")
    elif examples:
        vlm.save(out / "checkpoint")
        processor.save(out / "checkpoint")

    log = state["log"]
    summaries = {when: summary(rows, next(iter(held_out))) for when, rows in predictions.items()}
    report = {
        "method": args.method,
        "seed": args.seed,
        "data": args.data,
        "steps": steps,
        "trainable_parameters": sum(p.numel() for p in parameters),
        "parameters": sum(p.numel() for p in vlm.parameters()),
        "adapter_flops_per_step": mean(adapter.flops(x["tokens"], x["visual_tokens"]) for x in log)
        if adapter and log
        else None,
        "train_seconds": sum(line["ms"] for line in log) / 1000,
        "step_ms": median(line["ms"] for line in log) if log else None,
        "wall_seconds": time.perf_counter() - STARTED,
        "seconds_to_first_step": log[0]["elapsed"] if log else None,
        "processes": WORLD,
        "peak_memory_bytes": peak_memory(vlm.device),
        "parse_failures": {when: s.pop("parse_failures") for when, s in summaries.items()},
        **summaries,
        "text_logit_max_change": logit_change,
        "heads": adapter.heads if isinstance(adapter, ImageLoRA) else None,
        "arguments": vars(args),
        "versions": versions(),
        "command": " ".join(command),
        "commit": commit(),
    }
    lines = [p | {"when": when} for when, rows in predictions.items() for p in rows]
    write_text(out / "log.jsonl", "".join(json.dumps(line) + "\n" for line in log))
    write_text(out / "predictions.jsonl", "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    write_text(out / "report.json", json.dumps(report, indent=1) + "\n")
    draw_figures(out, report, state["scores"], log, next(iter(held_out.values())), predictions)
    print_table(report)
    print(f"\n  written to {out}")


def main(argv=None):
    if WORLD > 1:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
        if RANK > 0:  # the first process speaks for all
            sys.stdout = io.StringIO()
    try:
        run(parse_args(argv), ["python", "train.py", *(sys.argv[1:] if argv is None else argv)])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    finally:
        if WORLD > 1:
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
