"""Which files count as images, and how many pixels are decoded; needs neither torch nor Pillow."""

MAX_PIXELS = 89_478_485  # Pillow's own limit (Image.MAX_IMAGE_PIXELS) against decompression bombs
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")  # of files read from folders
MEMBER_EXTENSIONS = ("jpg", "jpeg", "png", "webp")  # of images in shards, in the order they are looked for
