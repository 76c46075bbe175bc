import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_tools.corpora.scene_corpus import HELD_OUT, RADII, SEEN, UNSEEN, make_scene, render
from data_tools.corpora.scene_drawing import PALETTE, SceneObject, draw_scene, shape_masks
from data_tools.corpora.scene_language import COLOURS, RELATIONS, SHAPES, SceneLanguage, scene_languages
from data_tools.corpora.scene_prompts import captions
from data_tools.make_scenes import SceneSettings, main, make_scenes
from leam_mm.errors import UserError
from leam_mm.languages import LANGUAGES

URL = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus") / "scenes"
    make_scenes(SceneSettings(folder, train=60, test=30, seed=3))
    return folder


def rows(corpus: Path, split: str) -> list[dict]:
    return pq.read_table(corpus / f"{split}.parquet").to_pylist()


def test_the_same_arguments_give_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    make_scenes(SceneSettings(tmp_path / "again", train=60, test=30, seed=3))
    files = sorted(path.relative_to(corpus) for path in corpus.rglob("*") if path.is_file())
    assert len(files) == 60 + 30 + 6
    assert files == sorted(
        path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file()
    )
    assert all((corpus / name).read_bytes() == (tmp_path / "again" / name).read_bytes() for name in files)


def test_scenes_depend_on_seed_and_number_alone() -> None:
    assert [make_scene("train", 0, n) for n in range(20)] != [make_scene("train", 1, n) for n in range(20)]
    assert make_scene("train", 0, 7) == make_scene("train", 0, 7)


def test_link_table_has_all_columns_and_24_languages(corpus: Path) -> None:
    columns = {"url", "caption", "captions", "licence", "legal_basis", "page_url", "attribution", "metadata"}
    for split, samples in (("train", 60), ("test", 30)):
        table = rows(corpus, split)
        assert len(table) == samples
        for row in table:
            assert set(row) == columns
            assert row["legal_basis"] == "synthetic"
            listed = json.loads(row["captions"])
            assert sorted(caption["language"] for caption in listed) == sorted(LANGUAGES)
            assert all(caption["text"].strip() and caption["source"] == "generated" for caption in listed)
            assert not any(caption["machine_translated"] or "  " in caption["text"] for caption in listed)
            assert row["caption"] in [caption["text"] for caption in listed if caption["language"] == "en"]
            assert (corpus / row["url"].removeprefix(URL + "/")).is_file()


def test_held_out_combinations_never_occur_in_training_and_always_in_the_test() -> None:
    for number in range(1500):
        assert not {(thing.colour, thing.shape) for thing in make_scene("train", 0, number).objects} & HELD_OUT
    for number in range(200):
        assert {(thing.colour, thing.shape) for thing in make_scene("test", 0, number).objects} & HELD_OUT


@pytest.mark.parametrize("pairs", [0.0, 0.3, 0.75, 1.0])
def test_share_of_pairs(pairs: float) -> None:
    kinds = [make_scene("train", 0, number, pairs).kind for number in range(2000)]
    assert kinds.count("pair") / 2000 == pytest.approx(pairs, abs=0.03)
    assert kinds.count("single") / 2000 == pytest.approx((1 - pairs) * 5 / 7, abs=0.03)
    if pairs == 0.3:
        assert kinds == [make_scene("train", 0, number).kind for number in range(2000)]


def test_every_colour_and_every_shape_is_seen() -> None:
    assert {colour for colour, _ in SEEN} == set(COLOURS) == set(PALETTE)
    assert {shape for _, shape in SEEN} == set(SHAPES)
    assert {colour for colour, _ in UNSEEN} == set(COLOURS)
    assert {shape for _, shape in UNSEEN} == set(SHAPES)
    assert 0.15 <= len(UNSEEN) / 64 <= 0.2


def test_only_single_things_carry_a_class(corpus: Path) -> None:
    classes = json.loads((corpus / "classes.json").read_text())["classes"]
    kinds = set()
    for row in rows(corpus, "train"):
        metadata = json.loads(row["metadata"])
        kinds.add(metadata["kind"])
        assert ("class_id" in metadata) == (metadata["kind"] == "single")
        assert metadata.get("class_id", classes[0]) in classes
        assert metadata["count"] == len(metadata["objects"])
    assert kinds == {"single", "pair", "count"}


def test_things_stay_inside_and_apart_in_their_relation() -> None:
    for number in range(400):
        scene = make_scene("train", 5, number)
        for k, thing in enumerate(scene.objects):
            assert thing.radius <= thing.x <= 1 - thing.radius
            assert thing.radius <= thing.y <= 1 - thing.radius
            for other in scene.objects[:k]:
                gap = max(abs(thing.x - other.x), abs(thing.y - other.y)) - thing.radius - other.radius
                assert gap > 0.04
        if scene.kind == "single" and scene.objects[0].size:
            low, high = RADII[scene.objects[0].size]
            assert low <= scene.objects[0].radius <= high
        if scene.relation:
            first, second = scene.objects
            distance = {
                "left_of": second.x - first.x,
                "right_of": first.x - second.x,
                "above": second.y - first.y,
                "below": first.y - second.y,
            }
            assert max(distance, key=lambda name: distance[name]) == scene.relation


def test_class_names_are_distinct_and_templates_have_one_slot(corpus: Path) -> None:
    content = json.loads((corpus / "classes.json").read_text())
    assert len(content["classes"]) == 64
    assert set(content["languages"]) == set(LANGUAGES)
    for language in content["languages"].values():
        names = [name for names in language["names"].values() for name in names]
        assert len(set(names)) == 64
        assert 2 <= len(language["templates"]) <= 4
        assert all(template.count("{}") == 1 for template in language["templates"])
    assert content["languages"]["de"]["names"]["red_diamond"] == ["eine rote Raute"]


def test_prompts_cover_all_combinations_relations_counts_and_languages(corpus: Path) -> None:
    prompts = json.loads((corpus / "scenes.json").read_text())["prompts"]
    single = [prompt for prompt in prompts if prompt["kind"] == "single"]
    assert {prompt["class_id"] for prompt in single if prompt["language"] == "en"} == {
        f"{colour}_{shape}" for colour in COLOURS for shape in SHAPES
    }
    assert {prompt["language"] for prompt in single} == set(LANGUAGES)
    assert {prompt["relation"] for prompt in prompts if prompt["kind"] == "pair"} == set(RELATIONS)
    assert {prompt["count"] for prompt in prompts if prompt["kind"] == "count"} == {1, 2, 3, 4}
    for prompt in prompts:
        things = {(thing["colour"], thing["shape"]) for thing in prompt["objects"]}
        assert prompt["seen"] == (not things & HELD_OUT)
        assert len(prompt["objects"]) == prompt["count"]
    assert {prompt["seen"] for prompt in prompts if prompt["kind"] == "pair"} == {True, False}


THINGS = [
    ("de", "red", "circle", "ein roter Kreis"),
    ("de", "red", "diamond", "eine rote Raute"),
    ("de", "red", "square", "ein rotes Quadrat"),
    ("en", "orange", "star", "an orange star"),
    ("fr", "green", "star", "une étoile verte"),
    ("pl", "red", "circle", "czerwone koło"),
    ("el", "black", "heart", "μία μαύρη καρδιά"),
    ("nl", "yellow", "square", "een geel vierkant"),
    ("ga", "red", "star", "réalta dhearg"),
    ("mt", "green", "star", "stilla ħadra"),
    ("bg", "blue", "heart", "синьо сърце"),
]


@pytest.mark.parametrize(("code", "colour", "shape", "text"), THINGS)
def test_adjectives_agree_in_gender(code: str, colour: str, shape: str, text: str) -> None:
    assert scene_languages()[code].thing(colour, shape) == text


PAIRS = [
    ("de", "left_of", "ein roter Kreis links von einem blauen Stern"),
    ("pl", "above", "czerwone koło powyżej niebieskiej gwiazdy"),
    ("cs", "left_of", "červený kruh vlevo od modré hvězdy"),
    ("cs", "above", "červený kruh nad modrou hvězdou"),
    ("fi", "right_of", "punainen ympyrä sinisen tähden oikealla puolella"),
    ("et", "left_of", "punane ring sinisest tähest vasakul"),
    ("et", "below", "punane ring sinise tähe all"),
    ("hu", "left_of", "egy piros kör egy kék csillagtól balra"),
    ("ro", "above", "un cerc roșu deasupra unei stele albastre"),
    ("el", "left_of", "ένας κόκκινος κύκλος αριστερά από ένα μπλε αστέρι"),
    ("lt", "above", "raudonas apskritimas virš mėlynos žvaigždės"),
]


@pytest.mark.parametrize(("code", "relation", "text"), PAIRS)
def test_prepositions_take_their_case(code: str, relation: str, text: str) -> None:
    assert scene_languages()[code].pair(("red", "circle"), ("blue", "star"), relation) == text


COUNTS = [
    ("sl", "red", "circle", 2, "dva rdeča kroga"),
    ("sl", "red", "circle", 3, "trije rdeči krogi"),
    ("sl", "blue", "star", 2, "dve modri zvezdi"),
    ("cs", "red", "circle", 2, "dva červené kruhy"),
    ("hr", "red", "circle", 3, "tri crvena kruga"),
    ("bg", "red", "circle", 4, "четири червени кръга"),
    ("ga", "red", "circle", 1, "ciorcal dearg amháin"),
    ("ga", "red", "circle", 2, "dhá chiorcal dhearga"),
    ("fi", "red", "circle", 3, "kolme punaista ympyrää"),
    ("hu", "red", "circle", 4, "négy piros kör"),
    ("lv", "red", "circle", 2, "divi sarkani apļi"),
    ("mt", "red", "circle", 3, "tliet ċrieki ħomor"),
    ("mt", "red", "heart", 2, "żewġt iqlub ħomor"),
    ("ro", "red", "circle", 2, "două cercuri roșii"),
    ("de", "red", "circle", 4, "vier rote Kreise"),
    ("pl", "blue", "star", 2, "dwie niebieskie gwiazdy"),
    ("el", "red", "heart", 4, "τέσσερις κόκκινες καρδιές"),
]


@pytest.mark.parametrize(("code", "colour", "shape", "number", "text"), COUNTS)
def test_numerals_agree_with_the_noun(code: str, colour: str, shape: str, number: int, text: str) -> None:
    assert scene_languages()[code].count(colour, shape, number) == text


def test_size_and_texture_are_named_only_if_given() -> None:
    language = scene_languages()["fr"]
    assert language.thing("red", "star", "small", "striped") == "une petite étoile rouge à rayures"
    assert language.thing("red", "star") == "une étoile rouge"


def test_a_broken_row_of_the_table_is_one_line() -> None:
    with pytest.raises(UserError, match="section 'xx' is broken"):
        SceneLanguage("xx", {"columns": "one", "genders": "m", "phrase": "{noun}"})


def test_captions_vary_in_every_language() -> None:
    scene = make_scene("train", 0, 0)
    drawn = [captions(scene, np.random.default_rng(k)) for k in range(30)]
    assert all(list(texts) == list(LANGUAGES) for texts in drawn)
    assert all(len({texts[code] for texts in drawn}) >= 3 for code in LANGUAGES)


def test_a_scene_looks_the_same_at_any_size() -> None:
    thing = SceneObject("blue", "heart", 0.4, 0.6, 0.3)
    small, large = draw_scene([thing], 32), draw_scene([thing], 256)
    difference = np.asarray(small, float) - np.asarray(large.reduce(8), float)
    assert small.size == (32, 32)
    assert np.abs(difference).mean() < 2


def test_shapes_fill_their_square_and_differ() -> None:
    masks = shape_masks()
    assert list(masks) == list(SHAPES)
    for name, mask in masks.items():
        assert mask.shape == (128, 128)
        assert 0.2 < (mask > 127).mean() < 0.8, name
    for first in SHAPES:
        for second in SHAPES[: SHAPES.index(first)]:
            assert np.abs(masks[first].astype(float) - masks[second]).mean() > 20, (first, second)


def test_images_are_rgb_png_of_the_given_size() -> None:
    for size in (16, 33, 128):
        image = Image.open(io.BytesIO(render(make_scene("train", 0, 1), 0, "train", 1, size)))
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (size, size))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--size", "0"),
        ("--train", "0"),
        ("--test", "-3"),
        ("--seed", "-1"),
        ("--pairs", "1.5"),
        ("--base-url", "file:///etc"),
    ],
)
def test_bad_arguments_are_one_line_and_leave_nothing(option: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=option) as caught:
        main(["--output", str(tmp_path / "out"), option, value])
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_foreign_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="other than a scene corpus"):
        make_scenes(SceneSettings(tmp_path, 1, 1))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_an_older_corpus_is_replaced(corpus: Path, tmp_path: Path) -> None:
    for train in (3, 2):
        make_scenes(SceneSettings(tmp_path / "scenes", train, 1))
    assert len(list((tmp_path / "scenes" / "images" / "train").iterdir())) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["scenes"]


def test_the_program_runs_from_the_command_line(tmp_path: Path) -> None:
    program = Path(__file__).parents[1] / "data_tools" / "make_scenes.py"
    done = subprocess.run(
        [sys.executable, program, "--output", tmp_path / "s", "--size", "7"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: --size is 7")
    assert "Traceback" not in done.stderr
