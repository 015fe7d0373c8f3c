"""Videos in a batch: slices of two frames, positions by the clock; and what parts rows that show the same image."""

import torch
from conftest import picture

from data import Example, Processor


def test_a_video_is_slices_of_two_frames_and_its_positions_run_by_the_clock(processor):
    """8 frames of 56 x 56 pixels: 4 slices of 2 x 2 tokens. At 4 frames a second a slice lasts half a second, and there
    are 2 positions a second: times 0, 1, 2, 3. At 1 frame a second: 0, 4, 8, 12, and the text continues at 13."""
    frames = [picture(56, 56, i) for i in range(8)]
    processor = Processor(processor.config, processor.tokenizer, processor.preprocessor, min_pixels=3136)
    for fps, times in ((4.0, [0, 1, 2, 3]), (1.0, [0, 4, 8, 12]), (3.0, [0, 1, 2, 4])):
        batch = processor([Example(videos=[frames], fps=fps, prompt="What?")])
        assert batch.grids.tolist() == [[4, 4, 4]] and int(batch.visual_mask.sum()) == 16
        seen = batch.position_ids[:, 0, batch.visual_mask[0]]
        start = int(seen.min())
        assert (seen[0] - start).tolist() == [t for t in times for _ in range(4)]
        assert (seen[1] - start).tolist() == [0, 0, 1, 1] * 4 and (seen[2] - start).tolist() == [0, 1] * 8
        after = int(batch.visual_index.max()) + 1
        assert batch.position_ids[:, 0, after].tolist() == [start + max(times[-1], 1) + 1] * 3


def test_an_odd_last_frame_is_repeated_and_a_still_image_is_two_equal_frames(processor):
    frames = [picture(60, 60, i) for i in range(3)]

    def patches(*clips, images=()):
        return processor([Example(images=list(images), videos=list(clips))]).patches

    assert torch.equal(patches(frames), patches([*frames, frames[-1]]))
    assert torch.equal(patches(images=frames[:1]), patches(frames[:1] * 2))
    mixed = patches(frames[:2], images=frames[2:])  # with a video in the batch, an image has two frames as well
    assert torch.equal(mixed, torch.cat([patches(images=frames[2:]), patches(frames[:2])]))


def test_videos_train_and_answer_batched_as_alone(vlm, processor):
    clips = [[picture(60, 60, 10 * k + i) for i in range(4 + k)] for k in range(3)]
    asks = [Example(videos=[clip], fps=2.0 + k, prompt="What happens?") for k, clip in enumerate(clips)]
    asks.append(Example([], "17 + 25 ="))
    assert vlm.generate(processor(asks), 6) == [vlm.generate(processor([ask]), 6)[0] for ask in asks]


def test_questions_with_different_text_before_the_image_do_not_share_a_row(processor):
    image = picture(60, 60)
    asks = [Example([image], f"{word} <image> is?", "x") for word in ("What", "What", "Where")]
    assert processor(asks, share_images=True).examples == [(0, 1), (0, 2), (1, 0)]
