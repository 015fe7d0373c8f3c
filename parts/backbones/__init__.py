"""A model family is one file, and one line of FAMILIES. The file has

    Config          config.json -> what model.py builds (from_dict; by_axis shares out the rotary frequencies)
    VisionEncoder   (patches, grids) -> for each visual token its embedding and, after it, what is added to it later on
    spans           how an image or a video stands in a prompt
    positions       (time, height, width) of each token of a row
    box_scale       the numbers in which the model writes boxes; BOX_END: where they end
    TOWERS          how the hub names the tensors
"""

from parts.backbones import qwen2_5_vl, qwen3_vl

FAMILIES = {"qwen2_5_vl": qwen2_5_vl, "qwen3_vl": qwen3_vl}  # model_type in config.json -> the file that knows it
