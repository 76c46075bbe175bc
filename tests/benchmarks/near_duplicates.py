"""What vetting/near_duplicates.py finds and what it takes wrongly: copies of pictures, variants of emoji, and speed.

Beside it stand the hash alone (PDQ at the usual 31 bits), and SHA-256, which is all that img2dataset offers. Intervals
are those of Clopper and Pearson (95 %) for shares of pictures, and bootstraps over originals for shares of pairs.

    python tests/benchmarks/near_duplicates.py
    python data_tools/gather_emoji.py --variants --size 128 --languages en --output runs/emoji_variants
    python tests/benchmarks/near_duplicates.py --emoji runs/emoji_variants --rows 1000000
"""

import hashlib
import io
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import measure
import numpy as np
from picture_copies import changes, emoji, scenes, tiles, turns
from PIL import Image
from processes import in_own_process
from rich.console import Console
from rich.table import Table
from scipy.stats import beta
from toy_input import photo

from data_tools.corpora.emoji_names import SKIN_TONES, base_of, group_of
from data_tools.vetting.binary_neighbours import compare_all, join_parts
from data_tools.vetting.exact_duplicates import ExactDuplicates
from data_tools.vetting.near_duplicates import MeasuredImages, NearDuplicates
from data_tools.vetting.semantic_duplicates import SemanticDuplicates, similar_pairs
from data_tools.vetting.vetting_rule import Sample
from leam_mm.data.perceptual_hash import BITS, TRANSFORMS, hamming, pdq
from leam_mm.errors import run

SIDE, SCENES, DRAWINGS = 160, 250, 300
RADII, RADIUS = range(61), 31
FRAMING, CROPS = ("crop", "corner", "border"), (0.04, 0.07, 0.1)
RULES: dict[str, dict[str, Any]] = {
    "rule": {},
    "rule, any colour": {"colour": None},
    "hash alone": {"colour": None, "quality": 0},
}


def share(hits: int, total: int) -> dict[str, Any]:
    """A share with its interval, or that there is none."""
    if not total:
        return {"share": "not measured", "of": 0}
    low = float(beta.ppf(0.025, hits, total - hits + 1)) if hits else 0.0
    high = float(beta.ppf(0.975, hits + 1, total - hits)) if hits < total else 1.0
    return {"share": hits / total, "low": low, "high": high, "of": total}


def precise(radius: np.ndarray, right: np.ndarray) -> list[float | str]:
    """Share of the pairs found by each of RADII that are right."""
    found = [radius <= each for each in RADII]
    return [float((right & each).sum() / each.sum()) if each.any() else "not measured" for each in found]


def bootstrap(right: np.ndarray, found: np.ndarray, owner: np.ndarray, count: int) -> dict[str, Any]:
    """Share of found pairs that are right, (P,) bool each, with an interval from drawing originals (P,) again."""
    if not found.any():
        return {"share": "not measured", "of": 0}
    generator = np.random.default_rng(0)
    hits, total = (np.bincount(owner, weights=mask, minlength=count) for mask in (found & right, found))
    drawn = generator.integers(0, count, (1000, count))
    shares = hits[drawn].sum(axis=1) / np.maximum(total[drawn].sum(axis=1), 1)
    low, high = np.quantile(shares, [0.025, 0.975]).tolist()
    return {"share": float(hits.sum() / total.sum()), "low": low, "high": high, "of": int(total.sum())}


def as_sample(key: str, picture: Image.Image) -> Sample:
    """A sample with these pixels."""
    sample = Sample(key, {}, "png", b"")
    sample.__dict__["pixels"] = np.asarray(picture)
    return sample


def reach(rule: dict[str, Any], measured: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The smallest radius at which one of RULES takes each pair of rows for the same, (P,); BITS where none does."""
    pictures = MeasuredImages(NearDuplicates(radius=max(RADII), **rule), measured)
    return np.where(pictures.similar(first, second), pictures.bits(first, second), BITS)


def up_to(radius: np.ndarray, total: int) -> list[float]:
    """Share of the pairs found by each of RADII."""
    return [float((radius <= each).sum() / max(total, 1)) for each in RADII]


def near_pairs(measured: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of rows within the largest radius of the curves."""
    found = list(MeasuredImages(NearDuplicates(radius=max(RADII)), measured).pairs(np.arange(len(measured))))
    return np.concatenate([pair[0] for pair in found]), np.concatenate([pair[1] for pair in found])


def leaving(keys: list[str], measured: np.ndarray, rule: dict[str, Any], side: int) -> dict[str, str]:
    """What the whole rule drops, and for which picture."""
    found = NearDuplicates(**rule).resolve(keys, [{"width": side, "height": side}] * len(keys), measured)
    return {key: finding.evidence["kept"] for key, finding in zip(keys, found, strict=True) if not finding.kept}


def measure_copies(folder: Path | None) -> dict[str, Any]:
    """Recall of each change by radius, precision among all pictures, and originals that leave for one another."""
    kinds = {"photographs": tiles(SIDE), "scenes": scenes(SCENES, SIDE)}
    if folder is not None:
        drawn = {
            key: picture for key, picture in emoji(folder).items() if base_of(key.split("/")[1]) == key.split("/")[1]
        }
        chosen = random.Random(0).sample(sorted(drawn), min(DRAWINGS, len(drawn)))
        kinds["drawings"] = {key: drawn[key] for key in chosen}
    every, rule = changes(), NearDuplicates()
    content: dict[str, Any] = {"kinds": {}, "radii": list(RADII)}
    for kind, originals in kinds.items():
        rows, files = [], []
        for key, picture in originals.items():
            variants = [picture, *(change(picture) for change in every.values())]
            rows.append(rule.measure([as_sample(key, each) for each in variants]))
            files.append([hashlib.sha256(np.asarray(each).tobytes()).digest() for each in variants])
        measured = np.stack(rows)  # (originals, changes + 1, D)
        count, many = measured.shape[:2]
        flat = measured.reshape(-1, measured.shape[2])
        first, second = near_pairs(flat)
        owner, right = first // many, first // many == second // many
        whole: dict[str, Any] = {"originals": count, "copies": count * (many - 1), "rules": {}}
        quality = measured[:, 0, 32]
        whole["originals_of_low_quality"] = share(int((quality < 50).sum()), count)
        for name, setting in RULES.items():
            recall = {}
            for place, change in enumerate(every, start=1):
                hit = reach(setting, flat, np.arange(count) * many, np.arange(count) * many + place)
                recall[change] = share(int((hit <= RADIUS).sum()), count) | {"by_radius": up_to(hit, count)}
                low = quality < 50
                recall[change]["low_quality"] = share(int((hit[low] <= RADIUS).sum()), int(low.sum()))
            gone, hit = leaving(list(originals), measured[:, 0], setting, SIDE), reach(setting, flat, first, second)
            whole["rules"][name] = {
                "recall": recall,
                "precision_of_pairs": bootstrap(right, hit <= RADIUS, owner, count)
                | {"by_radius": precise(hit, right)},
                "originals_lost": share(len(gone), count) | {"examples": dict(list(gone.items())[:10])},
            }
        same = [sum(row[0] == row[place] for row in files) for place in range(1, many)]
        whole["sha256"] = {change: share(hits, count) for change, hits in zip(every, same, strict=True)}
        whole["turned"] = _turned(originals)
        content["kinds"][kind] = whole
    return content


def _turned(originals: dict[str, Image.Image]) -> dict[str, Any]:
    """Recall of turned, mirrored, cropped and framed copies, with and without looking for them."""
    chosen = dict(list(originals.items())[:100])
    found: dict[str, Any] = {}
    looked_for = NearDuplicates(transforms=TRANSFORMS[1:], crops=CROPS)
    framing = {name: change for name, change in changes().items() if name.partition(":")[0] in FRAMING}
    for name, rule in (("not looked for", NearDuplicates()), ("looked for", looked_for)):
        before = rule.measure([as_sample(key, picture) for key, picture in chosen.items()])
        found[name] = {}
        for change, turn in (turns() | framing).items():
            after = rule.measure([as_sample(key, turn(picture)) for key, picture in chosen.items()])
            both, count = MeasuredImages(rule, np.concatenate([before, after])), len(chosen)
            found[name][change] = share(int(both.similar(np.arange(count), count + np.arange(count)).sum()), count)
    return found


def measure_variants(folder: Path) -> dict[str, Any]:
    """Emoji that differ in skin tone alone: recall and precision by radius, and what emoji would be lost."""
    drawn, rule = emoji(folder), NearDuplicates()
    keys = list(drawn)
    measured = np.concatenate([rule.measure([as_sample(key, drawn[key])]) for key in keys])
    toneless, group = ([f"{style}/{name(code)}" for style, code in (key.split("/") for key in keys)] for name in
                       (_without_tone, group_of))  # fmt: skip
    names = [np.unique(each, return_inverse=True)[1] for each in (toneless, group)]
    first, second = near_pairs(measured)
    same_but_tone, kin = (each[first] == each[second] for each in names)
    sizes = np.bincount(names[0])
    truth = int((sizes * (sizes - 1) // 2).sum())
    content: dict[str, Any] = {"pictures": len(keys), "pairs_that_differ_in_tone": truth, "rules": {}}
    content["originals_of_low_quality"] = share(int((measured[:, 32] < 50).sum()), len(keys))
    for name, setting in {**RULES, "rule, colours within 16": {"colour": 16.0}}.items():
        hit = reach(setting, measured, first, second)
        gone = leaving(keys, measured, setting, 1)
        wrong = [key for key, kept in gone.items() if group[keys.index(key)] != group[keys.index(kept)]]
        stays = {group[place] for place, key in enumerate(keys) if key not in gone}
        content["rules"][name] = {
            "recall_of_tones": share(int((same_but_tone & (hit <= RADIUS)).sum()), truth)
            | {"by_radius": up_to(hit[same_but_tone], truth)},
            "precision_of_pairs": bootstrap(kin, hit <= RADIUS, names[1][first], len(set(group)))
            | {"by_radius": precise(hit, kin)},
            "pictures_that_leave": share(len(gone), len(keys)),
            "of_them_for_another_emoji": share(len(wrong), len(gone)) | {"examples": wrong[:20]},
            "emoji_lost_altogether": share(len(set(group)) - len(stays), len(set(group))),
        }
    return content


def _without_tone(code: str) -> str:
    return "-".join(part for part in code.split("-") if part not in SKIN_TONES) or code


def measure_semantic(folder: Path, clip: str) -> dict[str, Any]:
    """What an encoder of ours takes for the same among emoji, by cosine, and how many of the pairs clusters find."""
    rule, drawn = SemanticDuplicates(clip), emoji(folder)
    keys, samples = list(drawn), []
    for key, picture in drawn.items():
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        samples.append(Sample(key, {}, "png", buffer.getvalue()))
    begin = time.process_time()
    features = np.concatenate([rule.measure(samples[at : at + 128]) for at in range(0, len(samples), 128)])
    content: dict[str, Any] = {"pictures": len(keys), "cpu_ms": (time.process_time() - begin) * 1000 / len(keys)}
    names = (
        [f"{key.split('/')[0]}/{_without_tone(key.split('/')[1])}" for key in keys],
        [group_of(key.split("/")[1]) for key in keys],
    )
    toneless, group = (np.unique(each, return_inverse=True)[1] for each in names)
    sizes = np.bincount(toneless)
    truth = int((sizes * (sizes - 1) // 2).sum())
    for cosine in (0.999, 0.99, 0.98, 0.95):
        whole, clustered = (
            np.unique(
                np.concatenate([np.stack(pair, axis=1) for pair in similar_pairs(features, cosine, size)]), axis=0
            )
            for size in (len(keys), 1000)
        )
        first, second = whole.T
        found = SemanticDuplicates(clip, cosine=cosine).resolve(keys, [{}] * len(keys), features)
        kept = np.array([finding.kept for finding in found])
        content[f"{cosine:g}"] = {
            "recall_of_tones": share(int((toneless[first] == toneless[second]).sum()), truth),
            "same_emoji_in_any_style": share(int((group[first] == group[second]).sum()), len(whole)),
            "pairs_that_clusters_of_1000_find": share(len(np.unique(np.sort(clustered), axis=0)), len(whole)),
            "pictures_that_leave": share(int((~kept).sum()), len(keys)),
            "emoji_lost_altogether": share(len(set(group)) - len(set(group[kept])), len(set(group))),
        }
    return content


def best_seconds(work: Callable[[], object]) -> float:
    """Processor seconds of one run, in the fastest of thirty rounds of ten."""
    found = []
    for _ in range(30):
        begin = time.process_time()
        for _ in range(10):
            work()
        found.append((time.process_time() - begin) / 10)
    return min(found)


def measure_hashing() -> dict[str, Any]:
    """Pictures per second of a core beside what decoding them costs."""
    content: dict[str, Any] = {}
    for side in (256, 512, 1024):
        buffer = io.BytesIO()
        photo(0, side).save(buffer, "JPEG", quality=90)
        raw = buffer.getvalue()
        picture = Image.open(io.BytesIO(raw)).convert("RGB")
        times = {
            "decode": lambda raw=raw: np.asarray(Image.open(io.BytesIO(raw)).convert("RGB")),
            "pdq": partial(pdq, np.asarray(picture)),
            "near_duplicates": lambda picture=picture: NearDuplicates().measure([as_sample("a", picture)]),
            "exact_duplicates": lambda picture=picture: ExactDuplicates().measure([as_sample("a", picture)]),
        }
        content[str(side)] = {f"{name}_ms": best_seconds(work) * 1000 for name, work in times.items()}
        content[str(side)]["pdq_per_second"] = 1000 / content[str(side)]["pdq_ms"]
    return content


def random_codes(rows: int) -> np.ndarray:
    """Hashes without structure, and a tenth that are up to 40 bits from another, (rows, 32)."""
    generator = np.random.default_rng(0)
    codes = generator.integers(0, 256, (rows, 32), dtype=np.uint8)
    near = rows // 10
    codes[:near] = codes[near : 2 * near]
    for start in range(0, near, 10_000):
        place = np.argsort(generator.random((min(10_000, near - start), 256)), axis=1)
        turned = place < generator.integers(0, 41, (len(place), 1))
        codes[start : start + len(place)] ^= np.packbits(turned, axis=1)
    return codes


def most_memory() -> float:
    """MiB that this process has held at most; getrusage would tell its parent's, if that was more."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def search(rows: int) -> dict[str, float]:
    """Find all pairs in a process of its own, whose memory is that of this search."""
    codes, before = random_codes(rows), most_memory()
    begin, cpu = time.perf_counter(), time.process_time()
    found = sum(len(pairs.first) for pairs in join_parts(codes, RADIUS))
    seconds, cpu = time.perf_counter() - begin, time.process_time() - cpu
    memory = {"memory_mib": most_memory(), "memory_grown_mib": most_memory() - before}
    return {"seconds": seconds, "cpu_seconds": cpu, "pairs": found} | memory


def measure_search(settings: Any) -> Path:
    """All pairs within 31 bits: multi-index hashing beside faiss comparing everything, and alone at full size."""
    codes = random_codes(settings.compared)

    def digest(pairs: Any) -> np.ndarray:
        found = np.concatenate([np.stack([each.first, each.second, each.distance], axis=1) for each in pairs])
        return found[np.lexsort(found.T[::-1])]

    ours, peer = digest(join_parts(codes, RADIUS)), digest(compare_all(codes, RADIUS))
    differing = abs(len(ours) - len(peer)) or int((ours != peer).any(axis=1).sum())
    same = [measure.require_same("pairs found, number that differs or is missing", differing, 0)]
    found = measure.time_pairs(
        lambda: list(join_parts(codes, RADIUS)), lambda: list(compare_all(codes, RADIUS)), settings.repeats, warmup=0
    )
    alone = {"rows": settings.rows} | in_own_process(search, settings.rows)
    ratio = (settings.rows / settings.compared) ** 2
    alone["faiss_seconds_estimated"] = float(np.median(found.peer.wall)) * ratio
    Console().print(f"{alone['rows']:,} hashes: {alone}")
    hashing = measure_hashing()
    Console().print(f"ms of a core per picture, by side: {hashing}")
    notes = f"{settings.compared} random hashes, a tenth of them near another; pairs within 31 bits; both exact"
    labels = ("multi-index hashing", "faiss IndexBinaryFlat")
    further = {"alone": alone, "hashing": hashing}
    work = (float(settings.compared), "hash")
    return measure.write_comparison("near_duplicates_speed", labels, found, work, same, settings, notes, further)


def exactness() -> list[dict[str, Any]]:
    """That the search misses nothing on real hashes: drawings and tiles collide more than random ones do."""
    codes = np.stack([pdq(np.asarray(each))[0] for each in (tiles(64) | scenes(500, 64)).values()])
    distance = hamming(codes[:, None], codes[None])[np.triu_indices(len(codes), 1)]
    found = sum(len(pairs.first) for pairs in join_parts(codes, RADIUS))
    return [
        measure.require_same("pairs of real hashes, number missing", abs(int((distance <= RADIUS).sum()) - found), 0)
    ]


def show(title: str, rules: dict[str, Any], names: list[str]) -> None:
    """Print shares with their intervals, a row each."""
    table = Table("", *rules, title=title)
    for name in names:
        cells = [rules[rule][name] for rule in rules]
        shown = [
            "not measured" if each["share"] == "not measured"
            else f"{each['share']:.3f} ({each['low']:.3f} to {each['high']:.3f})"
            for each in cells
        ]  # fmt: skip
        table.add_row(name, *shown)
    Console().print(table)


@measure.benchmark(
    repeats=1,
    emoji=(Path, "folder of gather_emoji --variants; without it no drawings"),
    clip=(str, "run or checkpoint of a contrastive training, for semantic duplicates"),
    rows=(200_000, "hashes searched for speed alone"),
    compared=(50_000, "hashes that faiss compares"),
)
def main(settings: measure.Settings) -> list[Path]:
    """Measure copies, variants where there are drawings, and speed."""
    same, written = exactness(), []
    copies = measure_copies(settings.emoji)
    for kind, found in copies["kinds"].items():
        recalls = {name: each["recall"] for name, each in found["rules"].items()} | {"sha256": found["sha256"]}
        show(f"{kind}: recall of {found['originals']} copies of each kind", recalls, list(found["sha256"]))
        show(kind, found["rules"], ["precision_of_pairs", "originals_lost"])
        show(f"{kind}, turned or framed", found["turned"], list(found["turned"]["looked for"]))
    written.append(measure.write_result(copies | {"same_work": same}, settings, name="near_duplicates_copies"))
    if settings.emoji is not None:
        variants = measure_variants(settings.emoji)
        names = list(next(iter(variants["rules"].values())))
        show(f"{variants['pictures']} drawings with variants", variants["rules"], names)
        written.append(measure.write_result(variants | {"same_work": same}, settings, name="near_duplicates_variants"))
        if settings.clip is not None:
            semantic = measure_semantic(settings.emoji, settings.clip)
            rules = {name: each for name, each in semantic.items() if isinstance(each, dict)}
            show("semantic duplicates, by cosine", rules, list(rules["0.99"]))
            written.append(measure.write_result(semantic | {"same_work": same}, settings, name="semantic_duplicates"))
    else:
        print("variants of emoji: not measured, since --emoji names no folder of drawings")
    return [*written, measure_search(settings)]


if __name__ == "__main__":
    run(main)
