import torch


def visual_tokens(width, height, patch_size, merge):
    side = patch_size * merge
    return (width // side) * (height // side)


def visual_mask(input_ids, image_token):
    return input_ids == image_token


def make_labels(input_ids, answer_start, length):
    T = torch.arange(input_ids.shape[1])
    supervised = (T >= answer_start[:, None]) & (T < length[:, None])
    return torch.where(supervised, input_ids, -100)
