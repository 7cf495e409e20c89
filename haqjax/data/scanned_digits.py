"""Digits, the default data set: scikit-learn's 1,797 scans of 8x8 pixels, which need no download."""

import jax
import numpy as np

from haqjax.data.dataset import Dataset
from haqjax.data.splits import Split, stratified

SIZES = (1077, 360, 360)  # train, search, report; 360 images give a standard error of 1.1 points at 95 %
LARGEST = 512  # pixels: 5.3 GiB of images
WHITE = 16.0  # the largest pixel value of the scans


def digits(*, seed: int = 0, image_size: int = 32) -> Dataset:
    """Loads the digits, enlarged.

    Args:
      seed: which images go to which split; the split is stratified.
      image_size: height and width to which the 8x8 scans are brought, by bilinear interpolation.

    Returns:
      1,077 images to train on, 360 to search by, 360 to report. Images have three equal channels in [0, 1]; the
      background is 0, what a convolution pads with.

    Raises:
      ValueError: a size below 1, or of which memory does not hold the images.

    >>> digits(image_size=8).report.images.shape
    (360, 8, 8, 3)
    """
    from sklearn.datasets import load_digits  # slow to import, hence not above

    if not 1 <= image_size <= LARGEST:
        raise ValueError(f"image_size is {image_size}: give 1 to {LARGEST} pixels for the digits")
    scans, labels = load_digits(return_X_y=True)
    grey = scans.reshape(-1, 8, 8, 1).astype(np.float32) / np.float32(WHITE)
    enlarged = jax.image.resize(grey, (len(grey), image_size, image_size, 1), "bilinear")
    everything = Split(np.repeat(np.asarray(enlarged), 3, axis=-1), labels.astype(np.int32))
    train, search, report = (everything.take(rows) for rows in stratified(labels, SIZES, seed))
    return Dataset("digits", 10, train, search, report)
