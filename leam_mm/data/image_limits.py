"""Which files count as images, and how much is decoded; needs neither torch nor Pillow."""

MAX_PIXELS = 89_478_485  # Pillow's own limit (Image.MAX_IMAGE_PIXELS) against decompression bombs
BYTES_PER_PIXEL = 6  # memory for decoding, for each allowed pixel: RGB takes 4, and a conversion to RGB as much again
LEAST_MEMORY = 64_000_000  # bytes for decoding, however few pixels are allowed
MAX_SCANS = 100  # of a JPEG, each of which visits every pixel; encoders write about 10
SHARD_FORMATS = ("JPEG", "PNG", "WEBP")  # Pillow's names of the formats in shards
WEB_FORMATS = (*SHARD_FORMATS, "GIF", "BMP")  # of the formats that are read and encoded again
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp")  # of files read from folders
MEMBER_EXTENSIONS = ("jpg", "jpeg", "png", "webp")  # of images in shards, in the order they are looked for
