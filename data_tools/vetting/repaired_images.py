"""Vetting rule that repairs stored images: EXIF orientation, 16 bits, colour profiles, transparency, palettes.

Not needed for shards made by data_tools/download_shards.py, which repairs images (samples/image_repair.py) before it
stores them.
"""

import numpy as np

from data_tools.samples.image_repair import ImageFault, ImageRule, repair_image
from data_tools.vetting.vetting_rule import Finding, Sample, VettingRule
from leam_mm.data.image_file import open_image
from leam_mm.data.image_limits import MAX_PIXELS


class RepairedImages(VettingRule):
    """Repairs each image that is not upright, 8 bit and sRGB; list it first. A repair needs --materialise."""

    name = "repaired_images"

    def judge(self, samples: list[Sample]) -> list[Finding]:
        """Repair the images that need it."""
        return [self._repair(sample) for sample in samples]

    def _repair(self, sample: Sample) -> Finding:
        try:
            repaired = repair_image(sample.content, ImageRule(format="png", max_pixels=MAX_PIXELS))
        except ImageFault as fault:
            return Finding(fault.value, False, fault.reason)
        if all(name.startswith("strip:") for name in repaired.transforms):  # the pixels need no repair
            return Finding("sound")
        repairs = ";".join(name for name in repaired.transforms if not name.startswith("encode:"))
        pixels = np.asarray(open_image(repaired.content, ("PNG",)))
        return Finding(repairs, pixels=pixels, transform=repairs)
