"""transformers on the same weights and the same examples: the other side of the comparison. Imported only where it is
installed (requirements-dev.txt); makes the golden tensors: `python tests/reference.py`."""

import sys
from pathlib import Path

import torch
from PIL import Image
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import (
    Qwen2VLImageProcessorPil,
)

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

GOLDEN = Path(__file__).parent / "golden.safetensors"
TAIL = 12  # positions at the end of each row whose logits are kept


class Reference:
    def __init__(self, folder, dtype=torch.float32):
        self.model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=dtype).eval()
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(folder / "tokenizer.json"), pad_token="<|endoftext|>", padding_side="left"
        )
        self.images = Qwen2VLImageProcessorPil.from_pretrained(folder)

    def text(self, example, grids):
        """The chat template with one image token for each visual token, as a string."""
        user = "".join(
            "<|vision_start|>" + "<|image_pad|>" * (int(grid.prod()) // 4) + "<|vision_end|>" for grid in grids
        )
        return (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            f"<|im_start|>user\n{user}{example.prompt}<|im_end|>\n<|im_start|>assistant\n"
        )

    def inputs(self, examples):
        """What transformers takes, left-padded. A special token in a user's text is text for us; a space inside it
        keeps it text for the reference too, and is taken out of ours by the caller."""
        pictures = [
            image if isinstance(image, Image.Image) else Image.open(image) for e in examples for image in e.images
        ]
        seen = self.images(pictures, return_tensors="pt") if pictures else {}
        grids = iter(seen["image_grid_thw"] if pictures else [])
        texts = [self.text(e, [next(grids) for _ in e.images]) for e in examples]
        tokens = self.tokenizer(texts, return_tensors="pt", padding=True, return_token_type_ids=False)
        image = self.model.config.image_token_id
        return {**tokens, **seen, "mm_token_type_ids": (tokens["input_ids"] == image).int()}

    @torch.no_grad()
    def logits(self, inputs):
        return self.model(**inputs).logits

    def generate(self, inputs, count):
        new = self.model.generate(**inputs, max_new_tokens=count, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        ends = set(self.model.generation_config.eos_token_id)
        texts = []
        for row in new.tolist():
            stop = next((i for i, t in enumerate(row) if t in ends), len(row))
            texts.append(row[:stop])
        return texts


def main():
    import tempfile

    from cases import CASES
    from conftest import write_checkpoint

    from model import write_safetensors

    with tempfile.TemporaryDirectory() as folder:
        reference = Reference(write_checkpoint(Path(folder)))
        golden = {}
        for name, examples in CASES.items():
            if name == "not ASCII":
                continue  # its special token in the text is ours alone
            inputs = reference.inputs(examples())
            golden[f"{name}: input_ids"] = inputs["input_ids"]
            golden[f"{name}: logits"] = reference.logits(inputs)[:, -TAIL:].clone()
            if "pixel_values" in inputs:
                golden[f"{name}: patches"] = inputs["pixel_values"][::9, ::7].clone()
    write_safetensors(GOLDEN, golden, {"made by": "python tests/reference.py, transformers 5.23.0"})
    print(f"{GOLDEN}: {GOLDEN.stat().st_size // 1024} KB")


if __name__ == "__main__":
    main()
