"""Batches are made ahead of their use: to evaluate by threads, to train by worker processes."""

import os
import re
import signal
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import torch
from torch.utils.data import DataLoader, get_worker_info

from parts.files import InputError

SHARED_MEMORY = "/dev/shm"  # through which worker processes send tensors; 64 MB in a container, unless it is told more
TIMEOUT = 600  # seconds without the batches of a step after which the run ends
FAILURES = re.compile("exited unexpectedly|killed by signal|timed out|shared memory|No space left")


def ahead(make, jobs, threads=2):
    """make(job) of each job, in order. Threads make the next ones while the caller uses one."""
    with ThreadPoolExecutor(threads) as pool:
        coming = deque()
        for job in jobs:
            coming.append(pool.submit(make, job))
            if len(coming) > threads:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def fitting_workers(wanted, processor, rows):
    """At most `wanted` worker processes: as many as shared memory has space for, with a line if those are fewer. Each
    worker has two steps of `rows` images ready, and two more are in use; an image has max_pixels at most."""
    if not os.path.isdir(SHARED_MEMORY):
        return wanted
    shared, step = os.statvfs(SHARED_MEMORY), rows * 3 * processor.max_pixels  # bytes
    free = shared.f_bavail * shared.f_frsize
    fitting = max(0, int(free / step - 2) // 2)
    if fitting < wanted:
        megabytes = f"{free / 2**20:.0f} MB are free in {SHARED_MEMORY}, a step takes up to {step / 2**20:.0f}"
        print(f"workers  {fitting} instead of {wanted}: {megabytes}; start a container with --shm-size=8g")
    return min(wanted, fitting)


class InWorkers:
    """A data set for worker processes: step -> its Batches, or the InputError that they raise."""

    def __init__(self, steps):
        self.steps = steps

    def __getitem__(self, numbers):
        try:
            batches = self.steps[numbers]
        except InputError as error:  # raised in a worker, it would arrive as a page of traceback
            return error
        # Into shared memory at once, where an error can be raised: the thread that sends tensors would only print it.
        for batch in batches if get_worker_info() else ():
            for tensor in vars(batch).values():
                if isinstance(tensor, torch.Tensor):
                    tensor.share_memory_()
        return batches


def only_sigterm(number):
    """Workers ignore Ctrl-C; the main process handles it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def step_loader(steps, numbers, workers, device):
    """steps[n] for each n of `numbers`, in order: the Batches of a step, made by worker processes. Raises InputError if
    an example is wrong or the workers fail."""
    options = {"num_workers": workers, "timeout": TIMEOUT if workers else 0, "pin_memory": device.type == "cuda"}
    made = DataLoader(InWorkers(steps), batch_size=None, sampler=numbers, worker_init_fn=only_sigterm, **options)
    try:
        for batches in made:
            if isinstance(batches, InputError):
                raise batches
            yield batches
    except RuntimeError as error:
        if not FAILURES.search(str(error)):
            raise
        reason = str(error).strip().splitlines()[-1]
        more = "lower --workers, or give a container more shared memory (--shm-size=8g)"
        raise InputError(f"the processes that prepare images failed ({reason:.200}); {more}") from None
