"""Speed and memory of `RegionCropper` against what ReCLIP-type code does, in the same run.

    python benchmarks/regions.py [--json FILE] [--threads 2]

The baseline blurs the full photo with PIL for every box, pastes the sharp box back, crops the window and resizes it to
224 x 224 (bicubic). It is timed on some of the boxes and stands for all of them per region, as its cost per box hardly
varies. Both take turns, and the least time of each counts: a busy machine then disturbs them alike. JSON figures are of
wall time; CPU seconds over all threads are printed beside, and do not depend on how many cores were free.
"""

import argparse
import json
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image, ImageFilter
from skimage import data

from rar_mmdet.regions import AreaScale, BlurBackground, RegionCropper

SIZE, SIGMA = 224, 10.0
SCALE, BACKGROUND = AreaScale(), BlurBackground(SIGMA)
BASELINE_BOXES = 12


def photo_of(width, height):
    """A photograph (scikit-image's astronaut) at the wanted size."""
    return np.asarray(Image.fromarray(data.astronaut()).resize((width, height), Image.BICUBIC))


def random_boxes(width, height, count, largest, seed=0):
    """Boxes whose sides are spread evenly in log from 16 px to `largest`, anywhere in the photo."""
    rng = np.random.default_rng(seed)
    sides = np.exp(rng.uniform(np.log(16), np.log(largest), (count, 2)))
    corners = rng.uniform(0, 1, (count, 2)) * (np.array([width, height]) - sides)
    return np.concatenate([corners, corners + sides], axis=1)


def baseline(image, boxes, factors):
    """One blur of the full photo per box."""
    photo = Image.fromarray(image)
    crops = []
    for (x1, y1, x2, y2), factor in zip(boxes, factors, strict=True):
        blurred = photo.filter(ImageFilter.GaussianBlur(SIGMA))
        inside = [round(v) for v in (x1, y1, x2, y2)]
        blurred.paste(photo.crop(inside), inside)
        reach = factor * max(x2 - x1, y2 - y1) / 2
        window = [round(v) for v in ((x1 + x2) / 2 - reach, (y1 + y2) / 2 - reach)]
        window += [round(v) for v in ((x1 + x2) / 2 + reach, (y1 + y2) / 2 + reach)]
        crops.append(np.asarray(blurred.crop(window).resize((SIZE, SIZE), Image.BICUBIC)))
    return crops


def least_seconds(functions, repeats):
    """Least (wall, CPU) seconds of each function; they take turns, after one call of each to warm up."""
    least = [(float("inf"), float("inf"))] * len(functions)
    for turn in range(repeats + 1):
        for row, function in enumerate(functions):
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if turn:
                least[row] = min(least[row][0], wall), min(least[row][1], cpu)
    return least


def speedup(width, height, count, largest, repeats):
    image, boxes = photo_of(width, height), random_boxes(width, height, count, largest)
    cropper = RegionCropper(size=SIZE, scale=SCALE, background=BACKGROUND)
    some = boxes[:: max(1, count // BASELINE_BOXES)][:BASELINE_BOXES]
    ours, theirs = least_seconds(
        [partial(cropper.crop, image, boxes), partial(baseline, image, some, SCALE(some))], repeats
    )
    ours, theirs = np.array(ours) / count, np.array(theirs) / len(some)
    print(f"{width} x {height}, {count} boxes, ms per region, wall (CPU): ", end="")
    print(f"baseline {theirs[0] * 1e3:.2f} ({theirs[1] * 1e3:.2f}), ", end="")
    print(f"RegionCropper {ours[0] * 1e3:.2f} ({ours[1] * 1e3:.2f}): ", end="")
    print(f"{theirs[0] / ours[0]:.1f} ({theirs[1] / ours[1]:.1f}) times faster")
    return float(theirs[0] / ours[0])


def memory_mib(field):
    """A figure of this process in /proc (Linux), in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def print_peak():
    """Run in a process of its own: the peak of 1,000 crops above what the photo and the libraries take."""
    image, boxes = photo_of(1333, 800), random_boxes(1333, 800, 1000, 700)
    cropper = RegionCropper(size=SIZE, scale=SCALE, background=BACKGROUND)
    cropper.crop(image[:64, :64], [[5, 5, 40, 40]])
    before = memory_mib("VmRSS")
    cropper.crop(image, boxes)
    print(memory_mib("VmHWM") - before)


def print_curve():
    """What one more region costs, by photo size; the boxes grow with the photo."""
    print("One region, and what a photo costs once in ms, by photo size (CPU); boxes of 8 to 60% of the height:")
    for megapixels, (width, height) in {0.3: (640, 480), 1: (1168, 876), 4: (2336, 1752), 16: (4672, 3504)}.items():
        image = photo_of(width, height)
        sides = np.exp(np.linspace(np.log(0.08), np.log(0.6), 24)) * height
        corners = np.random.default_rng(1).uniform(0, 1, (24, 2)) * (np.array([width, height]) - sides[:, None])
        boxes = np.concatenate([corners, corners + sides[:, None]], axis=1)
        row = []
        for gap in (4, 2):
            cropper = RegionCropper(size=SIZE, scale=SCALE, background=BACKGROUND, reducing_gap=gap)
            calls = [partial(cropper.crop, image, b) for b in (boxes, np.concatenate([boxes, boxes]))]
            (_, once), (_, twice) = least_seconds(calls, 5)
            row.append(f"reducing_gap={gap}: {(twice - once) / 24 * 1e3:.2f} + {(2 * once - twice) * 1e3:.0f}")
        print(f"  {megapixels:>4} MPix  " + "   ".join(row))


def print_gpu():
    """1,000 crops of a 1333 x 800 photo on a GPU, where there is one."""
    if not torch.cuda.is_available():
        print("GPU: none at hand, nothing measured")
        return None
    image = torch.from_numpy(photo_of(1333, 800)).permute(2, 0, 1).cuda()
    boxes = random_boxes(1333, 800, 1000, 700)
    cropper = RegionCropper(size=SIZE, scale=SCALE, background=BACKGROUND, chunk_mib=4096)

    def crop():
        cropper.crop(image, boxes)
        torch.cuda.synchronize()

    crop()
    start = time.perf_counter()
    for _ in range(5):
        crop()
    milliseconds = (time.perf_counter() - start) / 5 * 1e3
    print(f"GPU ({torch.cuda.get_device_name()}): 1,000 crops of a 1333 x 800 photo in {milliseconds:.1f} ms")
    return milliseconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the figures there")
    parser.add_argument("--threads", type=int, default=2, help="threads PyTorch and OpenCV may use")
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    if options.peak:
        print_peak()
        return
    small = speedup(640, 480, 12, 400, repeats=10)
    large = speedup(1333, 800, 1000, 700, repeats=3)
    command = [sys.executable, __file__, "--peak", "--threads", str(options.threads)]
    peak = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(f"1333 x 800, 1000 boxes: peak memory {peak:.0f} MiB above the photo, of which 144 MiB are the crops")
    print_curve()
    results = {"small_photo_speedup": small, "large_photo_speedup": large, "large_photo_peak_mib": peak}
    results["gpu_ms_per_1000"] = print_gpu()
    if options.json:
        options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
