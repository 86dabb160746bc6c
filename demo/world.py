"""The demo world: its 600 classes, their long tail, and the renderer that draws photos and crops of them.

Every picture is a function of a numpy generator, so the same seed gives the same bytes. Photos (``draw_photo``) and
the crops that train the two demo models (``draw_crop``) go through the same brushes; they differ in how the scene
is laid out. Colours are RGB in [0, 255], lengths are pixels, boxes are ``(x1, y1, x2, y2)`` with the right and
lower edge excluded.
"""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass

import cv2
import numpy as np

WORLD_VERSION = 1
COLOURS: dict[str, tuple[float, float, float]] = {  # hue in degrees, saturation, value, before the jitter
    'red': (0, 0.85, 0.82), 'orange': (27, 0.90, 0.95), 'yellow': (53, 0.85, 0.95), 'green': (122, 0.70, 0.62),
    'teal': (178, 0.75, 0.66), 'blue': (221, 0.80, 0.80), 'purple': (277, 0.65, 0.68), 'pink': (332, 0.48, 0.95),
    'brown': (24, 0.62, 0.46), 'gray': (210, 0.05, 0.58),
}  # fmt: skip
PATTERNS = ("plain", "striped", "dotted", "checkered", "ringed")
SHAPES: tuple[str, ...] = ("circle", "square", "triangle", "diamond", "pentagon", "hexagon")
SHAPES += ("star", "cross", "heart", "crescent", "arrow", "drop")
CLASS_NAMES = tuple(f"{pattern} {colour} {shape}" for colour in COLOURS for pattern in PATTERNS for shape in SHAPES)
NUM_CLASSES = len(CLASS_NAMES)
# Attribute indices (colour, pattern, shape) of every class, in the order of CLASS_NAMES.
ATTRIBUTES = np.array(
    [(c, p, s) for c in range(len(COLOURS)) for p in range(len(PATTERNS)) for s in range(len(SHAPES))]
)
_TAIL_SEED = 240313805  # fixed: which classes are rare must not depend on the seed, as trained weights do
RARE_MAX, COMMON_MAX = 2, 6  # photos in the train split; LVIS has 10 and 100 for 250 times as many photos


def train_image_quota(num_instances: int = 2880) -> np.ndarray:
    """Expected train objects per class, (600,) float64: a Zipf tail over a fixed random order of the classes."""
    rank = np.random.default_rng(_TAIL_SEED).permutation(NUM_CLASSES)
    weight = 1.0 / (rank + 12.0) ** 0.88
    return weight / weight.sum() * num_instances


def rare_classes() -> np.ndarray:
    """Classes (indices) in at most two train photos; neither demo model ever sees one as the truth."""
    return np.flatnonzero(train_image_quota() <= RARE_MAX)


@dataclass(frozen=True)
class Thing:
    """One object to draw: its class, the centre and the longer side of its box, in pixels of the canvas."""

    class_index: int
    cx: float
    cy: float
    side: float


# ---- brushes -------------------------------------------------------------------------------------------------------


def _polar(angles_deg: np.ndarray, radii: np.ndarray | float) -> np.ndarray:
    angles = np.deg2rad(angles_deg)
    return np.stack([np.sin(angles) * radii, -np.cos(angles) * radii], 1)


def _outlines() -> dict[str, np.ndarray]:
    """Unit outlines, (P, 2) float64 x-right y-down around the origin, one per shape."""
    turn = np.linspace(0, 360, 48, endpoint=False)
    t = np.deg2rad(turn)
    outer, inner = np.linspace(-150, 150, 30), np.linspace(112, -112, 24)
    heart = np.stack(
        [16 * np.sin(t) ** 3, -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))], 1
    )
    return {
        'circle': _polar(turn, 1.0),
        'square': np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float),
        'triangle': np.array([(0, -1), (1, 0.8), (-1, 0.8)], float),
        'diamond': np.array([(0, -1), (0.62, 0), (0, 1), (-0.62, 0)], float),
        'pentagon': _polar(np.arange(5) * 72.0, 1.0),
        'hexagon': _polar(np.arange(6) * 60.0 + 30, 1.0),
        'star': _polar(np.arange(10) * 36.0, np.where(np.arange(10) % 2 == 0, 1.0, 0.42)),
        'cross': np.array([(-.34, -1), (.34, -1), (.34, -.34), (1, -.34), (1, .34), (.34, .34), (.34, 1), (-.34, 1),
                           (-.34, .34), (-1, .34), (-1, -.34), (-.34, -.34)]),
        'heart': heart / 16,
        'crescent': np.concatenate([_polar(outer - 90, 1.0), _polar(inner - 90, 0.72) + np.array([0.42, 0.0])]),
        'arrow': np.array([(0, -1), (.8, -.1), (.3, -.1), (.3, 1), (-.3, 1), (-.3, -.1), (-.8, -.1)]),
        'drop': np.stack([0.72 * np.sin(t) * np.sin(t / 2) ** 1.3, -np.cos(t)], 1),
    }  # fmt: skip


_OUTLINES = _outlines()


def _pose(rng: np.random.Generator, shape: str, side: float) -> tuple[np.ndarray, np.ndarray]:
    """Random linear map of a unit outline: (outline in pixels around its box centre (P, 2), inverse map (2, 2))."""
    angle = np.deg2rad(rng.uniform(-18, 18))
    squeeze, shear = rng.uniform(0.84, 1.19), rng.uniform(-0.12, 0.12)
    flip = -1.0 if rng.random() < 0.5 else 1.0
    rotate = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = rotate @ np.array([[squeeze * flip, shear], [0.0, 1.0]])
    outline = _OUTLINES[shape] @ matrix.T
    low, high = outline.min(0), outline.max(0)
    scale = side / (high - low).max()
    return (outline - (low + high) / 2) * scale, np.linalg.inv(matrix * scale)


def _ink(rng: np.random.Generator, colour: str) -> tuple[np.ndarray, np.ndarray]:
    """Base and second tone of an object, float32 RGB in [0, 255]."""
    hue, saturation, value = COLOURS[colour]
    hue = (hue + rng.uniform(-7, 7)) % 360
    saturation = np.clip(saturation + rng.uniform(-0.10, 0.10) * min(1.0, saturation * 4), 0, 1)
    value = np.clip(value + rng.uniform(-0.10, 0.08), 0.1, 1)
    base = np.array(colorsys.hsv_to_rgb(hue / 360, saturation, value), np.float32) * 255
    mix = rng.uniform(0.45, 0.75)
    towards = np.float32(255.0 if rng.random() < 0.5 else 10.0)
    return base, base * np.float32(1 - mix) + towards * np.float32(mix)


def _pattern(rng: np.random.Generator, pattern: str, u: np.ndarray, v: np.ndarray) -> np.ndarray | None:
    """Where the second tone goes, as a boolean of the object's own coordinates (about [-1, 1]); ``None`` for plain."""
    periods, phase_u, phase_v = rng.uniform(1.5, 2.3), rng.random(), rng.random()
    turn = rng.uniform(0, math.pi)
    if pattern == "plain":
        return None
    if pattern == "ringed":
        return np.asarray((np.sqrt(u * u + v * v) * (periods * 1.2) + phase_u) % 1 < 0.5)
    if pattern == "striped":
        return np.asarray(((u * math.cos(turn) + v * math.sin(turn)) * periods + phase_u) % 1 < 0.5)
    if pattern == "checkered":
        return np.asarray(((u * periods + phase_u) % 1 < 0.5) ^ ((v * periods + phase_v) % 1 < 0.5))
    fu, fv = (u * periods + phase_u) % 1 - 0.5, (v * periods + phase_v) % 1 - 0.5
    return np.asarray(fu * fu + fv * fv < 0.095)


def _paint(canvas: np.ndarray, thing: Thing, rng: np.random.Generator) -> tuple[np.ndarray, tuple[int, int]]:
    """Paint one object onto a float32 canvas in place.

    Returns:
        Its coverage, (h, w) float32 in [0, 1], and the canvas position (x, y) of its corner (may be negative).
    """
    pattern, colour, shape = CLASS_NAMES[thing.class_index].split()
    zoom = 4 if thing.side < 48 else 2  # supersampling: thin patterns of small objects need more of it
    outline, inverse = _pose(rng, shape, thing.side)
    half = int(np.ceil(thing.side / 2)) + 2
    left, top = int(np.floor(thing.cx)) - half, int(np.floor(thing.cy)) - half
    size = 2 * half + 1
    centre = np.array([thing.cx - left, thing.cy - top])
    mask = np.zeros((size * zoom, size * zoom), np.uint8)
    cv2.fillPoly(mask, [np.round((outline + centre) * zoom * 16).astype(np.int32)], 255, cv2.LINE_AA, 4)
    grid = (np.arange(size * zoom, dtype=np.float32) + 0.5) / zoom
    dx, dy = (grid - float(centre[0]))[None, :], (grid - float(centre[1]))[:, None]
    (ux, uy), (vx, vy) = inverse.tolist()  # plain floats keep the grids float32
    u, v = ux * dx + uy * dy, vx * dx + vy * dy
    base, second = _ink(rng, colour)
    where = _pattern(rng, pattern, u, v)
    share = np.zeros((size, size), np.float32)
    if where is not None:
        share = cv2.resize(where.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)
    alpha = cv2.resize(mask, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
    light = 1 + rng.uniform(-0.2, 0.2) * (np.arange(size, dtype=np.float32) / size - 0.5)[:, None]
    light = light + rng.uniform(-0.2, 0.2) * (np.arange(size, dtype=np.float32) / size - 0.5)[None, :]
    paint = (base + share[..., None] * (second - base)) * light[..., None].astype(np.float32)
    height, width = canvas.shape[:2]
    x1, y1, x2, y2 = max(left, 0), max(top, 0), min(left + size, width), min(top + size, height)
    if x1 < x2 and y1 < y2:
        inside = (slice(y1 - top, y2 - top), slice(x1 - left, x2 - left))
        target = canvas[y1:y2, x1:x2]
        target += alpha[inside][..., None] * (paint[inside] - target)
    return alpha, (left, top)


def _muted(rng: np.random.Generator) -> tuple[float, float, float]:
    red, green, blue = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0, 0.35), rng.uniform(0.2, 0.9))
    return red * 255, green * 255, blue * 255


def draw_background(rng: np.random.Generator, width: int, height: int, clutter: float = 1.0) -> np.ndarray:
    """Cluttered ground without any object: soft colour noise plus muted strokes, (height, width, 3) float32."""
    coarse = (max(2, round(height / 60) + 1), max(2, round(width / 60) + 1))
    tone = np.array(_muted(rng), np.float32)
    noise = tone + rng.normal(0, 26, (*coarse, 3)).astype(np.float32)
    ground = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    fine = rng.normal(0, 9, (height // 3 + 2, width // 3 + 2, 1)).astype(np.float32)
    ground += cv2.resize(fine, (width, height), interpolation=cv2.INTER_LINEAR)[..., None]
    for _ in range(rng.poisson(clutter * (4 + width * height / 2200))):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        length = float(np.exp(rng.uniform(np.log(4), np.log(0.35 * max(width, height) + 5))))
        kind, colour = rng.integers(4), _muted(rng)
        if kind == 0:
            turn = rng.uniform(0, 2 * np.pi)
            end = (int(x + np.cos(turn) * length), int(y + np.sin(turn) * length))
            cv2.line(ground, (int(x), int(y)), end, colour, int(rng.integers(1, 4)), cv2.LINE_AA)
        elif kind == 1:
            axes = (max(1, int(length / 2)), max(1, int(length * rng.uniform(0.1, 0.4))))
            turn, width_px = rng.uniform(0, 360), int(rng.integers(1, 3))
            cv2.ellipse(ground, (int(x), int(y)), axes, turn, 0, 360, colour, width_px, cv2.LINE_AA)
        else:
            corners = rng.normal(0, length / 3, (int(rng.integers(3, 7)), 2)) + np.array([x, y])
            cv2.fillPoly(ground, [np.round(corners).astype(np.int32)], colour, cv2.LINE_AA)
    return ground


def _develop(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Camera: exposure, colour cast, contrast, a little lens blur and sensor noise; float32 canvas to uint8 photo."""
    cast = rng.uniform(0.88, 1.10) * rng.uniform(0.96, 1.04, 3).astype(np.float32)
    canvas = (canvas - 127) * np.float32(rng.uniform(0.88, 1.06)) + 127
    canvas = cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.3, 0.6)) * cast
    canvas += np.float32(rng.uniform(2, 6)) * rng.standard_normal(canvas.shape, dtype=np.float32)
    return np.clip(canvas, 0, 255).astype(np.uint8)


# ---- pictures ------------------------------------------------------------------------------------------------------


def draw_photo(
    rng: np.random.Generator, things: list[Thing], width: int = 480, height: int = 360
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Draw a photo; later things lie in front of earlier ones.

    Returns:
        The photo, (height, width, 3) uint8 RGB, and for every thing the mask of what can be seen, (height, width) bool.
    """
    canvas = draw_background(rng, width, height)
    owner = np.full((height, width), -1, np.int32)
    for index, thing in enumerate(things):
        alpha, (left, top) = _paint(canvas, thing, rng)
        x1, y1 = max(left, 0), max(top, 0)
        seen = alpha[y1 - top : height - top, x1 - left : width - left] > 0.5
        owner[y1 : y1 + seen.shape[0], x1 : x1 + seen.shape[1]][seen] = index
    return _develop(rng, canvas), [owner == index for index in range(len(things))]


def draw_crop(
    rng: np.random.Generator,
    class_index: int,
    neighbours: np.ndarray,
    window: float,
    canvas_size: int,
    blurred: float = 0.0,
) -> np.ndarray:
    """Draw the neighbourhood of one object, at its native resolution, as a square picture.

    Args:
        rng: Source of every draw.
        class_index: Class of the object in the middle.
        neighbours: Classes that may stand around it, (M,) integers.
        window: Side of the picture over the longer side of the object, about 1 to 3.
        canvas_size: Side of the picture in pixels.
        blurred: Sigma of the blur of all but the object (shallow depth of field), as a share of the side; 0 is none.

    Returns:
        (canvas_size, canvas_size, 3) uint8 RGB.
    """
    side = canvas_size / window
    canvas = draw_background(rng, canvas_size, canvas_size)
    middle = canvas_size / 2 + rng.normal(0, 0.02, 2) * canvas_size
    behind: list[Thing] = []
    front: list[Thing] = []
    for _ in range(rng.integers(0, 4)):
        other = side * float(np.exp(rng.uniform(np.log(0.4), np.log(1.8))))
        turn, gap = rng.uniform(0, 2 * np.pi), (side + other) / 2 * rng.uniform(0.78, 1.3)
        thing = Thing(
            int(rng.choice(neighbours)), middle[0] + np.cos(turn) * gap, middle[1] + np.sin(turn) * gap, other
        )
        (front if rng.random() < 0.4 and not blurred else behind).append(thing)
    for thing in behind:
        _paint(canvas, thing, rng)
    if blurred:
        canvas = cv2.GaussianBlur(canvas, (0, 0), blurred * canvas_size)
    for thing in [Thing(class_index, middle[0], middle[1], side), *front]:
        _paint(canvas, thing, rng)
    return _develop(rng, canvas)


def blur_outside(picture: np.ndarray, window: float, sigma: float) -> np.ndarray:
    """Blur a crop of ``draw_crop`` outside its middle object's box (RAR sec. 3.2); sigma is a share of its side."""
    size = picture.shape[0]
    half = int(np.ceil(size / window / 2))
    low, high = max(size // 2 - half, 0), min(size // 2 + half + 1, size)
    result = cv2.GaussianBlur(picture, (0, 0), max(sigma * size, 0.3))
    result[low:high, low:high] = picture[low:high, low:high]
    return result
