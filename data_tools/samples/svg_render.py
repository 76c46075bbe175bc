"""Draw an SVG from standard input as a PNG on standard output, in a process of its own: svg_image.py starts it.

A hostile drawing may take any time and memory, or crash the renderer; it ends this process alone.
"""

import resource
import sys

SECONDS = 10  # of the processor
MEMORY = 1 << 30  # bytes of address space


def main() -> None:
    """Limit this process, then render; the arguments are width and height (0 if free) and a folder of fonts."""
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # it writes to a pipe only
    import resvg_py  # under the limits

    width, height, fonts = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    text = sys.stdin.buffer.read().decode()
    png = resvg_py.svg_to_bytes(
        svg_string=text,
        width=width or None,
        height=height or None,
        dpi=96.0,  # of CSS; by default millimetres have no length
        skip_system_fonts=True,
        font_dirs=[fonts],
        font_family="DejaVu Sans",
        sans_serif_family="DejaVu Sans",
        serif_family="DejaVu Serif",
        monospace_family="DejaVu Sans Mono",
    )
    sys.stdout.buffer.write(bytes(png))


if __name__ == "__main__":
    main()
