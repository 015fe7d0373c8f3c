"""What lesson 1 checks."""

from dataclasses import replace

import torch

from course.checks import Wrong, compare, frozen, mixed, require, scenes, tiny
from data import IGNORED


def tokens_are_counted(student):
    """An image of 448 x 448 pixels is 256 visual tokens at patches of 14 and merge 2; other sizes, too."""
    for width, height, p, m in ((448, 448, 14, 2), (840, 280, 14, 2), (512, 768, 16, 2), (252, 84, 14, 3)):
        patches = width * height // p**2
        mistakes = [
            (patches, "these are patches: merge x merge of them become one token"),
            (patches // m, "divided by merge once; a block has merge x merge patches"),
            (width * height, "these are pixels"),
            (width * height // m**2, "these are pixels by merge: divide by the size of a patch, too"),
            ((width // (p * m)) ** 2, "this takes the image for a square: width and height differ"),
            (2 * patches // m**2, "an image is one slice of time: do not count it twice"),
            (patches // m**2 + 2, "the two marks around the image are not visual tokens"),
        ]
        got = student.visual_tokens(width, height, p, m)
        compare(f"visual_tokens({width}, {height}, {p}, {m})", got, patches // m**2, mistakes)


def tokens_of_the_real_processor(student):
    """The count is that of the project's own processor, for drawn scenes and for an image of another shape."""
    _, processor = tiny()
    c = processor.config.vision
    for image in (scenes(1)[0].visuals[0], scenes(1)[0].images[0].resize((300, 130))):
        visual = image if hasattr(image, "key") else type(scenes(1)[0].visuals[0])(image)
        got = student.visual_tokens(*processor.resized(visual), c.patch_size, c.merge)
        compare("visual_tokens of an image of the tiny world", got, processor.visual_tokens(visual))


def the_mask(student):
    """visual_mask is True at image tokens of every row, and nowhere else."""
    batch, (_, processor) = mixed(), tiny()
    ids, image, right = batch.input_ids, processor.config.image_token, batch.visual_mask
    start, end, pad = (processor.special[name] for name in ("vision_start", "vision_end", "endoftext"))
    first = right.clone()
    first[2, right[2].nonzero()[0, 0] + int(right[0].sum()) :] = False  # only the first of two images
    spans = right.clone()  # from the first to the last image token
    spans[2, right[2].nonzero()[0, 0] : right[2].nonzero()[-1, 0] + 1] = True
    mistakes = [
        (~right, "the mask is the wrong way round: True is for visual tokens"),
        (
            right | (ids == start) | (ids == end),
            "the marks <|vision_start|> and <|vision_end|> are text, not visual tokens",
        ),
        (right | (ids == pad), "padding is counted"),
        (ids != pad, "this is True at every token that is not padding"),
        (right[:1].expand_as(right), "the span of row 0 is used for all rows: each row has its own images"),
        (first, "only the first image of a row is found: there may be more"),
        (spans, "the text between two images is counted: from the first to the last image token is not all image"),
        (right[0], "this is the mask of row 0 alone: return [batch, T]"),
        (right.long(), "the mask has numbers: make it bool"),
        (right.float(), "the mask has numbers: make it bool"),
        (right.flatten().nonzero()[:, 0], "these are positions: the mask is bool, [batch, T]"),
    ]
    compare("visual_mask", student.visual_mask(ids.clone(), image), right, mistakes)


def the_model_sees_the_image(student):
    """In the real model: with the image put at your positions, the logits are the right ones, bit for bit."""
    _, processor = tiny()
    batch = mixed()
    found = student.visual_mask(batch.input_ids, processor.config.image_token)
    index = found.flatten().nonzero()[:, 0]
    require(len(index) == len(batch.visual_source), "there are not as many positions as the encoder gives embeddings")
    after = frozen(replace(batch, visual_mask=found, visual_index=index))
    require(torch.equal(frozen(batch), after), "the image is at other positions: the logits differ")


def places(batch):
    """(answer_start [batch], length [batch]) of a batch with answers."""
    return (batch.labels != IGNORED).int().argmax(dim=1), batch.attention_mask.sum(dim=1)


def the_labels(student):
    """make_labels supervises the answer with its end token, nothing else."""
    batch, right = mixed(), mixed().labels
    ids, (start, length) = batch.input_ids, places(mixed())
    T = torch.arange(ids.shape[1])
    answer, real = T >= start[:, None], T < length[:, None]

    def labels(where):
        return torch.where(where, ids, IGNORED)

    mistakes = [
        (labels(real), "the prompt is supervised, too: the model would learn to write questions"),
        (labels(~answer & real), "the prompt is supervised and the answer is not"),
        (labels(answer), "padding is supervised: the model would learn to write padding"),
        (labels(answer & (T < length[:, None] - 1)), "the end token is left out: the model would never stop"),
        (labels((T > start[:, None]) & real), "the first token of the answer is left out"),
        (
            labels((T >= start[:, None] - 1) & real),
            "the labels begin one token early: the answer starts at answer_start",
        ),
        (torch.where(answer & real, ids, 0), "a token that is not supervised has the label -100, not 0"),
        (torch.roll(right, -1, 1), "the labels are shifted: each token has its own id (the loss does the shifting)"),
        (labels((T >= start[0]) & (T < length[0])), "the answer of row 0 is used for all rows"),
    ]
    got = student.make_labels(ids.clone(), start, length)
    compare("make_labels", got, right, mistakes)


def the_loss(student):
    """In the real model your labels give the right loss; and decoded, they are the answers."""
    vlm, processor = tiny()
    batch = processor(scenes(4))
    found = student.make_labels(batch.input_ids.clone(), *places(batch))
    index = (found.flatten() != IGNORED).nonzero()[:, 0]
    answers = found.flatten()[index]
    said = [processor.decode([t for t in row.tolist() if t != IGNORED]) for row in found]
    for text, example in zip(said, scenes(4)):
        if isinstance(example.answer, str) and text != example.answer:
            raise Wrong(f"the supervised tokens say {text!r}, the answer is {example.answer!r}")
    with torch.no_grad():
        loss = vlm.loss(replace(batch, labels=found, answer_index=index - 1, answer_ids=answers)).item()
        compare("the loss with your labels", loss, vlm.loss(batch).item())


CHECKS = [tokens_are_counted, tokens_of_the_real_processor, the_mask, the_model_sees_the_image, the_labels, the_loss]
