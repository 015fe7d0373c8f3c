"""The student's own adapter through train.py: `python -m course train [FLAGS of train.py]`.

What is trained is the method `mine`: heads and update of lesson 10, the mask of lesson 1, the probe of lesson 7, each as
the student wrote it. Everything else is train.py.
"""

import torch
from torch import nn

import data
import train
from course.judge import EXERCISES, load_exercise
from course.lesson7.check import by_chain_rule
from course.real import TINY, scenes, tiny
from imagelora import METHODS, Adapter, check_heads
from probe import save_selection

MEASURE = "scenes-fog grounding"
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


def method_of(student):
    """The student's functions of lesson 10 as a method of train.py."""

    class Mine(Adapter):
        name, options = "mine", ("heads",)

        def __init__(self, config, heads):
            self_heads = check_heads(config, heads)
            layers = {layer: MyLayer(student, config, hs) for layer, hs in self_heads.items()}
            super().__init__({(layer, "v"): update for layer, update in layers.items()}, {"heads": self_heads})
            self.heads, self.layers = self_heads, nn.ModuleDict({str(layer): u for layer, u in layers.items()})

        def flops(self, tokens, visual_tokens):
            """As Image-LoRA's, if every matrix is multiplied with every visual token once."""
            return sum(6 * visual_tokens * p.numel() for p in self.parameters() if p.dim() > 1)

    return Mine


def heads_of(student, probe, examples):
    """The student's heads, by the scores of their own rank-1 probe. probe: their lesson 7."""
    vlm, processor = tiny()
    torch.manual_seed(0)
    A = [torch.randn(vlm.config.hidden, 1) for _ in range(vlm.config.layers)]
    gradients = [by_chain_rule(probe, processor([example]), A) for example in examples]
    return student.my_heads(probe.head_scores(torch.stack(gradients)))


def main(argv):
    """Raises Wrong or what the student's code raises, if an exercise is not ready."""
    first, seventh, student = (load_exercise(EXERCISES / f"lesson{number}.py") for number in (1, 7, 10))
    heads = heads_of(student, seventh, scenes(64, "scenes"))
    save_selection(EXERCISES / "heads.json", heads)
    METHODS["mine"] = method_of(student)

    # In train.py's process the mask of every batch is now the student's.
    data.visual_positions = lambda input_ids, config: first.visual_mask(input_ids, config.image_token)
    train.main([f"--model={TINY}", f"--selection={EXERCISES / 'heads.json'}", *FLAGS, *argv])
