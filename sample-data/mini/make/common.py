"""What the scripts share: the subjects, the palette and the pictures."""
import io
import os

import numpy as np
import torch
from PIL import Image

SUBJECTS = {  # word in captions -> icon name in the three sets
    "cat": "cat face", "dog": "dog face", "fox": "fox", "frog": "frog", "owl": "owl", "penguin": "penguin",
    "fish": "fish", "butterfly": "butterfly", "apple": "red apple", "lemon": "lemon", "strawberry": "strawberry",
    "pizza": "pizza", "mushroom": "mushroom", "sunflower": "sunflower", "cactus": "cactus", "tree": "deciduous tree",
    "star": "star", "moon": "crescent moon", "house": "house", "car": "automobile", "rocket": "rocket",
    "umbrella": "umbrella", "heart": "red heart", "ghost": "ghost",
}
STYLES = ["flat", "glossy", "soft"]
PALETTE = {
    "white": (255, 255, 255), "black": (24, 24, 28), "red": (222, 70, 70), "yellow": (245, 205, 80),
    "green": (80, 170, 100), "blue": (70, 120, 220), "purple": (140, 90, 190), "pink": (245, 165, 190),
}
COLOURS = list(PALETTE)


def load_pictures(path):
    """Read data.npz: icons as one RGBA array with their (name, style), photographs as a list of RGB arrays."""
    data = np.load(path)
    blob, ends = data["blob"].tobytes(), data["ends"]
    starts = np.concatenate([[0], ends[:-1]])
    icons, keys, photos = [], [], []
    for start, end, name, style in zip(starts, ends, data["names"], data["styles"]):
        image = Image.open(io.BytesIO(blob[start:end]))
        if style == "photo":
            photos.append(np.asarray(image.convert("RGB")))
        else:
            icons.append(np.asarray(image.convert("RGBA")))
            keys.append((str(name), str(style)))
    return np.stack(icons), keys, photos


def on_colour(rgba, colour):
    """An RGBA picture over one colour, as float RGB 0..255."""
    rgba = rgba.astype(np.float32)
    alpha = rgba[..., 3:] / 255
    return rgba[..., :3] * alpha + np.asarray(colour, np.float32) * (1 - alpha)


def to_tensor(pictures):
    """Float or 8-bit RGB arrays 0..255 as one NCHW tensor in -1..1."""
    return torch.from_numpy(np.stack(pictures).astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1


def save_grid(tensor, columns, path):
    """Write NCHW pictures in -1..1 as one PNG of rows and columns."""
    pictures = ((tensor.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    rows = [np.concatenate(list(pictures[i:i + columns]), 1) for i in range(0, len(pictures), columns)]
    Image.fromarray(np.concatenate(rows)).save(path)


def save_atomic(state, path):
    """torch.save that never leaves half a file behind."""
    torch.save(state, f"{path}.new")
    os.replace(f"{path}.new", path)

