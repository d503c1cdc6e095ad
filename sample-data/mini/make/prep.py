"""Draw the icons and gather the photographs: writes data.npz (under 40 MB).

Icons come from the npm packages named in package.json, photographs from the
sample images that scikit-image and scikit-learn ship. Every picture is kept as
WebP; 8-bit RGBA icons of 128 px, photographs of at most 384 px a side.
"""
import argparse
import io
import json
import re
from pathlib import Path

import numpy as np
import resvg_py
import skimage
import sklearn.datasets
from PIL import Image

STYLES = {"fluent-emoji-flat": "flat", "fluent-emoji": "glossy", "noto": "soft"}
SKIP = re.compile(r"skin-tone|-light$|-medium-light$|-medium$|-medium-dark$|-dark$|flag-|facing-right")
PHOTOS = ["astronaut.png", "brick.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "grass.png",
          "gravel.png", "hubble_deep_field.jpg", "ihc.png", "moon.png", "retina.jpg", "rocket.jpg"]


def webp(image, quality):
    """The picture as WebP bytes."""
    out = io.BytesIO()
    image.save(out, "WEBP", quality=quality, method=2)
    return out.getvalue()


def draw(body, width, height):
    """One icon's SVG body as a 128 px RGBA picture."""
    svg = (f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
           f'viewBox="0 0 {width} {height}" width="128" height="128">{body}</svg>')
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=128, height=128))
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    return image if image.size == (128, 128) else image.resize((128, 128), Image.LANCZOS)


def icons(root):
    """Yield (name, style, WebP bytes) of every icon that is not a variant of another."""
    for package, style in STYLES.items():
        data = json.loads((root / package / "icons.json").read_text())
        for name, icon in sorted(data["icons"].items()):
            if SKIP.search(name):
                continue
            width = icon.get("width", data.get("width", 16))
            height = icon.get("height", data.get("height", 16))
            yield name.replace("-", " "), style, webp(draw(icon["body"], width, height), 92)


def photos():
    """Yield (name, "photo", WebP bytes) of the sample photographs."""
    files = [Path(skimage.__file__).parent / "data" / name for name in PHOTOS]
    files += [Path(sklearn.datasets.__file__).parent / "images" / name for name in ("china.jpg", "flower.jpg")]
    for path in files:
        image = Image.open(path).convert("RGB")
        image.thumbnail((384, 384), Image.LANCZOS)
        yield path.stem, "photo", webp(image, 90)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--npm", default="node_modules/@iconify-json", type=Path)
    parser.add_argument("--out", default="data.npz")
    args = parser.parse_args()
    rows = list(icons(args.npm)) + list(photos())
    ends = np.cumsum([len(blob) for _, _, blob in rows])
    blob = np.frombuffer(b"".join(blob for _, _, blob in rows), np.uint8)
    np.savez(args.out, blob=blob, ends=ends, names=[r[0] for r in rows], styles=[r[1] for r in rows])
    print(f"{len(rows)} pictures, {len(blob) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
