"""Write images as a folder that clip-benchmark 1.6.2 evaluates, with class names or captions of one language.

python evaluate.py benchmark_folder --images photos --output runs/photos_tars
clip_benchmark eval --dataset wds/photos --dataset_root runs/photos_tars --model local-dir:RELEASE --pretrained "" ...

docs/evaluate.md has the whole command.
"""

from dataclasses import dataclass
from pathlib import Path

from leam_mm.command_line import PositiveInt, parse_settings
from leam_mm.errors import UserError
from leam_mm.evaluators.class_names import name_classes
from leam_mm.evaluators.clip_benchmark_writer import write_captions, write_classes
from leam_mm.evaluators.image_preparation import ImagePreparation
from leam_mm.evaluators.image_set import read_image_set


@dataclass(frozen=True)
class BenchmarkFolderOptions:
    """Settings of the command.

    Args:
        images: Folder of class sub-folders, or shards; the layout is detected.
        output: Folder to write; other splits in it are kept.
        language: Language of the class names or captions.
        captions: Write captions, for retrieval, in place of classes.
        classes: Class names, as of `evaluate.py encoder`.
        templates: Templates, as of `evaluate.py encoder`.
        split: Split to read, if the folder has splits, and to write.
        limit: Maximum number of images, spread evenly.
    """

    images: Path
    output: Path
    language: str = "en"
    captions: bool = False
    classes: Path | None = None
    templates: Path | None = None
    split: str = "test"
    limit: PositiveInt | None = None


def write_benchmark_folder(options: BenchmarkFolderOptions) -> None:
    """Write the folder.

    Raises:
        UserError: The images have no such names or captions, or the folder holds another data set.
    """
    images = read_image_set(options.images, options.split, ImagePreparation(), options.limit, options.language)
    print(f"{options.images}: {images.described()}")
    if options.captions:
        samples = [sample for sample in images.samples if sample.captions(options.language)]
        write_captions(options.output, options.split, samples, options.language)
    else:
        found = name_classes(images, options.classes, options.templates, [options.language])
        if found is None or found.unnamed:
            raise UserError(f"the classes have no names in {options.language}: give them with --classes")
        known = set(found.classes)
        samples = [sample for sample in images.samples if sample.class_id in known]
        names, templates = found.texts[options.language]
        if gap := next((one for one, own in zip(found.classes, names, strict=True) if not own), None):
            raise UserError(f"class {gap} has no name in {options.language}: clip-benchmark needs one for each class")
        write_classes(options.output, options.split, samples, found.classes, [own[0] for own in names], templates)
        if any(len(own) > 1 for own in names):
            print("some classes have several names, of which the first one is written: the numbers differ")
    print(f"wrote {len(samples)} images to {options.output / options.split}")


def main(args: list[str]) -> None:
    """Parse the command line and write."""
    write_benchmark_folder(
        parse_settings(BenchmarkFolderOptions, __doc__, args, program="evaluate.py benchmark_folder")
    )
