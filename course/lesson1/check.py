"""What lesson 1 checks."""

from dataclasses import replace

import torch

from course.checks import call, compare, require, same
from course.real import frozen, mixed, scenes, tiny
from data import IGNORED


def tokens_are_counted(student):
    """visual_tokens counts the tokens of four images, of different sizes, patches and merges."""
    for width, height, p, m in ((448, 448, 14, 2), (840, 280, 14, 2), (512, 768, 16, 2), (252, 84, 14, 3)):
        patches = width * height // p**2
        mistakes = {
            "these are patches -> merge x merge of them become one token": patches,
            "divided by merge once -> a block has merge x merge patches": patches // m,
            "these are pixels -> count patches, then blocks of patches": width * height,
            "this takes the image for a square -> width and height differ": (width // (p * m)) ** 2,
            "two too many -> the two marks around the image are not visual tokens": patches // m**2 + 2,
        }
        got = student.visual_tokens(width, height, p, m)
        compare(f"visual_tokens({width}, {height}, {p}, {m})", got, patches // m**2, mistakes)
    return f"a scene of 196 x 196 pixels is {student.visual_tokens(196, 196, 14, 2)} visual tokens"


def the_mask(student):
    """visual_mask is True at image tokens of every row, and nowhere else."""
    batch, (_, processor) = mixed(), tiny()
    ids, image, right = batch.input_ids, processor.config.image_token, batch.visual_mask
    marks = (ids == processor.special["vision_start"]) | (ids == processor.special["vision_end"])
    first = right & (right.cumsum(1) <= right[0].sum())  # row 2 has two images
    mistakes = {
        "the mask is the wrong way round -> True is for visual tokens": ~right,
        "text tokens around each image are True -> the marks <|vision_start|> and <|vision_end|> are text": right | marks,
        "padding is counted -> compare with the image token alone": right | (batch.attention_mask == 0),
        "all rows have the span of row 0 -> each row has its own images": right[:1].expand_as(right),
        "only the first image of a row is True -> a row may have several": first,
        "this is the mask of row 0 alone -> return [batch, T]": right[0],
        "the mask has numbers -> make it bool": right.long(),
        "these are positions -> the mask is bool, [batch, T]": right.flatten().nonzero()[:, 0],
    }
    compare("visual_mask", call(student.visual_mask, ids, image), right, mistakes)


def the_model_sees_the_image(student):
    """In the real model: with the image put at your positions, the logits are the right ones, bit for bit."""
    batch, (_, processor) = mixed(), tiny()
    index = student.visual_mask(batch.input_ids, processor.config.image_token).flatten().nonzero()[:, 0]
    require(len(index) == len(batch.visual_source), "there are not as many positions as the encoder gives embeddings")
    after = frozen(replace(batch, visual_index=index))
    require(same(frozen(batch), after), "the image is at other positions: the logits differ")
    return f"row 0: {int(batch.visual_mask[0].sum())} of {int(batch.attention_mask[0].sum())} tokens are visual; row 1: 0"


def spans(batch):
    """(answer_start [batch], length [batch]) of a batch with answers."""
    return (batch.labels != IGNORED).int().argmax(dim=1), batch.attention_mask.sum(dim=1)


def the_labels(student):
    """make_labels supervises the answer with its end token, nothing else."""
    ids, right, (start, length) = mixed().input_ids, mixed().labels, spans(mixed())
    T = torch.arange(ids.shape[1])
    answer, real = T >= start[:, None], T < length[:, None]

    def labels(where, other=IGNORED):
        return torch.where(where, ids, other)

    mistakes = {
        "the prompt is supervised, too -> the model would learn to write questions": labels(real),
        "padding is supervised -> the model would learn to write padding; use length": labels(answer),
        "the end token is left out -> it is the last of length": labels(answer & (T < length[:, None] - 1)),
        "the first token of the answer is left out -> it is at answer_start": labels((T > start[:, None]) & real),
        "what is not supervised has the label 0 -> -100 is what the loss ignores": labels(answer & real, 0),
        "the labels are shifted -> each token has its own id; the loss does the shifting": torch.roll(right, -1, 1),
    }
    compare("make_labels", call(student.make_labels, ids, start, length), right, mistakes)


def the_loss(student):
    """In the real model your labels give the right loss."""
    vlm, processor = tiny()
    batch = processor(scenes(4))
    labels = student.make_labels(batch.input_ids, *spans(batch)).flatten()
    index = (labels != IGNORED).nonzero()[:, 0]
    with torch.no_grad():
        loss = vlm.loss(replace(batch, answer_index=index - 1, answer_ids=labels[index])).item()
        compare("the loss with your labels", loss, vlm.loss(batch).item())
    return f"{len(index)} of {int(batch.attention_mask.sum())} tokens are supervised; the frozen model has a loss of {loss:.2f}"


CHECKS = [tokens_are_counted, the_mask, the_model_sees_the_image, the_labels, the_loss]
