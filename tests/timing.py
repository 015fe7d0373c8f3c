"""How the benchmarks measure: times of several sides in turn, and how far memory rises."""

import ctypes
import gc
import time
from pathlib import Path
from statistics import median

import torch
from tqdm import tqdm


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak_above(run, device):
    """Bytes by which memory rises during run()."""
    gc.collect()
    if device.type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # what earlier steps freed goes back to the system
    Path("/proc/self/clear_refs").write_text("5")  # the highest level starts again from here
    before = resident("VmRSS")
    run()
    return resident("VmHWM") - before


def resident(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:"))


def measure(sides, device, rounds, memory=True, warm=True):
    """{name: run} -> {name: {"seconds": [a round each], "bytes": ...}}; each side first runs uncounted, if not warm
    already, then, if asked, once for its memory."""
    for run in sides.values() if warm else ():
        run()  # the weights of the mapped file come into memory, buffers are made
    results = {
        name: {"seconds": []} | ({"bytes": peak_above(run, device)} if memory else {}) for name, run in sides.items()
    }
    for _ in tqdm(range(rounds), desc=str(next(iter(sides))), leave=False):
        for name, run in sides.items():
            wait(device)
            start = time.perf_counter()
            run()
            wait(device)
            results[name]["seconds"].append(time.perf_counter() - start)
    return results


def against(results, ours, theirs):
    """Median over the rounds of ours / theirs, and the ratio of memory."""
    time_ratio = median(a / b for a, b in zip(results[ours]["seconds"], results[theirs]["seconds"]))
    if "bytes" not in results[ours]:
        return {"time": time_ratio}
    return {"time": time_ratio, "memory": results[ours]["bytes"] / results[theirs]["bytes"]}
