"""What lesson 1 checks."""

from dataclasses import replace

import torch

from course.checks import call, compare, require, same
from course.real import logits, mixed, scenes, tiny
from data import IGNORED


def check_tokens_are_counted(student):
    """visual_tokens counts the tokens of four images, of different sizes, patches and merges."""
    for width, height, p, m in ((448, 448, 14, 2), (840, 280, 14, 2), (512, 768, 16, 2), (252, 84, 14, 3)):
        patches = width * height // p**2
        mistakes = {
            "these are patches -> merge x merge of them become one token": patches,
            "divided by merge once -> a block has merge x merge patches": patches // m,
            "this takes the image for a square -> width and height differ": (width // (p * m)) ** 2,
        }
        size = width, height, p, m
        compare(f"visual_tokens{size}", tokens := student.visual_tokens(*size), patches // m**2, mistakes)
        require(isinstance(tokens, int), f"visual_tokens{size}: {tokens} is no whole number in Python -> use //")


def check_the_mask(student):
    """visual_mask is True at image tokens of every row, and nowhere else; the real model puts the image there."""
    batch, processor = mixed(), tiny()[1]
    ids, right, special = batch.input_ids, batch.visual_mask, processor.special
    marks = (ids == special["vision_start"]) | (ids == special["vision_end"])
    mistakes = {
        "the mask is the wrong way round -> True is for visual tokens": ~right,
        "text around each image is True -> the marks <|vision_start|> and <|vision_end|> are text": right | marks,
        "all rows have the span of row 0 -> each row has its own images": right[:1].expand_as(right),
    }
    yours = call(student.visual_mask, ids, processor.config.image_token)
    compare("visual_mask", yours, right, mistakes)
    after = logits(replace(batch, visual_index=yours.flatten().nonzero()[:, 0]))
    require(same(logits(batch), after), "the image is at other positions: the logits differ")


def spans(batch):
    """(answer_start [batch], length [batch]) of a batch with answers."""
    return (batch.labels != IGNORED).int().argmax(dim=1), batch.attention_mask.sum(dim=1)


def check_the_labels(student):
    """make_labels supervises the answer with its end token, nothing else."""
    ids, right, (start, length) = mixed().input_ids, mixed().labels, spans(mixed())
    T = torch.arange(ids.shape[1])
    answer, real, last = T >= start[:, None], T < length[:, None], T == length[:, None] - 1
    next_ids = torch.where(answer & real, ids.roll(-1, 1), IGNORED)
    mistakes = {
        "the prompt is supervised, too -> the model would learn to write questions": torch.where(real, ids, IGNORED),
        "padding is supervised -> the model would learn to write padding; use length": torch.where(answer, ids, IGNORED),
        "the first token of the answer is left out -> it is at answer_start": torch.where(answer.roll(1, 1), right, IGNORED),
        "the end token is left out -> it is the last of length": torch.where(last, IGNORED, right),
        "what is not supervised has the label 0 -> -100 is what the loss ignores": torch.where(answer & real, ids, 0),
        "the labels are shifted by one -> a label stands at its own token; the loss does the shift": right.roll(-1, 1),
        "the labels are shifted by one, to the next token's id -> it is the token's own; the loss does the shift": next_ids,
    }
    compare("make_labels", call(student.make_labels, ids, start, length), right, mistakes)


def check_the_loss(student):
    """In the real model your labels give the right loss."""
    vlm, batch = tiny()[0], tiny()[1](scenes(4))
    labels = student.make_labels(batch.input_ids, *spans(batch)).flatten()
    index = (labels != IGNORED).nonzero()[:, 0]
    with torch.no_grad():
        loss = vlm.loss(replace(batch, answer_index=index - 1, answer_ids=labels[index])).item()
        compare("the loss with your labels", loss, vlm.loss(batch).item())
    return f"{len(index)} of {int(batch.attention_mask.sum())} tokens are supervised; the frozen model's loss is {loss:.2f}"
