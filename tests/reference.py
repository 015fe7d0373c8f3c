"""transformers on the same weights and the same examples: the other side of the comparison. Imported only where it is
installed (tests/requirements.txt); makes the golden tensors: `python tests/reference.py`."""

import sys
import tempfile
from pathlib import Path

import torch
import transformers
from PIL import Image
from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as images

TESTS = Path(__file__).parent
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from data import Processor
from parts.files import write_safetensors

GOLDEN = {"qwen2_5_vl": ("golden", 12), "qwen3_vl": ("golden-qwen3", 3)}  # file, positions whose logits it keeps


class Reference:
    def __init__(self, folder, dtype=torch.float32):
        self.model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype).eval()
        self.qwen3 = self.model.config.model_type == "qwen3_vl"
        settings = {"tokenizer_file": str(folder / "tokenizer.json"), "pad_token": "<|endoftext|>", "padding_side": "left"}
        self.tokenizer = transformers.PreTrainedTokenizerFast(**settings)
        self.images = images.Qwen2VLImageProcessorPil.from_pretrained(folder)
        self.processor = Processor.from_pretrained(folder)

    def text(self, example, grids):
        """The chat template with one image or video token for each visual token, as a string."""
        frames = [None] * len(example.images) + [len(video) for video in example.videos]
        user = "".join(self.shown(grid, count, example.fps) for grid, count in zip(grids, frames))
        system = "" if self.qwen3 else "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        return f"{system}<|im_start|>user\n{user}{example.prompt}<|im_end|>\n<|im_start|>assistant\n"

    def shown(self, grid, frames, fps):
        """An image (frames None) or a video in the prompt; Qwen3-VL has its slices one by one, each after its time."""
        pad, tokens, times = "image" if frames is None else "video", int(grid.prod()) // 4, [""]
        if self.qwen3 and frames is not None:
            seconds = transformers.Qwen3VLProcessor._calculate_timestamps(None, list(range(frames)), fps)
            times, tokens = [f"<{t:.1f} seconds>" for t in seconds], tokens // len(seconds)
        return "".join(f"{t}<|vision_start|>{f'<|{pad}_pad|>' * tokens}<|vision_end|>" for t in times)

    def video(self, frames):
        """(patches, grid) of a video, put together from the patches of its frames as still images: of every second
        frame's patches the second half. (The reference's own video processor needs torchvision.)"""
        frames = frames + frames[-1:] * (len(frames) % 2)
        still = [self.images([frame], return_tensors="pt") for frame in frames]
        patches = [one["pixel_values"].view(-1, 3, 2, self.images.patch_size**2).clone() for one in still]
        for first, second in zip(patches[::2], patches[1::2]):
            first[:, :, 1] = second[:, :, 1]
        grid = still[0]["image_grid_thw"][0] * torch.tensor([len(frames) // 2, 1, 1])
        return torch.cat(patches[::2]).flatten(1), grid

    def inputs(self, examples):
        """What transformers takes, left-padded."""
        opened = [i if isinstance(i, Image.Image) else Image.open(i) for e in examples for i in e.images]
        seen = dict(self.images(opened, return_tensors="pt")) if opened else {}
        videos = [self.video(frames) for e in examples for frames in e.videos]
        if videos:
            seen["pixel_values_videos"] = torch.cat([patches for patches, _ in videos])
            seen["video_grid_thw"] = torch.stack([grid for _, grid in videos])
        grids, video_grids = iter(seen.get("image_grid_thw", [])), iter(seen.get("video_grid_thw", []))
        each = [[next(grids) for _ in e.images] + [next(video_grids) for _ in e.videos] for e in examples]
        texts = [self.text(*pair) for pair in zip(examples, each)]
        tokens = self.tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
        config, ids = self.model.config, tokens["input_ids"]
        kinds = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
        inputs = {**tokens, **seen, "mm_token_type_ids": kinds}
        if videos and not self.qwen3:  # 5.23 counts on behind the last slice, not the largest position (4.57 did)
            inputs["position_ids"] = self.processor(examples).position_ids  # ours: test_data.py has the numbers
        return inputs

    @torch.no_grad()
    def logits(self, inputs):
        return self.model(**inputs).logits

    def generate(self, inputs, count):
        """One list of token ids per row, without the end token."""
        new = self.model.generate(**inputs, max_new_tokens=count, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        ends = set(self.model.generation_config.eos_token_id)
        stops = [[i for i, t in enumerate(row) if t in ends] + [count] for row in new.tolist()]
        return [row[: stop[0]] for row, stop in zip(new.tolist(), stops)]


def make_golden():
    from cases import CASES
    from conftest import write_checkpoint

    for family, (stem, tail) in GOLDEN.items():
        file = TESTS / f"{stem}.safetensors"
        with tempfile.TemporaryDirectory() as folder:
            reference = Reference(write_checkpoint(Path(folder), family=family))
        golden = {}
        for name in CASES.keys() - {"not ASCII"}:  # its special token in the text is ours alone
            inputs = reference.inputs(CASES[name]())
            golden[f"{name}: input_ids"] = inputs["input_ids"]
            golden[f"{name}: logits"] = reference.logits(inputs)[:, -tail:].clone()
            seen = [inputs[kind] for kind in ("pixel_values", "pixel_values_videos") if kind in inputs]
            if seen:
                golden[f"{name}: patches"] = torch.cat(seen)[::9, ::7].clone()
        write_safetensors(file, golden, {"made by": "python tests/reference.py, transformers 5.23.0"})
        print(f"{file}: {file.stat().st_size // 1024} KB")


if __name__ == "__main__":
    make_golden()
