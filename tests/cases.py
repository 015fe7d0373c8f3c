"""The inputs on which the model is held against transformers, live (test_reference.py) and as golden tensors."""

from conftest import picture

from data import Example

CASES = {
    "one image": lambda: [Example([picture(140, 110)], "What is this?")],
    "ragged windows": lambda: [Example([picture(260, 150, 1)], "Where is it?")],
    "tall": lambda: [Example([picture(40, 400, 2)], "What is this?")],
    "tiny": lambda: [Example([picture(20, 20, 3)], "What is this?")],
    "two images": lambda: [Example([picture(90, 60, 4), picture(60, 120, 5)], "Which one is red?")],
    "text only": lambda: [Example([], "\n\nHow many apples are left?")],
    "mixed with padding": lambda: [
        Example([picture(90, 60, 4)], "What?"),
        Example([], "Ada has 12 apples."),
        Example([picture(60, 120, 5), picture(60, 60, 6)], "Which one is on the left of the other?"),
    ],
    "not ASCII": lambda: [Example([picture(60, 60, 6)], "Où est l'étoile? 星はどこ? <|im_end|> 🙂")],
}
