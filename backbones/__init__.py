"""What a model family is made of. A new family is one new file and one line of FAMILIES.

A family's file has: Config (with `from_dict`), VisionEncoder, positions, box_scale, SYSTEM.
"""

from backbones import qwen2_5_vl

FAMILIES = {"qwen2_5_vl": qwen2_5_vl}  # model_type in config.json -> the file that knows it
