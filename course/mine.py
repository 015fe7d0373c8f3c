"""The student's own adapter through train.py: `python -m course train [FLAGS of train.py]`.

What is trained is the method `mine`: heads and update of lesson 10, the mask of lesson 1, the probe of lesson 7, each as
the student wrote it. Everything else is train.py.
"""

import torch
from torch import nn

import data
import train
from course.judge import EXERCISES, load_exercise
from course.lesson7.check import by_chain_rule, draw_A
from course.real import scenes, tiny
from imagelora import METHODS, Adapter, check_heads
from probe import save_selection

RULES = {"data": "scenes", "steps": 150, "limit": 4800, "batch": 32, "eval_split": "test", "eval_limit": 800}
FLAGS = ["--method=mine", "--lr=0.02", "--no-base", "--eval-every=0"]
FLAGS += [f"--{name.replace('_', '-')}={value}" for name, value in RULES.items()]


class MyLayer(nn.Module):
    """The student's update in one attention layer."""

    def __init__(self, student, config, heads):
        super().__init__()
        self.student, self.heads = student, heads
        self.numbers = nn.ParameterList(student.my_start(config.hidden, config.head_size, heads))

    def forward(self, v, x, visual_index):
        if visual_index is None:  # while text is generated
            return v
        visual_mask = torch.zeros(v.shape[:2], dtype=torch.bool, device=v.device)
        visual_mask.view(-1)[visual_index] = True
        return self.student.my_update(v, x, visual_mask, list(self.numbers), self.heads)


class Mine(Adapter):
    """The student's functions of lesson 10 as a method of train.py."""

    name, options = "mine", ("heads",)
    student = None  # their module

    def __init__(self, config, heads):
        heads = check_heads(config, heads)
        updates = {(layer, "v"): MyLayer(self.student, config, hs) for layer, hs in heads.items()}
        super().__init__(updates, {"heads": heads})
        self.heads, self.layers = heads, nn.ModuleDict({str(layer): update for (layer, _), update in updates.items()})

    def flops(self, tokens, visual_tokens):
        """As Image-LoRA's, if every matrix is multiplied with every visual token once."""
        return sum(6 * visual_tokens * p.numel() for p in self.parameters() if p.dim() > 1)


def main(argv):
    """Raises Wrong or what the student's code raises, if an exercise is not ready."""
    first, probe, Mine.student = (load_exercise(EXERCISES / f"lesson{number}.py") for number in (1, 7, 10))
    METHODS["mine"] = Mine

    # The heads: by the student's probe, on training examples alone.
    A, processor = draw_A(seed=0), tiny()[1]
    gradients = [by_chain_rule(probe, processor([example]), A) for example in scenes(64, "scenes")]
    heads = Mine.student.my_heads(probe.head_scores(torch.stack(gradients)))
    save_selection(EXERCISES / "heads.json", heads)

    # In this process the mask of every batch is the student's.
    data.visual_positions = lambda input_ids, config: first.visual_mask(input_ids, config.image_token)
    train.main([f"--selection={EXERCISES / 'heads.json'}", *FLAGS, *argv])
