"""All controls of the self-test."""

from leam_mm.controls.bias_controls import bias_controls
from leam_mm.controls.changed_image_controls import changed_image_controls
from leam_mm.controls.class_folder_controls import class_folder_controls
from leam_mm.controls.control import Control
from leam_mm.controls.distance_controls import distance_controls
from leam_mm.controls.encoder_controls import encoder_controls
from leam_mm.controls.energy_controls import energy_controls
from leam_mm.controls.image_controls import image_controls
from leam_mm.controls.judge_controls import judge_controls
from leam_mm.controls.language_controls import language_controls
from leam_mm.controls.membership_controls import membership_controls
from leam_mm.controls.memorization_controls import memorization_controls
from leam_mm.controls.personal_data_controls import personal_data_controls
from leam_mm.controls.provenance_controls import provenance_controls
from leam_mm.controls.recognition_controls import recognition_controls
from leam_mm.controls.release_controls import release_controls
from leam_mm.controls.rights_controls import rights_controls
from leam_mm.controls.score_controls import score_controls


def all_controls() -> list[Control]:
    """Return the controls of every audit and metric, quick ones first."""
    return [
        *energy_controls(),
        *language_controls(),
        *bias_controls(),
        *judge_controls(),
        *score_controls(),
        *recognition_controls(),
        *rights_controls(),
        *provenance_controls(),
        *personal_data_controls(),
        *release_controls(),
        *membership_controls(),
        *memorization_controls(),
        *distance_controls(),
        *changed_image_controls(),
        *encoder_controls(),
        *class_folder_controls(),
        *image_controls(),
    ]
