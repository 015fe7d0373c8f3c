"""Lesson 1: what a vision-language model reads. T: tokens of the longest row; batch: the rows of a batch."""

import torch  # noqa: F401 (for what you write)


def visual_tokens(width, height, patch_size, merge):
    """How many visual tokens an image becomes: a whole number.

    width, height: as the model sees it, in pixels, multiples of patch_size * merge. The image is cut into patches of
    patch_size x patch_size pixels, and merge x merge neighbouring patches become one token.
    """
    raise NotImplementedError


def visual_mask(input_ids, image_token):
    """Where the visual tokens are: bool [batch, T], True at each of them.

    input_ids [batch, T]: the rows, padded; image_token: the id of <|image_pad|>, one of which stands for each visual token.
    """
    raise NotImplementedError


def make_labels(input_ids, answer_start, length):
    """The labels [batch, T]: a token's own id where it is supervised, -100 everywhere else.

    input_ids [batch, T], padded on the right; answer_start [batch]: the position of the first token of each row's
    answer; length [batch]: how many tokens the row has without padding, the end token of the answer included.
    """
    raise NotImplementedError
