"""Preprocessing of an image for a network: resize, centre crop, shift, divide."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float, Real
from PIL import Image

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")  # Pillow's, with its antialiasing

MOST_PIXELS = 4096  # height and width that images are brought to

Triple = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of every image of a set; `(pixels - mean) / deviation` after resize and crop.

    >>> dataclasses.replace(PREPROCESSING["torchvision"], crop=288)
    Traceback (most recent call last):
    ...
    ValueError: preprocessing 'torchvision' crops 288 pixels from 256: resize must not be smaller than crop
    """

    name: str
    resize: int | None  # shorter side, pixels; None: as it is, or `crop` where the image is smaller than that
    crop: int | None  # height and width cut from the centre; None: everything
    mean: Triple  # of red, green and blue, on the scale of pixels, 0 .. 255
    deviation: Triple
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        """Raises a ValueError that names the preprocessing and what is wrong with it."""
        record = f"preprocessing {self.name!r}"
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"{record} interpolates by {self.interpolation!r}: one of {', '.join(INTERPOLATIONS)}")
        if min((n for n in (self.resize, self.crop) if n is not None), default=1) < 1 or not min(self.deviation) > 0:
            raise ValueError(f"{record} has sizes {self.resize}, {self.crop}, deviation {self.deviation}: all above 0")
        if not all(map(math.isfinite, (*self.mean, *self.deviation))):
            raise ValueError(f"{record} has mean {self.mean}, deviation {self.deviation}: all finite")
        if self.resize is not None and self.crop is not None and self.resize < self.crop:
            raise ValueError(
                f"{record} crops {self.crop} pixels from {self.resize}: resize must not be smaller than crop"
            )

    def at(self, size: int) -> "Preprocessing":
        """Makes the preprocessing for images of another size, with the same fraction cropped away.

        >>> PREPROCESSING["torchvision"].at(112).resize
        128
        """
        if self.crop is None:
            return dataclasses.replace(self, resize=size, crop=size)
        resize = None if self.resize is None else round(self.resize * size / self.crop)
        return dataclasses.replace(self, resize=resize, crop=size)


# Of ImageNet's training split.
_MEAN, _DEVIATION = (255 * 0.485, 255 * 0.456, 255 * 0.406), (255 * 0.229, 255 * 0.224, 255 * 0.225)
_HALF, _FULL, _ZERO = (127.5, 127.5, 127.5), (255.0, 255.0, 255.0), (0.0, 0.0, 0.0)
_MIDDLE = (128.0, 128.0, 128.0)

# As the published weights of each family were trained, by the reference's own evaluation code.
PREPROCESSING = {
    record.name: record
    for record in (
        # torchvision's classification models, weights V1 (references/classification/presets.py).
        Preprocessing("torchvision", 256, 224, _MEAN, _DEVIATION),
        # timm's default: mobilenetv2_100.ra_in1k and others with crop_pct 0.875.
        Preprocessing("timm", 256, 224, _MEAN, _DEVIATION, "bicubic"),
        Preprocessing("timm_mobilenet_v1", 256, 224, _HALF, _HALF, "bicubic"),  # mobilenetv1_100.ra4_e3600_r224_in1k
        # ResNet-20 .. 56 of akamaster/pytorch_resnet_cifar10: CIFAR-10 with ImageNet's mean and deviation.
        Preprocessing("cifar", None, None, _MEAN, _DEVIATION),
        # TensorFlow's MobileNets. Images that were made small before are cropped alone; originals take the "_256" form.
        Preprocessing("mobilenet_v2_tf", None, 224, _HALF, _HALF),
        Preprocessing("mobilenet_v2_tf_256", 256, 224, _HALF, _HALF),
        Preprocessing("mobilenet_v1_tf", None, 224, _MIDDLE, _MIDDLE),  # of the uint8 model, zero point 128
        Preprocessing("mobilenet_v1_tf_256", 256, 224, _MIDDLE, _MIDDLE),
        Preprocessing("none", None, None, _ZERO, _FULL),  # to [0, 1]
    )
}


def find_preprocessing(given: str | Preprocessing, image_size: int | None = None) -> Preprocessing:
    """Looks a record up by name, and fits it to images of another size.

    Raises:
      ValueError: an unknown name, or a size below 1.

    >>> find_preprocessing("mobilenet_v2_tf", 192).crop
    192
    """
    if isinstance(given, str) and given not in PREPROCESSING:
        raise ValueError(f"unknown preprocessing {given!r}: one of {', '.join(PREPROCESSING)}, or a Preprocessing")
    record = PREPROCESSING[given] if isinstance(given, str) else given
    if image_size is None:
        return record
    if not 1 <= image_size <= MOST_PIXELS:
        raise ValueError(f"image_size is {image_size}: give 1 to {MOST_PIXELS} pixels")
    return record.at(image_size)


def reshape(pixels: Real[np.ndarray, "H W c"], record: Preprocessing) -> Real[np.ndarray, "h w 3"]:
    """Resizes an image and cuts its centre out, as torchvision does.

    Args:
      pixels: uint8, or float32 on the same scale; one channel becomes three.
      record: says how.

    Returns:
      Pixels of the same type.

    Raises:
      ValueError: not one or three channels, or an empty image.

    >>> reshape(np.zeros((227, 300, 1), np.uint8), PREPROCESSING["torchvision"]).shape
    (224, 224, 3)
    """
    if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3) or not pixels.size:
        raise ValueError(f"an image of shape {pixels.shape} is not [H, W, 3] or [H, W, 1]")
    colour = np.broadcast_to(pixels, (*pixels.shape[:2], 3))
    shorter = min(colour.shape[:2])
    wanted = record.resize or max(shorter, record.crop or 0)
    if wanted != shorter:
        height, width = (wanted * side // shorter for side in colour.shape[:2])
        colour = _resize(colour, (width, height), record.interpolation)
    if record.crop is None:
        return colour
    top, left = (round((side - record.crop) / 2) for side in colour.shape[:2])
    return colour[top : top + record.crop, left : left + record.crop]


def scale(pixels: Real[np.ndarray, "*n H W 3"], record: Preprocessing) -> Float[np.ndarray, "*n H W 3"]:
    """Turns pixels into the float32 numbers that a network takes.

    >>> scale(np.array([[[0, 128, 255]]], np.uint8), PREPROCESSING["mobilenet_v1_tf"])
    array([[[-1.       ,  0.       ,  0.9921875]]], dtype=float32)
    """
    scaled = pixels.astype(np.float32)
    scaled -= np.asarray(record.mean, np.float32)  # in place: a set is large
    scaled /= np.asarray(record.deviation, np.float32)
    return scaled


def _resize(pixels: np.ndarray, size: tuple[int, int], interpolation: str) -> np.ndarray:
    method = Image.Resampling[interpolation.upper()]
    if pixels.dtype == np.uint8:
        return np.asarray(Image.fromarray(pixels).resize(size, method))
    planes = [Image.fromarray(np.ascontiguousarray(pixels[..., c], np.float32)) for c in range(3)]
    return np.stack([np.asarray(plane.resize(size, method)) for plane in planes], axis=-1)
