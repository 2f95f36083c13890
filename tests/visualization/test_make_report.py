"""make_report.py: its numbers are the library's, and the page in Chromium shows exactly them."""

import json
import math
import os
import re
import shutil
from decimal import ROUND_HALF_UP, Decimal

import make_report
import numpy as np
import pytest
import torch
from foreground_images import ForegroundImages, patch_foreground
from map_figures import read_maps
from patch_norms import PatchNorms
from PIL import Image
from scipy.stats import binomtest
from score_distribution import ScoreDistribution
from torch.utils.data import default_collate
from vote_statistics import VoteStatistics

from last_vit.data.synthetic import SyntheticObjects, write_coco
from last_vit.evaluation import eval_transform
from last_vit.metrics import PointInBox
from last_vit.models import parse_model_argument
from last_vit.patch_scores import peak_index

CONFIG = """
from detectron2.config import LazyCall as L
from torchvision.models import VisionTransformer
from last_vit.data.transforms import EvalTransform
model = L(VisionTransformer)(image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32)
dataloader = dict(test=dict(dataset=dict(transform=L(EvalTransform)(resize=64, crop=32))))
"""
EVIL = ("<img src=x onerror=document.title='pwned'>.jpg", "<", "script>&amp;\"'.jpg")
NUM_IMAGES, NUM_SHOWN, PER_PAGE = 9, 8, 6
PLAIN = ["--num-workers", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of a ViT and a ConvNet, of different grids, crops and preprocessing, on images with hostile names."""
    pytest.importorskip("detectron2")
    timm = pytest.importorskip("timm")
    folder = tmp_path_factory.mktemp("report")
    write_coco(SyntheticObjects(NUM_IMAGES, "val", image_size=64), folder)
    images, instances = folder / "val2017", folder / "annotations" / "instances_val2017.json"
    found = json.loads(instances.read_text())
    (images / EVIL[1]).mkdir()
    for entry, name in zip(found["images"], (EVIL[0], f"{EVIL[1]}/{EVIL[2]}"), strict=False):
        (images / entry["file_name"]).rename(images / name)
        entry["file_name"] = name
    wide = found["images"][2]  # not square, and its object twice: several boxes
    picture = Image.open(images / wide["file_name"])
    canvas = Image.new("RGB", (100, 64), "gray")
    canvas.paste(picture, (36, 0))
    canvas.save(images / wide["file_name"], quality=95)
    wide["width"] = 100
    twin = next(entry for entry in found["annotations"] if entry["image_id"] == wide["id"])
    found["annotations"].append({**twin, "id": 999, "bbox": [2, 2, 20, 30]})
    instances.write_text(json.dumps(found))
    config = folder / "tiny.py"
    config.write_text(CONFIG)
    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet", num_classes=5).state_dict(), folder / "resnet.pth")
    models = [
        f"ViT <b>K=2</b>={config}@random,pool=last,top_k=2,seed=3",
        f"ConvNet=timm:test_resnet@{folder / 'resnet.pth'}",
    ]
    out = folder / "out" / "report"
    words = [word for model in models for word in ("--model", model)]
    arguments = ["--images", str(images), "--boxes", str(instances), "--num-images", str(NUM_SHOWN), "--seed", "1"]
    make_report.main([*words, *arguments, "--batch-size", "4", *PLAIN, "--out", str(out)])
    return {
        "images": images,
        "boxes": instances,
        "models": models,
        "file": out / "index.html",
        "page": (out / "index.html").read_text(encoding="utf-8"),
        "numbers": json.loads((out / "report.json").read_text()),
    }


@pytest.fixture(scope="module")
def measured(report):
    """Every map of both models on all images, computed in one batch and without the script."""
    found = []
    for text in report["models"]:
        trained = parse_model_argument(text).load()
        selection = trained.selection(top_k=2)  # the ConvNet's votes have the ViT's K
        images = ForegroundImages(report["images"], eval_transform(trained.preprocessing), boxes=report["boxes"])
        batch = default_collate([images[index] for index in range(len(images))])
        with torch.no_grad():
            maps = read_maps(trained.model, batch["image"], selection)
        names = [path.relative_to(report["images"]).as_posix() for path in images.image_paths]
        found.append(
            {
                **maps._asdict(),
                "prep": trained.preprocessing,
                "object": patch_foreground(batch["foreground"], maps.grid_hw),
                "batch": batch,
                "row": {name: index for index, name in enumerate(names)},
            }
        )
    return found


def test_numbers_are_the_librarys(report, measured):
    numbers = report["numbers"]
    assert numbers["images"]["count"] == NUM_IMAGES
    for model, maps in zip(numbers["models"], measured, strict=True):
        hits = PointInBox(maps["prep"].crop, maps["prep"].resize, "center")
        hits.update(maps["score"], maps["batch"]["box_xyxy"], maps["batch"]["image_hw"], maps["grid_hw"])
        scores, norms, votes = ScoreDistribution(), PatchNorms(), VoteStatistics(maps["grid_hw"])
        scores.update(maps["score"], *maps["object"])
        norms.update(maps["norms"], maps["score"], *maps["object"])
        votes.update(maps["votes"], *maps["object"])
        names = ("point_in_box", "score_distribution", "patch_norms", "vote_statistics")
        assert hits.count() == NUM_IMAGES - 1
        assert set(model["metrics"]) == set(names)
        for name, metric in zip(names, (hits, scores, norms, votes), strict=True):
            assert model["metrics"][name] == pytest.approx(metric.compute(), rel=1e-4, abs=1e-3), name
        assert model["charts"]["frequency"] == pytest.approx(100 * votes.frequency().numpy(), abs=1e-6)
        bars = model["charts"]["norm"]
        assert sum(bars["percent"]) == pytest.approx(100)
        is_high = np.array(bars["edges"][:-1]) >= 0.99999 * model["metrics"]["patch_norms"]["cutoff"]
        high = model["metrics"]["patch_norms"]["outlier_share"]
        assert np.array(bars["percent"])[is_high].sum() == pytest.approx(high, abs=1e-6)


def test_page_needs_nothing_and_trusts_no_name(report):
    page = report["page"]
    without_namespace = page.replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|<link|<script[^>]+src", without_namespace)
    assert "default-src 'none'" in page
    assert "unsafe" not in page
    assert "<img" not in page
    assert "<b>" not in page
    assert page.count("</script>") == 2
    shown = json.loads(re.search(r'id="report-data">(.*?)</script>', page, re.DOTALL)[1])["gallery"]
    names = [item["name"] for item in shown]
    assert names == [item["name"] for item in report["numbers"]["gallery"]]
    assert any("<" in name for name in names)


def test_without_annotation_nothing_is_made_up(report, tmp_path, capsys):
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.new("RGB", (70, 50), "navy").save(flat / "plain.png")  # of one colour: no correlation either
    shutil.copy(next(report["images"].glob("0*.jpg")), flat)
    out = tmp_path / "out"
    make_report.main(["--model", report["models"][1], "--images", str(flat), *PLAIN, "--out", str(out)])
    numbers = json.loads((out / "report.json").read_text())
    assert set(numbers["models"][0]["metrics"]) == {"patch_norms", "vote_statistics"}
    assert "votes_inside" not in numbers["models"][0]["metrics"]["vote_statistics"]
    assert [item["hit"] + item["auroc"] + [item["disagreement"]] for item in numbers["gallery"]] == [[None] * 3] * 2
    assert capsys.readouterr().out.splitlines()[0].split() == ["model", "outliers", "corr"]


# In a browser ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser(report, tmp_path_factory):
    """Chromium on the report; without it these tests are skipped, but in CI they fail."""
    binaries = [shutil.which(name) for name in ("chromium", "chromedriver")]
    try:
        from selenium import webdriver
    except ImportError:
        webdriver = None
    if webdriver is None or None in binaries:
        if os.environ.get("LAST_VIT_REQUIRE_CHROMIUM"):
            pytest.fail("the browser tests need chromium, chromedriver and selenium, and CI must not skip them")
        pytest.skip("no Chromium: install Debian's chromium and chromium-driver, and selenium, to test the page")
    options = webdriver.ChromeOptions()
    options.binary_location = binaries[0]
    flags = "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    for flag in (*flags.split(), "disable-component-update", "disable-sync", "window-size=1200,1000"):
        options.add_argument(f"--{flag}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(binaries[1]))
    yield driver
    driver.quit()


@pytest.fixture
def page(browser, report):
    browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    browser.get(report["file"].as_uri())
    yield browser
    assert browser.get_log("browser") == []


def cards(page) -> list[str]:
    """Names of the gallery, all its pages in their order."""
    return [name for names in pages(page) for name in names]


def pages(page):
    """Turn the gallery's pages from the first to the last: the names on each."""
    back, on = (page.find_element("id", key) for key in ("previous", "next"))
    while back.is_enabled():
        page.execute_script("arguments[0].click()", back)
    while True:
        yield [card.get_attribute("data-name") for card in page.find_elements("class name", "card")]
        if not on.is_enabled():
            return
        page.execute_script("arguments[0].click()", on)


def open_card(page, name):
    """Turn to a card's page and bring it onto the screen, clear of the toolbar."""
    index = next(names for names in pages(page) if name in names).index(name)
    card = page.find_elements("class name", "card")[index]
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", card)
    return card


def readout(card) -> list[list[str]]:
    rows = card.find_elements("css selector", ".readout tbody tr")
    return [[cell.text for cell in row.find_elements("tag name", "td")] for row in rows]


def shown(maps, row, patch) -> list[str]:
    """What the page must say of a patch."""
    width = maps["grid_hw"][1]
    score, norm = (float(maps[key][row, patch]) for key in ("score", "norms"))
    return [
        f"{round(score, 3) + 0:.3f}".replace("-", "\u2212"),
        str(int(maps["votes"][row, patch])),
        f"{norm:.3f}",
        f"{patch // width + 1}, {patch % width + 1}",
    ]


def same_place(maps, other, row, patch) -> int | None:
    """The other model's patch at the same place of the original image, worked out in its pixels."""
    place = []
    size = maps["batch"]["image_hw"][row].tolist()
    for axis, coordinate in enumerate((patch // maps["grid_hw"][1], patch % maps["grid_hw"][1])):
        pixel = (coordinate + 0.5) * maps["prep"].crop / maps["grid_hw"][axis]
        for model, forward in ((maps, False), (other, True)):
            prep = model["prep"]
            resized = prep.resize if size[axis] == min(size) else int(prep.resize * size[axis] / min(size))
            offset = round((resized - prep.crop) / 2)
            scale = resized / size[axis]
            pixel = pixel * scale - offset if forward else (pixel + offset) / scale
        # on a border the lower or right one
        place.append(math.floor(pixel * other["grid_hw"][axis] / other["prep"].crop + 1e-4))
    inside = all(0 <= index < count for index, count in zip(place, other["grid_hw"], strict=True))
    return place[0] * other["grid_hw"][1] + place[1] if inside else None


def test_pointing_at_a_patch_shows_its_numbers_for_every_model(page, report, measured):
    from selenium.webdriver import ActionChains

    rng = np.random.default_rng(0)
    seen = 0
    for name in [item["name"] for item in report["numbers"]["gallery"]][:2]:
        card = open_card(page, name)
        row = measured[0]["row"][name]
        best = [int(peak_index(maps["score"][row : row + 1])) for maps in measured]
        assert readout(card) == [shown(maps, row, patch) for maps, patch in zip(measured, best, strict=True)]
        for model, stage in enumerate(card.find_elements("class name", "stage")):
            maps, other = measured[model], measured[1 - model]
            height, width = maps["grid_hw"]
            for patch in {0, height * width - 1, *rng.integers(height * width, size=2).tolist()}:
                x = ((patch % width + 0.5) / width - 0.5) * stage.size["width"]
                y = ((patch // width + 0.5) / height - 0.5) * stage.size["height"]
                ActionChains(page, duration=0).move_to_element_with_offset(stage, round(x), round(y)).perform()
                there = same_place(maps, other, row, patch)
                missing = ["\u2013", "\u2013", "\u2013", "not seen"]
                rows = [shown(maps, row, patch), missing if there is None else shown(other, row, there)]
                assert readout(card) == (rows if model == 0 else rows[::-1])
                seen += there is not None
    assert seen > 4


def test_a_patch_is_pinned_by_click_and_moved_by_keys(page, report, measured):
    from selenium.webdriver.common.keys import Keys

    name = report["numbers"]["gallery"][0]["name"]
    card, row, maps = open_card(page, name), measured[0]["row"][name], measured[1]
    height, width = maps["grid_hw"]
    stage, centre = card.find_elements("class name", "stage")[1], height // 2 * width + width // 2
    best = int(peak_index(maps["score"][row : row + 1]))
    for press, head, patch in (
        (stage.click, "pinned", centre),
        (lambda: stage.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_UP), "this patch", centre + 1 - width),
        (lambda: stage.send_keys(Keys.ESCAPE), "best patch", best),
    ):
        press()
        assert card.find_element("css selector", ".readout thead th").text == head
        assert readout(card)[1] == shown(maps, row, patch)


def rounded(value: float, decimals: int = 1) -> str:
    """As JavaScript's toFixed rounds: halves away from zero."""
    return str(Decimal(value).quantize(Decimal(10) ** -decimals, ROUND_HALF_UP))


def test_summary_shows_the_numbers_of_the_record(page, report):
    cells = {
        (cell.get_attribute("data-row"), i % 2): cell.text
        for i, cell in enumerate(page.find_elements("css selector", "#summary-table [role=cell]"))
    }
    for i, model in enumerate(report["numbers"]["models"]):
        hits, scores, norms, votes = (
            model["metrics"][name] for name in ("point_in_box", "score_distribution", "patch_norms", "vote_statistics")
        )
        assert cells["Point-in-Box", i].startswith(rounded(hits["point_in_box"]))
        assert f"random patch {rounded(hits['point_in_box_random'])}" in cells["Point-in-Box", i]
        assert f"image centre {rounded(hits['point_in_box_center'])}" in cells["Point-in-Box", i]
        assert f"attainable {rounded(hits['point_in_box_max'])}" in cells["Point-in-Box", i]
        num_hits = round(hits["point_in_box"] * hits["num_images"] / 100)
        interval = binomtest(num_hits, hits["num_images"]).proportion_ci(method="wilson")
        low, high = (rounded(100 * side) for side in interval)
        assert f"{hits['num_images']} images" in cells["Point-in-Box", i]
        assert f"interval {low} to {high}" in cells["Point-in-Box", i]
        assert cells["AUROC of the score", i].startswith(rounded(scores["auroc"]))
        assert cells["Background in the top 10 %", i].startswith(rounded(scores["background_top_10"]))
        assert f"lift {rounded(votes['votes_lift'], 2)}" in cells["Votes on the object", i]
        assert cells["High norm", i].startswith("yes" if norms["high_norm"] else "no")
        assert rounded(norms["outlier_share"]) in cells["High norm", i]
    # all of them from fewer than 100 images, so grey
    assert len(page.find_elements("css selector", ".value.few")) == len(page.find_elements("class name", "value"))
    title = f"ViT <b>K=2</b> / ConvNet on {report['numbers']['images']['name']}"
    assert page.title == title
    assert page.find_element("tag name", "h1").text == title
    assert not page.find_elements("css selector", "main b")


def test_sorting_and_filtering(page, report):
    from selenium.webdriver.support.ui import Select

    gallery = report["numbers"]["gallery"]
    names = [item["name"] for item in gallery]
    assert cards(page) == names
    sort, show = (Select(page.find_element("id", key)) for key in ("sort", "filter"))
    for text, key in (
        ("models disagree most", lambda item: -item["disagreement"]),
        ("lowest AUROC of ConvNet", lambda item: 1e9 if item["auroc"][1] is None else item["auroc"][1]),
        ("misses of ConvNet first", lambda item: 2 if item["hit"][1] is None else int(item["hit"][1])),
    ):
        sort.select_by_visible_text(text)
        assert cards(page) == [item["name"] for item in sorted(gallery, key=key)]
    sort.select_by_visible_text("file name")
    show.select_by_visible_text("hits of ConvNet")
    kept = [i["name"] for i in gallery if i["hit"][1]]
    assert 0 < len(kept) < len(names)
    assert cards(page) == kept
    last = f"{(len(kept) - 1) // PER_PAGE * PER_PAGE + 1}\u2013{len(kept)}"
    assert page.find_element("id", "count").text == f"{last} of {len(kept)} images ({len(names)} in all)"


def test_a_menu_of_sections_and_pages_of_images(page, report):
    names = [item["name"] for item in report["numbers"]["gallery"]]
    assert list(pages(page)) == [names[:PER_PAGE], names[PER_PAGE:]]
    page.find_element("id", "previous").click()
    for link in page.find_elements("css selector", "nav a"):
        link.click()
        section = page.find_element("id", link.get_attribute("href").partition("#")[2])
        top = page.execute_script("return arguments[0].getBoundingClientRect().top", section)
        assert 0 <= top < 1000, link.text
        assert link.is_displayed()
    assert page.execute_script("return document.documentElement.scrollHeight") < 6000
    card = open_card(page, names[0])
    # crops that differ have a photograph each, of its own model's
    assert len(card.find_elements("css selector", ".frame img")) == 2


def test_a_phone_scrolls_in_one_direction_only(page, report):
    size = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.get(report["file"].as_uri())
    for name in cards(page):
        open_card(page, name)
    widths = page.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
    assert widths == [390, 390]
    outside = "(e) => e.getBoundingClientRect().right > 391"
    wide = f"return [...document.querySelectorAll('main *:not(path)')].filter({outside}).length"
    assert page.execute_script(wide) == 0
