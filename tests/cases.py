"""The inputs on which the model is held against transformers, live (test_reference.py) and as golden tensors."""

from conftest import picture

from data import Example


def clip(count, width, height, seed=0):
    """The frames of a video."""
    return [picture(width, height, 100 * seed + i) for i in range(count)]


def questions(answer=None):
    """Questions about a few pictures, several about one picture, and one about none."""
    first, second = picture(90, 60, 4), picture(60, 120, 5)
    asked = [([first], "What is this?"), ([first], "Where?"), ([first], "Which colour has the largest of them?")]
    asked += [([], "Ada has 12 apples."), ([second], "What?"), ([second, first], "Which one?")]
    return [Example(images, prompt, answer) for images, prompt in asked]


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
    "video of 8 frames": lambda: [Example(videos=[clip(8, 90, 60)], fps=4.0, prompt="What happens?")],
    "slow video, odd frames": lambda: [Example(videos=[clip(5, 60, 150, 1)], fps=0.8, prompt="What happens?")],
    "image and video": lambda: [
        Example([picture(60, 60, 6)], "Where?", videos=[clip(3, 60, 90, 2)], fps=2.0),
        Example([], "Ada has 12 apples."),
    ],
}
