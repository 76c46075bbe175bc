"""Stored pictures of strangers' shards mended: EXIF orientation, 16 bits, colour profiles, transparency, palettes.

Our own shards need it not, since data_tools/download_shards.py does the same (samples/image_repair.py) before it
stores a picture.
"""

from io import BytesIO

import numpy as np
from PIL import Image

from data_tools.samples.image_repair import ImageFault, ImageRule, repair_image
from data_tools.vetting.vetting_rule import MAX_PIXELS, Finding, Sample, VettingRule


class RepairedImages(VettingRule):
    """Changes each picture that is not upright, 8 bit and sRGB; list it first. A change needs --materialise."""

    name = "repaired_images"

    def judge(self, samples: list[Sample]) -> list[Finding]:
        """Mend where something is to be mended."""
        return [self._mend(sample) for sample in samples]

    def _mend(self, sample: Sample) -> Finding:
        try:
            repaired = repair_image(sample.content, ImageRule(format="png", max_pixels=MAX_PIXELS))
        except ImageFault as fault:
            return Finding(fault.value, False, fault.reason)
        if not repaired.transforms:
            return Finding("sound")
        told = ";".join(name for name in repaired.transforms if not name.startswith("encode:"))
        pixels = np.asarray(Image.open(BytesIO(repaired.content), formats=["PNG"]))
        return Finding(told, pixels=pixels, transform=told)
