"""Which files count as images, and how much is decoded; needs neither torch nor Pillow."""

MAX_PIXELS = 89_478_485  # Pillow's own limit (Image.MAX_IMAGE_PIXELS) against decompression bombs
BYTES_PER_PIXEL = 6  # memory for decoding, for each allowed pixel: RGB takes 4, and a conversion to RGB as much again
LEAST_MEMORY = 64_000_000  # bytes for decoding, however few pixels are allowed
MAX_SCANS = 100  # of a JPEG, each of which visits every pixel; encoders write about 10
MAX_TAGS = 1_000  # of a TIFF; files of cameras and scanners have fewer than 200
MAX_SEGMENTS = 1_000  # of EXIF in a JPEG; cameras write one, and a block beyond 64 kB is split
SHARD_FORMATS = ("JPEG", "PNG", "WEBP")  # Pillow's names of the formats in shards
WEB_FORMATS = (*SHARD_FORMATS, "GIF", "BMP", "TIFF", "AVIF")  # of the formats that are read and encoded again
IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif"),
)  # of files read from folders
VECTOR_SUFFIXES = (".svg",)  # of drawings, which data_tools rasterise
AS_JPEG = "save it as JPEG or PNG"
UNREAD_SUFFIXES = {
    ".heic": f"{AS_JPEG} (such as heif-convert a.heic a.jpg)",
    ".heif": f"{AS_JPEG} (such as heif-convert a.heif a.jpg)",
    ".jxl": f"{AS_JPEG} (such as djxl a.jxl a.png)",
    **dict.fromkeys((".jp2", ".psd", ".eps", ".ai", ".tga", ".ico", ".svgz", ".exr", ".hdr"), AS_JPEG),
    **dict.fromkeys((".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf"), "develop it to JPEG or PNG"),
}  # of images that are left out, with what to do
MEMBER_EXTENSIONS = ("jpg", "jpeg", "png", "webp")  # of images in shards, in the order they are looked for
